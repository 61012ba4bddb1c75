"""Uniform selection: the baseline every other selector is measured against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dataflex.components.contexts import Selection, SelectionContext, State
from dataflex.components.contracts import Selector


@dataclass(frozen=True, kw_only=True)
class RandomSelector(Selector):
    """Rows drawn uniformly, afresh at every update: the baseline for every other selector.

    Departures:

    Nowhere known, compared with a uniform draw. It has no authors.
    """

    seed: int = 42
    """Mixed into the run's own seed: another value gives another draw."""
    replacement: bool = False
    """Draw with replacement; the budget may then exceed the data."""

    retired: ClassVar[Mapping[str, str]] = {"cache_dir": "nothing is cached"}

    def with_replacement(self) -> bool:
        return self.replacement

    def select(
        self, state: State, signals: Mapping[str, np.ndarray], context: SelectionContext
    ) -> tuple[Selection, State]:
        return Selection(context.rng.choice(context.rows, size=context.budget, replace=self.replacement)), state
