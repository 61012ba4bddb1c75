"""Dynamic loss-based sample reweighting (Sow et al., arXiv 2502.06733)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dataflex.components.contexts import State, WeightContext
from dataflex.components.contracts import Weighter
from dataflex.components.paper import Paper

if TYPE_CHECKING:
    from jaxtyping import Float32
    from torch import Tensor

_STRATEGIES = ("linupper", "upper", "quadratic", "extremes", "uniform")


@dataclass(frozen=True, kw_only=True)
class LossWeighter(Weighter):
    """Rows weigh by their loss: easy ones less, hard ones more, or as `strategy` says.

    w_i is proportional to exp(f(h_i) / r), with the losses of the batch mapped linearly onto [-delta, delta]:

        h = 2 delta l / (max - min) - delta (max + min) / (max - min)

        linupper   f = min(h + delta, delta)       drop the easiest, keep the rest alike
        upper      f = (h + delta) / 2             the harder the more
        quadratic  f = 1 - h^2 / delta^2           favour the middle
        extremes   f = |h|                         favour both ends
        uniform    no reweighting at all

    min and max are those of `context.reference`; a loss outside them (a row later than the comparison batch) counts as the
    nearer bound. r is the temperature of the softmax, the strength of the KL term that keeps weights together (1 in the
    paper). r_schedule anneals it.

    Departures:

    Compared with the formulas of their README and trainer: the weights are the same, for every strategy. What is different:

    - *The start.* They leave the first 1000 steps unweighted (`burnout_steps`), in pre-training from scratch, where early
      losses say little of a row; here `warmup` is 0, and dataflex 1.1.0 came with 100 of 500 steps.
    - With accumulation the losses of a row are compared with those of the step before, unless `scope: global` is set.
    """

    strategy: str = "linupper"
    """Which rows are favoured."""
    delta: float = 1.0
    """Half-width of the range losses are mapped to."""
    r: float = 1.0
    """Temperature: larger values bring the weights together."""
    r_schedule: tuple[tuple[int, float], ...] | None = None
    """Pairs of an optimizer step, ascending, and r: linear between them, constant outside; null: `r` at every step."""

    paper: ClassVar[Paper | None] = Paper(
        authors="Sow et al.",
        title="Dynamic Loss-Based Sample Reweighting for Improved Large Language Model Pretraining",
        arxiv="2502.06733",
        venue="ICLR 2025",
    )

    def check(self) -> None:
        self.require_choice("strategy", _STRATEGIES)
        self.require("delta", self.delta > 0, "positive")
        self.require("r", self.r > 0, "positive")
        if self.r_schedule is not None:
            steps = [step for step, _ in self.r_schedule]
            usable = all(r > 0 for _, r in self.r_schedule) and bool(steps) and steps == sorted(set(steps))
            self.require("r_schedule", usable, "pairs of ascending steps and positive temperatures")
            self.require("r", self.r == 1.0, "left out where r_schedule says it for every step")

    def without_effect(self) -> str | None:
        return "with strategy uniform every row weighs one" if self.strategy == "uniform" else None

    def temperature(self, step: int) -> float:
        if self.r_schedule is None:
            return self.r
        if step <= self.r_schedule[0][0]:
            return self.r_schedule[0][1]
        for (a, before), (b, after) in zip(self.r_schedule, self.r_schedule[1:], strict=False):
            if step <= b:
                return before + (after - before) * (step - a) / (b - a)
        return self.r_schedule[-1][1]

    def weights(
        self, state: State, losses: Float32[Tensor, " losses"], context: WeightContext
    ) -> Float32[Tensor, " losses"]:
        import torch

        if self.strategy == "uniform":
            return torch.ones_like(losses)
        low, high = context.reference.min(), context.reference.max()
        spread = torch.where(high > low, high - low, torch.ones_like(high))  # equal losses: h = 0 for all

        def f(values: Float32[Tensor, " losses"]) -> Float32[Tensor, " losses"]:
            h = ((2 * values - (high + low)) * self.delta / spread).clamp(-self.delta, self.delta)
            if self.strategy == "linupper":
                return torch.minimum(h + self.delta, torch.full_like(h, self.delta))
            if self.strategy == "upper":
                return (h + self.delta) / 2
            return 1 - h.square() / self.delta**2 if self.strategy == "quadratic" else h.abs()

        # Less the greatest, so that no temperature makes exp overflow; only ratios matter.
        return torch.exp((f(losses) - f(context.reference).max()) / self.temperature(context.step))
