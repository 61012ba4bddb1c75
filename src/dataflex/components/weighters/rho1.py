"""Rho-1: selective language modeling (Lin et al., arXiv 2404.07965, section 2.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dataflex.components.contexts import State, WeightContext
from dataflex.components.contracts import Weighter
from dataflex.components.paper import Paper
from dataflex.components.requests import ReferenceLoss, Request

if TYPE_CHECKING:
    from jaxtyping import Float32
    from torch import Tensor

# How far rounding alone may set the excess losses of a token apart, in eps (1 - p), p the probability of the token: with an
# error of at most e in every logit a loss is off by at most 2 (1 - p) e, and two losses are subtracted. In a bf16 model of 30
# layers and logits up to 42, 999 tokens in 1000 were within 38 to 47 of it. Losses themselves are summed in fp32.
#
# A reference model is taken for the model itself, in other roundings, where half of all tokens are within a quarter of that
# bound: rounding seldom comes near it, and one token in two is far below it.
_ROUNDING, _FP32 = 48, 2.0**-23
_TYPICAL = _ROUNDING / 4


@dataclass(frozen=True, kw_only=True)
class Rho1Weighter(Weighter):
    """Only the tokens that the model finds harder than a reference model does are trained on.

    They are the `keep_ratio` of tokens with the greatest excess loss L_theta(x) - L_ref(x) (equations 3 to 5).

    Tokens are ranked within the comparison batch: the global batch, or with accumulation and `scope: running` the one
    before, whose threshold then holds. Weights have mean one, so the loss is that over the tokens kept. The losses of
    the reference model are measured once, before training. Tokens whose excess equals the threshold are kept.

    A run may begin with its reference model. Most excess losses are then no more than the rounding of the forward pass.
    In that case tokens within that rounding below the threshold are kept too: they could as well be above it.

    Departures:

    Compared with equations 3 to 5 of the paper, since the authors publish no training code. The tokens left out still cost
    their part of the forward and backward pass, as in the paper. What is different:

    - The paper pre-trains; sft works as well here.
    - It keeps k% exactly; here tokens within rounding of the edge are kept too.
    - With accumulation and `scope: running`, the excess at the edge and the share are those of the step before, so the share
      kept moves a little from step to step (`dataflex/weight/token/zero_share`); `scope: global` ranks the step itself.
    """

    reference_model_path: str
    """The reference model: a directory or a name on the hub, or a LoRA adapter with its base."""
    keep_ratio: float = 0.6
    """Share of the tokens that are trained on, k%."""
    store: str | None = None
    """Where the losses of the reference model are kept; runs that share it share them; null:
    `<output_dir>/dataflex/reference`."""

    paper: ClassVar[Paper | None] = Paper(
        authors="Lin et al.",
        title="Rho-1: Not All Tokens Are What You Need",
        arxiv="2404.07965",
        venue="NeurIPS 2024",
    )
    example: ClassVar[Mapping[str, Any]] = {"reference_model_path": "path/to/reference"}

    def check(self) -> None:
        self.require("keep_ratio", 0 < self.keep_ratio <= 1, "in (0, 1]")

    def without_effect(self) -> str | None:
        return "with keep_ratio 1 every token is kept" if self.keep_ratio == 1 else None

    def level(self) -> Literal["row", "token"]:
        return "token"

    def needs(self) -> frozenset[Request]:
        return frozenset({ReferenceLoss(model=self.reference_model_path, store=self.store)})

    def weights(
        self, state: State, losses: Float32[Tensor, " losses"], context: WeightContext
    ) -> Float32[Tensor, " losses"]:
        known = context.reference_signals["reference_loss"]
        excess = context.reference - known
        kept = ceil(self.keep_ratio * len(excess))
        threshold = excess.topk(kept).values[-1]
        reference = context.signals["reference_loss"]
        same = excess.abs() <= _TYPICAL * _noise(context.reference, known, context.rounding)
        if same.sum() * 2 > len(excess):
            threshold = threshold - _ROUNDING * _noise(losses, reference, context.rounding)
        return (losses - reference >= threshold).to(losses.dtype)


def _noise(
    losses: Float32[Tensor, " losses"], reference: Float32[Tensor, " losses"], eps: float
) -> Float32[Tensor, " losses"]:
    """eps (1 - p) of each token, and the rounding of the losses themselves."""
    return eps * -(-losses.maximum(reference)).expm1() + _FP32
