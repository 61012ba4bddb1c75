"""From easy to hard: at first only the rows with the lowest losses may be drawn, in the end all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

import numpy as np

from dataflex import Request, Selection, SelectionContext, Selector, State


@dataclass(frozen=True, kw_only=True)
class CurriculumSelector(Selector):
    """Draws `budget` rows uniformly from the easiest share of the candidates.

    The share grows in equal steps from first_share at the first update to 1 at update number growth (counted from 0).
    """

    first_share: float = 0.3
    growth: int = 4

    def check(self) -> None:
        self.require("first_share", 0 < self.first_share <= 1, "in (0, 1]")
        self.require("growth", self.growth >= 1, "at least 1")

    def needs(self) -> frozenset[Request]:
        return frozenset({"loss"})

    def share(self, update: int) -> float:
        return self.first_share + (1 - self.first_share) * min(1.0, update / self.growth)

    def select(
        self, state: State, signals: Mapping[str, np.ndarray], context: SelectionContext
    ) -> tuple[Selection, State]:
        losses = signals["loss"]
        admitted = max(context.budget, ceil(self.share(context.update) * context.rows))
        easiest = np.argsort(losses, kind="stable")[:admitted]
        return Selection(context.rng.choice(easiest, size=context.budget, replace=False), losses), state
