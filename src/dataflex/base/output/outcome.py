"""What a selection before training comes to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dataflex.data.origins import Origin
from dataflex.data.texts import RowText
from dataflex.record.reasons import Reasons


@dataclass(frozen=True)
class Outcome:
    """Rows are numbered 0..N-1: the used rows of the origins, laid end to end.

    A data set whose rows are of several domains has an origin for each.
    """

    origins: list[Origin]
    selector: str
    chosen: np.ndarray
    """Rows in the order of the selector, int64[budget]."""
    scores: np.ndarray
    """float64[N], NaN where a row has none."""
    texts: Callable[[Sequence[int]], list[RowText]]
    """What rows say."""
    notes: list[str]
    """Lines for the summary."""
    reasons: Reasons | None = None
    """Why rows were taken; None: the selector does not say."""

    @property
    def divided(self) -> bool:
        """Whether domains are something else than the data sets."""
        return any(origin.domain for origin in self.origins)
