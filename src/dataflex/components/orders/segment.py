"""Sharp ends: rows of chosen scores at the beginning and at the end, all others between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import floor
from typing import TYPE_CHECKING

import numpy as np

from dataflex.components.contracts import Order
from dataflex.components.orders.paper import ORGANIZATION

if TYPE_CHECKING:
    from jaxtyping import Int


@dataclass(frozen=True, kw_only=True)
class SegmentOrder(Order):
    """Rows of one end of the scores first, rows of the other end last, and the rest between them; each part is shuffled.

    With N rows, F = floor(front N) rows come first and B = floor(back N) last. If F + B > N, F is scaled by N / (F + B) and
    B = N - F. The front takes the lowest ranks (or the highest), the back those of its end that are left. Where both take the
    same end, its F + B rows are shuffled and then divided. (SEG of the paper: boundary sharpening.)

    Departures:

    Nowhere known, compared with dataflex 1.1.0, but for the random numbers. Its `x_pct` and `y_pct` are `front` and `back` in
    percent.
    """

    front: float = 0.1
    """The share of the rows that come first."""
    back: float = 0.1
    """The share of the rows that come last."""
    front_is_high: bool = False
    """Whether the first rows are those of the highest ranks."""
    back_is_high: bool = True
    """Whether the last rows are those of the highest ranks."""

    paper = ORGANIZATION

    def check(self) -> None:
        self.require("front", 0 <= self.front <= 1, "in [0, 1]")
        self.require("back", 0 <= self.back <= 1, "in [0, 1]")

    def ranks(self, rows: int, shuffled: Callable[[int, int], np.ndarray]) -> Int[np.ndarray, " rows"]:
        first, last = floor(rows * self.front), floor(rows * self.back)
        if first + last > rows:
            first = floor(first * rows / (first + last))
            last = rows - first
        ascending = np.arange(rows)
        if self.front_is_high == self.back_is_high:
            ends, middle = _taken(ascending, first + last, self.front_is_high)
            ends = ends[shuffled(len(ends), 0)]
            front, back = ends[:first], ends[first:]
        else:
            front, left = _taken(ascending, first, self.front_is_high)
            back, middle = _taken(left, last, self.back_is_high)
        parts = (front, middle, back)
        return np.concatenate([part[shuffled(len(part), number)] for number, part in enumerate(parts, 1)])


def _taken(ranks: np.ndarray, count: int, high: bool) -> tuple[np.ndarray, np.ndarray]:
    """`count` of ascending ranks, from one end, and the others."""
    if high:
        return ranks[len(ranks) - count :], ranks[: len(ranks) - count]
    return ranks[:count], ranks[count:]
