"""Clusters of concepts and skills: how they are made, how alike they are, and how dense (sections 3.2 to 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, Float64, Int, Int64

_BLOCK = 4096
"""Rows whose similarities or distances are held at a time."""


def spherical_k_means(
    rows: Float32[np.ndarray, "rows dims"], count: int, *, seed: int, rounds: int
) -> Int64[np.ndarray, " rows"]:
    """Cluster of each row, in [0, count): that of the centre with the largest inner product.

    rows: of length one. The first centres are `count` rows drawn at random. An empty cluster starts again at a row drawn
    at random. Ends early once no row changes its cluster.
    """
    draw = np.random.default_rng(seed)
    centres = rows[draw.choice(len(rows), size=count, replace=False)].copy()
    owner = nearest(rows, centres)
    for _ in range(rounds):
        centres = sums(rows, owner, count)
        empty = np.bincount(owner, minlength=count) == 0
        centres[empty] = rows[draw.choice(len(rows), size=int(empty.sum()), replace=False)]
        before, owner = owner, nearest(rows, normed(centres))
        if np.array_equal(before, owner):
            break
    return owner


def nearest(
    rows: Float32[np.ndarray, "rows dims"], centres: Float32[np.ndarray, "clusters dims"]
) -> Int64[np.ndarray, " rows"]:
    blocks = (rows[begin : begin + _BLOCK] @ centres.T for begin in range(0, len(rows), _BLOCK))
    return np.concatenate([block.argmax(axis=1) for block in blocks])


def sums(
    rows: Float32[np.ndarray, "rows dims"], owner: Int[np.ndarray, " rows"], count: int
) -> Float32[np.ndarray, "clusters dims"]:
    """Of the rows of each cluster."""
    out = np.zeros((count, rows.shape[1]), dtype=np.float32)
    np.add.at(out, owner, rows)
    return out


def normed(vectors: Float[np.ndarray, "rows dims"]) -> Float[np.ndarray, "rows dims"]:
    """Of length one; zeros stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def transferability(
    centroids: Float[np.ndarray, "clusters dims"], *, alike: float = np.inf
) -> Float64[np.ndarray, " clusters"]:
    """S_i: the mean cosine of centroid i with those of the other clusters (eq. 5); 0 where there is no other.

    alike: clusters whose cosine is larger do not count.
    """
    unit = normed(np.asarray(centroids, dtype=np.float64))
    out = np.zeros(len(unit))
    for begin in range(0, len(unit), _BLOCK):
        cosine = unit[begin : begin + _BLOCK] @ unit.T
        counts = cosine <= alike
        counts[np.arange(len(cosine)), begin + np.arange(len(cosine))] = False
        others = counts.sum(axis=1)
        out[begin : begin + len(cosine)] = np.where(counts, cosine, 0).sum(axis=1) / np.maximum(others, 1)
    return out


def kernel(a: Float[np.ndarray, "m dims"], b: Float[np.ndarray, "n dims"], scale: float) -> Float64[np.ndarray, "m n"]:
    """exp(-scale |a - b|^2)."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    squared = (x * x).sum(axis=1)[:, None] + (y * y).sum(axis=1)[None] - 2 * x @ y.T
    return np.exp(-scale * np.maximum(squared, 0))


def density(
    members: Sequence[np.ndarray], scale: float, *, own: bool, alone: float
) -> Float64[np.ndarray, " clusters"]:
    """D_i: the mean kernel over the pairs of rows of cluster i (eq. 6).

    members: the vectors of each cluster. own: the pairs of a row with itself count too. alone: of a cluster of one row.
    """
    out = np.empty(len(members))
    for i, rows in enumerate(members):
        count = len(rows)
        total = sum(float(kernel(rows[k : k + _BLOCK], rows, scale).sum()) for k in range(0, count, _BLOCK))
        out[i] = total / count**2 if own else (total - count) / (count * (count - 1)) if count > 1 else alone
    return out
