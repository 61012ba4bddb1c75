"""What the components that compare embeddings of rows with those of a target have in common."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import numpy as np

from dataflex.components.contracts import Component, Selector
from dataflex.components.requests import Embedding, Request, TargetEmbedding
from dataflex.errors import DataflexError


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
    """A sentence-transformers model (directory or name on the hub) instead of the model that is trained."""

    def check(self) -> None:
        check_encoder(self, "embedding_model")

    @property
    def found_before(self) -> bool:
        """Whether a file holds what comes of embeddings, so that none are measured."""
        return False

    def reads_raw_rows(self) -> bool:
        """Such a file is about the rows as they are stored."""
        return self.found_before

    def needs(self) -> frozenset[Request]:
        if self.found_before:
            return frozenset()
        how = {"layer": self.embedding_layer, "pooling": self.pooling, "model": self.embedding_model}
        if self.embedding_model is not None:  # whose own they are
            how |= {"layer": -1, "pooling": "mean"}
        return frozenset({Embedding(**how), TargetEmbedding(**how)})  # type: ignore[arg-type]


def check_encoder(component: Component, parameter: str) -> None:
    """Raise ConfigError if a sentence-transformers model is asked for without the package."""
    installed = getattr(component, parameter) is None or find_spec("sentence_transformers") is not None
    component.require(
        parameter, installed, "null, or sentence-transformers installed (pip install 'dataflex[offline]')"
    )


def unit(vectors: np.ndarray) -> np.ndarray:
    """float32 rows of length one (a row of zeros stays)."""
    rows = np.asarray(vectors, dtype=np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)


def comparable(signals: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings of the rows and of the target rows that have one, of length one, and the places of these in the target.

    DataflexError if there is no such target row, or if they are not vectors of one space."""
    rows, target = signals["embedding"], signals["target_embedding"]
    places = np.flatnonzero(np.isfinite(target).all(axis=1))
    if not len(places):
        raise DataflexError("select: no row of the target has a finite embedding")
    if rows.shape[1] != target.shape[1]:
        widths = f"{rows.shape[1]} and {target.shape[1]}"
        raise DataflexError(f"select: embeddings of rows and of the target have different lengths, {widths}")
    return unit(rows), unit(target[places]), places


def unit_vectors(target: np.ndarray) -> np.ndarray:
    """float32 [M, hidden]: rows of length one; rows that are not finite, or zero, are left out."""
    norms = np.linalg.norm(target, axis=1, keepdims=True)
    usable = np.isfinite(norms[:, 0]) & (norms[:, 0] > 0)
    if not usable.any():
        raise DataflexError("weight: no row of the target has an embedding")
    return (target[usable] / norms[usable]).astype(np.float32)  # type: ignore[no-any-return]
