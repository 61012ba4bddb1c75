"""Exact nearest neighbours, by matrix products over blocks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float32, Int, Int32, Int64
    from torch import Tensor

# Similarities held at once: 2**26 fp32 values are 256 MiB.
_VALUES = 1 << 26
_QUERIES = 64


def nearest(
    queries: Float32[np.ndarray, "queries dims"], rows: Float32[np.ndarray, "rows dims"], count: int
) -> tuple[Float32[np.ndarray, "queries count"], Int64[np.ndarray, "queries count"]]:
    """For each query the `count` largest inner products with rows, best first, and the indices of these rows."""
    import torch

    found = []
    for _, block in _blocks(queries, _QUERIES):
        values, indices = torch.empty(len(block), 0), torch.empty(len(block), 0, dtype=torch.int64)
        for start, part in _blocks(rows, max(_VALUES // len(block), count)):
            top = torch.topk(block @ part.T, min(count, len(part)), dim=1)
            values = torch.cat([values, top.values], dim=1)
            indices = torch.cat([indices, top.indices + start], dim=1)
            best = torch.topk(values, min(count, values.shape[1]), dim=1)
            values, indices = best.values, indices.gather(1, best.indices)
        found.append((values, indices))
    return torch.cat([v for v, _ in found]).numpy(), torch.cat([p for _, p in found]).numpy()


def _blocks(rows: Float32[np.ndarray, "rows dims"], size: int) -> Iterator[tuple[int, Float32[Tensor, "block dims"]]]:
    import torch

    for start in range(0, len(rows), size):
        yield start, torch.from_numpy(np.ascontiguousarray(rows[start : start + size]))


def closeness(
    queries: Float32[np.ndarray, "queries dims"],
    rows: Float32[np.ndarray, "rows dims"],
    tasks: Int[np.ndarray, " queries"],
) -> tuple[Float32[np.ndarray, "rows tasks"], Int32[np.ndarray, "rows tasks"]]:
    """Largest inner product of each row with a query of each task, and the index of that query.

    tasks: of each query, ascending from 0.
    """
    import torch

    starts, aims = np.flatnonzero(np.diff(tasks, prepend=-1)), torch.from_numpy(queries)
    values = np.empty((len(rows), len(starts)), dtype=np.float32)
    indices = np.empty(values.shape, dtype=np.int32)
    for start, block in _blocks(rows, max(1, _VALUES // len(queries))):
        products = (block @ aims.T).numpy()
        of_block = slice(start, start + len(block))
        values[of_block] = np.maximum.reduceat(products, starts, axis=1)
        for task, (begin, end) in enumerate(pairwise([*starts, len(queries)])):
            indices[of_block, task] = products[:, begin:end].argmax(axis=1) + begin
    return values, indices
