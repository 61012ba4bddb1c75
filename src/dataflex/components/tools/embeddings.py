"""What the components that compare embeddings of rows with those of a target have in common."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

import numpy as np

from dataflex.components.contracts import Component, Selector
from dataflex.components.requests import Embedding, Request, TargetEmbedding
from dataflex.components.tools.files import StoredRowsFile
from dataflex.errors import DataflexError

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, Float64, Int


@dataclass(frozen=True, kw_only=True)
class EmbeddingSelector(Selector, ABC):
    """Base of the selectors that compare embeddings of rows with those of a target. Vectors of a text encoder never
    change."""

    embedding_layer: int = -1
    """Layer after which hidden states are taken; -1: the last; 0: the input embedding."""
    pooling: Literal["mean", "weighted_mean", "last"] = "mean"
    """How hidden states are averaged over the tokens of a row; `weighted_mean`: token i weighs i; `last`: the last token
    alone."""
    embedding_model: str | None = None
    """A sentence-transformers model (directory or name on the hub); null: the model that is trained."""

    def check(self) -> None:
        check_encoder(self, "embedding_model")

    def found_before(self) -> StoredRowsFile | None:
        """The file with the result of an earlier comparison, if one is named. No embeddings are measured then."""
        return None

    def check_found_before(self) -> None:
        """Raise ConfigError if that file does not hold what it must."""
        if (file := self.found_before()) is not None:
            file.check()

    def files(self) -> Mapping[str, str]:
        file = self.found_before()
        return {} if file is None else {file.parameter: file.path}

    def reads_raw_rows(self) -> bool:
        return self.found_before() is not None

    def check_rows(self, raw_rows: int) -> None:
        if (file := self.found_before()) is not None:
            file.check_rows(raw_rows)

    def needs(self) -> frozenset[Request]:
        if self.found_before() is not None:
            return frozenset()
        if self.embedding_model is not None:  # layer and pooling are the encoder's own
            return frozenset({Embedding(model=self.embedding_model), TargetEmbedding(model=self.embedding_model)})
        layer, pooling = self.embedding_layer, self.pooling
        return frozenset({Embedding(layer=layer, pooling=pooling), TargetEmbedding(layer=layer, pooling=pooling)})


def check_encoder(component: Component, parameter: str) -> None:
    """Raise ConfigError if a sentence-transformers model is asked for without the package."""
    installed = getattr(component, parameter) is None or find_spec("sentence_transformers") is not None
    component.require(
        parameter, installed, "null, or sentence-transformers installed (pip install 'dataflex[offline]')"
    )


def unit(vectors: Float[np.ndarray, "rows dims"]) -> Float32[np.ndarray, "rows dims"]:
    """Rows of length one; a row of zeros stays."""
    rows = np.asarray(vectors, dtype=np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)


def distance(cosine: Float[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    """|x - y| of vectors of length one, from their inner product."""
    return np.sqrt(np.maximum(2 - 2 * cosine.astype(np.float64), 0))


def comparable(
    signals: Mapping[str, np.ndarray],
) -> tuple[Float32[np.ndarray, "rows dims"], Float32[np.ndarray, "targets dims"], Int[np.ndarray, " targets"]]:
    """Embeddings of the rows, those of the target rows that have one, and the indices of these in the target.

    All have length one. DataflexError if no target row has one, or if they are not vectors of one space."""
    rows, target = signals["embedding"], signals["target_embedding"]
    indices = np.flatnonzero(np.isfinite(target).all(axis=1))
    if not len(indices):
        raise DataflexError("select: no row of the target has a finite embedding")
    if rows.shape[1] != target.shape[1]:
        widths = f"{rows.shape[1]} and {target.shape[1]}"
        raise DataflexError(f"select: embeddings of rows and of the target have different lengths, {widths}")
    return unit(rows), unit(target[indices]), indices


def unit_vectors(target: Float32[np.ndarray, "targets dims"]) -> Float32[np.ndarray, "usable dims"]:
    """Rows of length one; rows that are not finite, or zero, are left out. DataflexError if none is left."""
    norms = np.linalg.norm(target, axis=1)
    usable = np.isfinite(norms) & (norms > 0)
    if not usable.any():
        raise DataflexError("weight: no row of the target has an embedding")
    return unit(target[usable])
