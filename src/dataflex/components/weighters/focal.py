"""Focal loss (Lin et al., arXiv 1708.02002, section 3.2) on tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from dataflex.components.contexts import State, WeightContext
from dataflex.components.contracts import Weighter
from dataflex.components.paper import Paper

if TYPE_CHECKING:
    from jaxtyping import Float32
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class FocalWeighter(Weighter):
    """Tokens that the model predicts already fade.

    v_t is proportional to (1 - p_t)^gamma, p_t = exp(-ce_t) the probability of the token (section 3.2 of the paper).

    Departures:

    Compared with section 3.2 of the paper, which is about detecting objects. What is different:

    - The factor is held fixed, as every weight is, so the gradient is v_t times that of the cross entropy; the focal loss
      differentiates the factor as well.
    - Weights have mean one over the tokens of the comparison batch, so the loss keeps its scale when most tokens are easy.
    - There is no alpha for rare classes.
    """

    gamma: float = 2.0
    """The larger, the less easy tokens count; 0: all alike."""

    paper: ClassVar[Paper | None] = Paper(
        authors="Lin et al.",
        title="Focal Loss for Dense Object Detection",
        arxiv="1708.02002",
        venue="ICCV 2017",
    )

    def check(self) -> None:
        self.require("gamma", self.gamma >= 0, "at least 0")

    def without_effect(self) -> str | None:
        return "with gamma 0 every token weighs one" if self.gamma == 0 else None

    def level(self) -> Literal["row", "token"]:
        return "token"

    def weights(
        self, state: State, losses: Float32[Tensor, " losses"], context: WeightContext
    ) -> Float32[Tensor, " losses"]:
        return (-(-losses).expm1()) ** self.gamma
