"""From the ends to the middle: rows of both ends of the scores in turns, the middle ones last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dataflex import Order


@dataclass(frozen=True, kw_only=True)
class InwardsOrder(Order):
    """Position t serves rank t / 2 for even t and rank N - (t + 1) / 2 for odd t; the other way round unless low_first."""

    low_first: bool = True

    def ranks(self, rows: int, shuffled: Callable[[int, int], np.ndarray]) -> np.ndarray:
        positions = np.arange(rows)
        from_below = positions % 2 == 0
        found = np.where(from_below, positions // 2, rows - 1 - positions // 2)
        return found if self.low_first else rows - 1 - found
