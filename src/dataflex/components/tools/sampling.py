"""Weighted draws of rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, Int64


def draw(
    weights: Float[np.ndarray, " rows"], count: int, rng: np.random.Generator, *, replacement: bool
) -> Int64[np.ndarray, " count"]:
    """Positions of `count` rows drawn in proportion to `weights` (non-negative).

    Without replacement each next row is drawn in proportion to what is left, by exponential keys (Efraimidis & Spirakis,
    2006); rows of weight zero come last.
    """
    if replacement:
        return rng.choice(len(weights), size=count, p=weights / weights.sum())
    with np.errstate(divide="ignore"):
        arrival = rng.exponential(size=len(weights))
        arrival /= weights
    return lowest(arrival, count)


def lowest(values: Float[np.ndarray, " rows"], count: int) -> Int64[np.ndarray, " count"]:
    """Positions of the `count` lowest values, ascending; ties go to the earlier position and NaN comes last.

    What `np.argsort(values, kind="stable")[:count]` gives, without sorting what is not asked for.
    """
    if 0 < count < len(values):
        edge = np.partition(values, count - 1)[count - 1]
        if not np.isnan(edge):
            indices = np.flatnonzero(values <= edge)
            return indices[np.argsort(values[indices], kind="stable")[:count]]
    return np.argsort(values, kind="stable")[:count]


def highest(score: Float[np.ndarray, " rows"], count: int) -> Int64[np.ndarray, " count"]:
    """Positions of the `count` highest scores; ties go to the earlier row."""
    return lowest(-score, count)
