"""The plain curriculum, and its baseline without one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dataflex.components.contracts import Order
from dataflex.components.orders.paper import ORGANIZATION
from dataflex.components.paper import Paper

if TYPE_CHECKING:
    from jaxtyping import Int


@dataclass(frozen=True, kw_only=True)
class SortingOrder(Order):
    """Rows by their scores, from one end to the other: the plain curriculum.

    Position t serves rank t.

    Departures:

    Nowhere known, compared with dataflex 1.1.0. The paper takes it as a baseline.
    """

    paper = Paper(authors="Bengio et al.", title="Curriculum Learning", venue="ICML 2009")

    def ranks(self, rows: int, shuffled: Callable[[int, int], np.ndarray]) -> Int[np.ndarray, " rows"]:
        return np.arange(rows)


@dataclass(frozen=True, kw_only=True)
class ShuffleOrder(Order):
    """A uniform permutation, whatever the scores are: the baseline for every other order.

    Every epoch has another permutation.

    Departures:

    dataflex 1.1.0 reads scores all the same, and needs them.
    """

    paper = ORGANIZATION
    unscored = True

    def ranks(self, rows: int, shuffled: Callable[[int, int], np.ndarray]) -> Int[np.ndarray, " rows"]:
        return shuffled(rows, 0)
