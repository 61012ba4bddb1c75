"""Exact nearest neighbours, by matrix products over blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

# Similarities held at once: 2**26 fp32 values are 256 MiB.
_VALUES = 1 << 26
_QUERIES = 64


def nearest(queries: np.ndarray, rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """For each query the `count` rows with the largest inner product, best first: float32 and int64 [M, count].

    Exact, by matrix products over blocks of both sides.
    """
    import torch

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
    import torch

    for start in range(0, len(rows), size):
        yield start, torch.from_numpy(np.ascontiguousarray(rows[start : start + size]))


def closeness(queries: np.ndarray, rows: np.ndarray, tasks: np.ndarray) -> np.ndarray:
    """float32 [N, K]: largest inner product of each row with a query of each task. tasks: of each query, ascending from 0."""
    import torch

    starts, aims = np.flatnonzero(np.diff(tasks, prepend=-1)), torch.from_numpy(queries)
    out = np.empty((len(rows), len(starts)), dtype=np.float32)
    for start, block in _blocks(rows, max(1, _VALUES // len(queries))):
        out[start : start + len(block)] = np.maximum.reduceat((block @ aims.T).numpy(), starts, axis=1)
    return out
