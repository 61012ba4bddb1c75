"""A selection in a few numbers: what was taken of each domain, how scores are spread, and where the cut lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
BINS = 40
_EXAMPLES = 8  # of each kind


@dataclass(frozen=True)
class Spread:
    """How the scores of some rows are spread."""

    mean: float
    quantiles: tuple[float, ...]
    """At `QUANTILES`."""
    counts: tuple[int, ...]
    """Rows of each bin of the histogram."""

    @classmethod
    def of(cls, scores: np.ndarray, edges: np.ndarray) -> Spread:
        quantiles, counts = np.quantile(scores, QUANTILES), np.histogram(scores, edges)[0]
        return cls(float(scores.mean()), tuple(quantiles.tolist()), tuple(counts.tolist()))


@dataclass(frozen=True)
class Scores:
    """The scores of a decision. All bins are the same width."""

    edges: tuple[float, ...]
    """Of the bins, BINS + 1."""
    all: Spread
    selected: Spread
    cut: tuple[float, float] | None
    """The highest score left out and the lowest one taken, where the rows taken are those of the highest scores."""


@dataclass(frozen=True)
class SelectionSummary:
    """By name of the domain: rows looked at, rows taken (each once), and rows with a score."""

    looked_at: dict[str, int]
    selected: dict[str, int]
    scored: dict[str, int]
    drawn: int
    """Rows taken, repeats included."""
    scores: Scores | None
    """None: the selector gives none."""

    @property
    def rows_taken(self) -> int:
        return sum(self.selected.values())

    @property
    def rows_looked_at(self) -> int:
        return sum(self.looked_at.values())

    @classmethod
    def of(
        cls, domains: np.ndarray, names: Sequence[str], scores: np.ndarray, selected: np.ndarray, *, drawn: int
    ) -> SelectionSummary:
        """domains: the number of each row's domain, int[n]. scores: float64[n], NaN: none. selected: bool[n]."""
        has_score = np.isfinite(scores)

        def count(rows: np.ndarray | None) -> dict[str, int]:
            counts = np.bincount(domains if rows is None else domains[rows], minlength=len(names))
            return {name: int(n) for name, n in zip(names, counts, strict=True)}

        found = _scores(scores[has_score], selected[has_score]) if (selected & has_score).any() else None
        return cls(count(None), count(selected), count(has_score), drawn, found)


def _scores(scores: np.ndarray, selected: np.ndarray) -> Scores:
    taken = scores[selected]
    low, high = float(scores.min()), float(scores.max())
    edges = np.linspace(low, high if high > low else low + 1.0, BINS + 1)
    return Scores(
        tuple(edges.tolist()), Spread.of(scores, edges), Spread.of(taken, edges), cut_between(scores, selected)
    )


def cut_between(scores: np.ndarray, selected: np.ndarray) -> tuple[float, float] | None:
    """The highest score left out and the lowest one taken; None unless the rows taken are those of the highest scores.

    scores: float64[n], finite. selected: bool[n].
    """
    taken, left = scores[selected], scores[~selected]
    if not len(taken) or not len(left) or left.max() > taken.min():
        return None
    return float(left.max()), float(taken.min())


def examples_of(scores: np.ndarray, selected: np.ndarray) -> np.ndarray:
    """Indices of rows worth reading: of both ends of the scores, next to the cut on both sides, and at random from those taken
    and from those left. scores: float[n], NaN: none. selected: bool[n]."""
    rng = np.random.default_rng(len(scores))
    taken, left = np.flatnonzero(selected), np.flatnonzero(~selected)
    found = [rng.choice(rows, min(_EXAMPLES, len(rows)), replace=False) for rows in (taken, left)]
    found += [_extreme(scores, rows, sign) for rows in (taken, left) for sign in (1, -1)]
    return np.unique(np.concatenate(found)).astype(np.int64)


def _extreme(scores: np.ndarray, rows: np.ndarray, sign: int) -> np.ndarray:
    """Of some rows those with the highest (sign 1) or lowest (-1) scores."""
    rows = rows[np.isfinite(scores[rows])]
    count = min(_EXAMPLES, len(rows))
    return rows[np.argpartition(-sign * scores[rows], count - 1)[:count]] if count else rows
