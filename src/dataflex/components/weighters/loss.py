"""Dynamic loss-based sample reweighting (Sow et al., arXiv 2502.06733)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dataflex.components.contracts import State, WeightContext, Weighter

_STRATEGIES = ("linupper", "quadratic", "extremes", "uniform")


@dataclass(frozen=True, kw_only=True)
class LossWeighter(Weighter):
    """w_i proportional to exp(f(h_i) / r), with the losses of the batch mapped linearly onto [-delta, delta]:

        h = 2 delta l / (max - min) - delta (max + min) / (max - min)

        linupper   f = min(h + delta, delta)       drop the easiest, keep the rest alike
        quadratic  f = 1 - h^2 / delta^2           favour the middle
        extremes   f = |h|                         favour both ends
        uniform    no reweighting at all

    min and max are those of `context.reference`; a loss outside them (a row later than the statistics) counts as the
    nearer bound. r is the temperature of the softmax (1 in the paper).
    """

    strategy: str = "linupper"
    delta: float = 1.0
    r: float = 1.0

    def check(self) -> None:
        self.require_choice("strategy", _STRATEGIES)
        self.require("delta", self.delta > 0, "positive")
        self.require("r", self.r > 0, "positive")

    def weights(self, state: State, losses: torch.Tensor, context: WeightContext) -> torch.Tensor:
        if self.strategy == "uniform":
            return torch.ones_like(losses)
        low, high = context.reference.min(), context.reference.max()
        spread = torch.where(high > low, high - low, torch.ones_like(high))  # equal losses: h = 0 for all
        h = (2 * losses - (high + low)) * self.delta / spread
        h = h.clamp(-self.delta, self.delta)
        if self.strategy == "linupper":
            f = torch.minimum(h + self.delta, torch.full_like(h, self.delta))
        elif self.strategy == "quadratic":
            f = 1 - h.square() / self.delta**2
        else:
            f = h.abs()
        return torch.exp(f / self.r)
