"""Selection by loss bucket: draw mostly rows whose loss is low, medium or high under the current model (the selector of that
name of dataflex 1.1.0)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, log
from typing import ClassVar

import numpy as np

from dataflex.components.contexts import Selection, SelectionContext, State
from dataflex.components.contracts import Selector
from dataflex.components.requests import Request
from dataflex.components.tools.sampling import draw

_FOCUS = ("low", "medium", "high")


@dataclass(frozen=True, kw_only=True)
class LossSelector(Selector):
    """Mostly rows whose loss is low, medium or high under the current model.

    Rows are drawn with p_i proportional to w_i^(1/temperature), w_i = focus_weight in the focused bucket and 1 elsewhere. The
    buckets are cut at the two `quantiles` of the losses of the pool: low <= q1 < medium <= q2 < high.

    Departures:

    Nowhere known, compared with the buckets and weights of the selector of dataflex 1.1.0. It has no paper.
    """

    focus: str = "medium"
    """The favoured bucket."""
    focus_weight: float = 5.0
    """How much likelier a row of it is."""
    quantiles: tuple[float, float] = (0.33, 0.66)
    """Where the buckets are cut."""
    temperature: float = 1.0
    """Above 1 flattens the difference, below 1 sharpens it."""
    replacement: bool = False
    """Draw with replacement."""

    retired: ClassVar[Mapping[str, str]] = {
        "cache_dir": "scores are written to <output_dir>/dataflex/selections",
        "score_batch_size": "scoring batches are built by token budget (scoring_tokens)",
        "score_num_workers": "scoring follows dataloader_num_workers",
    }

    def check(self) -> None:
        self.require_choice("focus", _FOCUS)
        self.require("focus_weight", 0 < self.focus_weight < inf, "positive and finite")
        self.require("focus_weight", abs(log(self.focus_weight)) < 300, "between 1e-130 and 1e130")
        self.require("temperature", self.temperature > 0, "positive")
        sharpest = abs(log(self.focus_weight)) / self.temperature  # of p_i, as a logarithm
        self.require("temperature", sharpest < 300, "large enough for focus_weight ** (1 / temperature) to be finite")
        ordered = len(self.quantiles) == 2 and 0 <= self.quantiles[0] <= self.quantiles[1] <= 1
        self.require("quantiles", ordered, "two ascending numbers in [0, 1]")

    def needs(self) -> frozenset[Request]:
        return frozenset({"loss"})

    def with_replacement(self) -> bool:
        return self.replacement

    def select(
        self, state: State, signals: Mapping[str, np.ndarray], context: SelectionContext
    ) -> tuple[Selection, State]:
        losses = np.asarray(signals["loss"], dtype=np.float64)
        low, high = np.quantile(losses, self.quantiles)
        bucket = {
            "low": losses <= low,
            "medium": (losses > low) & (losses <= high),
            "high": losses > high,
        }[self.focus]
        weights = np.where(bucket, self.focus_weight, 1.0) ** (1.0 / self.temperature)
        remarks = {}
        if not bucket.any():
            remarks["bucket"] = f"no row has a {self.focus} loss (cuts at {low:.4g} and {high:.4g}), so all are alike"
        chosen = draw(weights, context.budget, context.rng, replacement=self.replacement)
        return Selection(chosen, losses, remarks), state
