"""Optimizer steps with which all cells of a grid spend the same tokens, or the same seconds.

Every cell is trained once with the steps of the file. What that took says with how many steps it would take the budget: seconds
and tokens are taken to grow in proportion to steps. Selecting counts: a cell that selects for half of its time trains half as
many steps as one that does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dataflex.comparing.results.figures import Figures
from dataflex.errors import DataflexError


@dataclass(frozen=True)
class Fitted:
    """budget: seconds or tokens. steps: of each cell, by name; None: those of the file."""

    budget: float
    steps: Mapping[str, int | None]


def fit(equal: str, budget: float | None, measured: Mapping[str, Figures]) -> Fitted:
    """equal: tokens or compute. budget: None is that of the dearest cell. measured: one run of each cell, by its name."""
    amounts = {name: _amount(name, equal, figures) for name, figures in measured.items()}
    whole = budget if budget is not None else max(amounts.values())
    steps: dict[str, int | None] = {}
    for name, figures in measured.items():
        wanted = max(1, round(figures.steps * whole / amounts[name]))
        steps[name] = None if wanted == figures.steps else wanted
    return Fitted(whole, steps)


def _amount(name: str, equal: str, figures: Figures) -> float:
    found = figures.tokens if equal == "tokens" else figures.seconds
    if not found:
        raise DataflexError(f"equal: {equal}: the files of {name} do not say how much it took")
    return float(found)
