"""Focal loss (Lin et al., arXiv 1708.02002, section 3.2) on tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from dataflex.components.contexts import State, WeightContext
from dataflex.components.contracts import Weighter


@dataclass(frozen=True, kw_only=True)
class FocalWeighter(Weighter):
    """v_t proportional to (1 - p_t)^gamma, p_t = exp(-ce_t) the probability of the token: easy tokens fade.

    The factor is held fixed, as every weight is, so the gradient is its product with that of the cross entropy; the focal
    loss of the paper also differentiates the factor.
    """

    gamma: float = 2.0

    def check(self) -> None:
        self.require("gamma", self.gamma >= 0, "at least 0")

    def without_effect(self) -> str | None:
        return "with gamma 0 every token weighs one" if self.gamma == 0 else None

    def level(self) -> Literal["row", "token"]:
        return "token"

    def weights(self, state: State, losses: torch.Tensor, context: WeightContext) -> torch.Tensor:
        return (-torch.expm1(-losses)) ** self.gamma
