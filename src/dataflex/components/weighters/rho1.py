"""Rho-1: selective language modeling (Lin et al., arXiv 2404.07965, section 2.2)."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import ClassVar, Literal

import torch

from dataflex.components.contracts import State, WeightContext, Weighter
from dataflex.components.requests import ReferenceLoss, Request


@dataclass(frozen=True, kw_only=True)
class Rho1Weighter(Weighter):
    """Only the `keep_ratio` of tokens with the greatest excess loss L_theta(x) - L_ref(x) are trained on (equations 3 to 5).

    Tokens are ranked within what the weights refer to: the global batch, or with accumulation and `scope: running` the one
    before, whose threshold then holds. With the mean of the weights at one the loss is that over the tokens kept. The losses
    of the reference are measured once, before training.
    """

    reference_model_path: str
    keep_ratio: float = 0.6
    store: str | None = None

    level: ClassVar[Literal["row", "token"]] = "token"

    def check(self) -> None:
        self.require("keep_ratio", 0 < self.keep_ratio <= 1, "in (0, 1]")

    @property
    def needs(self) -> frozenset[Request]:  # type: ignore[override]
        return frozenset({ReferenceLoss(model=self.reference_model_path, store=self.store)})

    def weights(self, state: State, losses: torch.Tensor, context: WeightContext) -> torch.Tensor:
        excess = context.reference - context.reference_signals["reference_loss"]
        kept = ceil(self.keep_ratio * len(excess))
        threshold = excess.topk(kept).values[-1]
        return (losses - context.signals["reference_loss"] >= threshold).to(losses.dtype)
