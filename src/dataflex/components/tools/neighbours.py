"""Exact nearest neighbours, and targets taking turns among theirs."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import numpy as np
import torch

from dataflex.components.contracts import Component, Selector
from dataflex.components.requests import Embedding, Request, TargetEmbedding
from dataflex.errors import DataflexError

# Similarities held at once: 2**26 fp32 values are 256 MiB.
_VALUES = 1 << 26
_QUERIES = 64


@dataclass(frozen=True, kw_only=True)
class EmbeddingSelector(Selector, ABC):
    """Base of the selectors that compare embeddings of rows with those of a target.

    embedding_model: a sentence-transformers model instead of the model that is trained; its vectors never change.
    """

    embedding_layer: int = -1
    pooling: Literal["mean", "weighted_mean", "last"] = "mean"
    embedding_model: str | None = None

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


def nearest(queries: np.ndarray, rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """For each query the `count` rows with the largest inner product, best first: float32 and int64 [M, count].

    Exact, by matrix products over blocks of both sides.
    """
    found = []
    for _, block in _blocks(queries, _QUERIES):
        values, places = torch.empty(len(block), 0), torch.empty(len(block), 0, dtype=torch.int64)
        for start, part in _blocks(rows, max(_VALUES // len(block), count)):
            top = torch.topk(block @ part.T, min(count, len(part)), dim=1)
            values = torch.cat([values, top.values], dim=1)
            places = torch.cat([places, top.indices + start], dim=1)
            best = torch.topk(values, min(count, values.shape[1]), dim=1)
            values, places = best.values, places.gather(1, best.indices)
        found.append((values, places))
    return torch.cat([v for v, _ in found]).numpy(), torch.cat([p for _, p in found]).numpy()


def _blocks(rows: np.ndarray, size: int) -> Iterator[tuple[int, torch.Tensor]]:
    for start in range(0, len(rows), size):
        yield start, torch.from_numpy(np.ascontiguousarray(rows[start : start + size]))


def take_turns(ranking: np.ndarray, budget: int) -> np.ndarray:
    """The first `budget` different rows when all take turns, each with its next row: int64[<= budget].

    ranking: int [M, K], the rows of each from its best on. A turn on a row that is taken already adds nothing.
    """
    turns = ranking.T.ravel()
    rows, first = np.unique(turns, return_index=True)
    return rows[np.argsort(first)][:budget].astype(np.int64)


def turns_among(queries: np.ndarray, rows: np.ndarray, budget: int) -> np.ndarray:
    """`take_turns` of the queries over their nearest rows, looking only as deep as the budget needs: int64[budget]."""
    depth = min(len(rows), 2 * -(-budget // len(queries)) + 16)
    while True:
        chosen = take_turns(nearest(queries, rows, depth)[1], budget)
        if len(chosen) == budget or depth == len(rows):
            return chosen
        depth = min(len(rows), 4 * depth)


def closeness(queries: np.ndarray, rows: np.ndarray, tasks: np.ndarray) -> np.ndarray:
    """float32 [N, K]: largest inner product of each row with a query of each task. tasks: of each query, ascending from 0."""
    starts, aims = np.flatnonzero(np.diff(tasks, prepend=-1)), torch.from_numpy(queries)
    out = np.empty((len(rows), len(starts)), dtype=np.float32)
    for start, block in _blocks(rows, max(1, _VALUES // len(queries))):
        out[start : start + len(block)] = np.maximum.reduceat((block @ aims.T).numpy(), starts, axis=1)
    return out
