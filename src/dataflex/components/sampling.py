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
        arrival = rng.exponential(size=len(weights)) / weights
    return np.argsort(arrival, kind="stable")[:count]
