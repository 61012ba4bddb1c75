"""A cap on outliers: a row far above the usual loss pulls no harder than a row at the cap."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dataflex import State, WeightContext, Weighter


@dataclass(frozen=True, kw_only=True)
class CappedWeighter(Weighter):
    """w_i = min(1, cap / l_i) with cap = factor x level, so that w_i l_i never exceeds the cap.

    The level is the mean loss of a global batch, averaged over steps with the given decay.
    """

    factor: float = 2.0
    decay: float = 0.9

    def check(self) -> None:
        self.require("factor", self.factor > 0, "positive")
        self.require("decay", 0 <= self.decay < 1, "in [0, 1)")

    def init(self) -> State:
        return {"level": None}

    def weights(self, state: State, losses: torch.Tensor, context: WeightContext) -> torch.Tensor:
        level = context.reference.mean() if state["level"] is None else state["level"]
        return (self.factor * level / losses.clamp_min(1e-6)).clamp_max(1.0)

    def update(self, state: State, context: WeightContext) -> State:
        now = float(context.reference.mean())
        before = state["level"]
        return {"level": now if before is None else self.decay * before + (1 - self.decay) * now}
