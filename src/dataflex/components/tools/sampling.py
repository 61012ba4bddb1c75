"""Weighted draws of rows."""

from __future__ import annotations

import numpy as np


def draw(weights: np.ndarray, count: int, rng: np.random.Generator, *, replacement: bool) -> np.ndarray:
    """Positions of `count` rows drawn in proportion to `weights` (non-negative), int64[count].

    Without replacement each next row is drawn in proportion to what is left, by exponential keys (Efraimidis & Spirakis,
    2006); rows of weight zero come last.
    """
    if replacement:
        return rng.choice(len(weights), size=count, p=weights / weights.sum())
    with np.errstate(divide="ignore"):
        arrival = rng.exponential(size=len(weights))
        arrival /= weights
    return lowest(arrival, count)


def lowest(values: np.ndarray, count: int) -> np.ndarray:
    """Positions of the `count` lowest values, ascending; ties go to the earlier position and NaN comes last, int64[count].

    What `np.argsort(values, kind="stable")[:count]` gives, without sorting what is not asked for.
    """
    if 0 < count < len(values):
        edge = np.partition(values, count - 1)[count - 1]
        if not np.isnan(edge):
            indices = np.flatnonzero(values <= edge)
            return indices[np.argsort(values[indices], kind="stable")[:count]]
    return np.argsort(values, kind="stable")[:count]


def highest(score: np.ndarray, count: int) -> np.ndarray:
    """Positions of the `count` highest scores; ties go to the earlier row."""
    return lowest(-score, count)
