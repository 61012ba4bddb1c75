"""From a row's gradient to the step the optimizer would take on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from dataflex.errors import DataflexError

Direction = Callable[[torch.nn.Parameter, torch.Tensor], torch.Tensor]
"""(parameter, gradients float32 [b, numel]) -> directions of the same shape; may overwrite its input."""


@dataclass(frozen=True)
class Moments:
    """Adam's state of one parameter, before the step in question: m and v, flat; steps taken; betas and eps."""

    m: torch.Tensor | None
    v: torch.Tensor | None
    step: int
    beta1: float
    beta2: float
    eps: float


class AdamDirection:
    """Gamma(g) = (m' / (1 - beta1^t)) / (sqrt(v' / (1 - beta2^t)) + eps), the step that Adam would take on g alone:

        m' = beta1 m + (1 - beta1) g        v' = beta2 v + (1 - beta2) g^2        t = steps taken + 1

    (LESS, arXiv 2402.04333, section 2.2; Kingma & Ba, algorithm 1.) Before the first step m = v = 0. Weight decay, which
    does not depend on the row, is left out.
    """

    def __init__(self, moments: Callable[[torch.nn.Parameter], Moments]) -> None:
        self.moments = moments

    def __call__(self, parameter: torch.nn.Parameter, gradients: torch.Tensor) -> torch.Tensor:
        at = self.moments(parameter)
        first = (1 - at.beta1) / (1 - at.beta1 ** (at.step + 1))
        second = (1 - at.beta2) / (1 - at.beta2 ** (at.step + 1))
        scale = gradients.square().mul_(second)
        gradients.mul_(first)
        if at.m is not None and at.v is not None:
            gradients.add_(at.m, alpha=at.beta1 / (1 - at.beta1 ** (at.step + 1)))
            scale.add_(at.v, alpha=at.beta2 / (1 - at.beta2 ** (at.step + 1)))
        return gradients.div_(scale.sqrt_().add_(at.eps))


def optimizer_moments(optimizer: Any) -> Callable[[torch.nn.Parameter], Moments]:
    """Reads an Adam or AdamW of torch, through accelerate's wrapper; a sharded moment is gathered when it is asked for.

    DataflexError for an optimizer without full-precision moments.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    groups = {id(p): group for group in inner.param_groups for p in group["params"]}

    def moments(parameter: torch.nn.Parameter) -> Moments:
        group, state = groups.get(id(parameter)), inner.state.get(parameter, {})
        if group is None or "betas" not in group or "eps" not in group:
            raise DataflexError(f"gradient_type: adam needs an Adam optimizer, and {type(inner).__name__} is none")
        m, v = state.get("exp_avg"), state.get("exp_avg_sq")
        if state and (m is None or v is None):
            raise DataflexError(f"gradient_type: adam cannot read the moments of {type(inner).__name__}")
        beta1, beta2 = (float(b) for b in group["betas"])
        step = int(state["step"]) if state else 0
        return Moments(_whole(m), _whole(v), step, beta1, beta2, float(group["eps"]))

    return moments


def _whole(moment: torch.Tensor | None) -> torch.Tensor | None:
    if moment is None:
        return None
    if hasattr(moment, "full_tensor"):  # FSDP 2
        moment = moment.full_tensor()
    return moment.float().flatten()
