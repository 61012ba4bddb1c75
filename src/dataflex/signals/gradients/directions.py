"""From a row's gradient to the step the optimizer would take on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from dataflex.errors import DataflexError

if TYPE_CHECKING:
    from jaxtyping import Float32
    from torch import Tensor

# Values of moments that are kept once gathered; beyond it they are gathered again for every batch.
_KEPT = 1 << 27


@dataclass(frozen=True)
class Moments:
    """Adam's state of one parameter, before the step in question: m and v; steps taken; betas and eps."""

    m: Float32[Tensor, " numel"] | None
    v: Float32[Tensor, " numel"] | None
    step: int
    beta1: float
    beta2: float
    eps: float


class Direction(ABC):
    """What stands for training on a row, made of its gradient parameter by parameter."""

    @abstractmethod
    def of(self, parameter: torch.nn.Parameter) -> Callable[[Float32[Tensor, "b numel"]], Float32[Tensor, "b numel"]]:
        """From gradients to directions; overwrites its input. Every rank asks for every parameter once per batch and in one
        order, since moments may have to be gathered."""


class AdamDirection(Direction):
    """The step that Adam would take on g alone (LESS, arXiv 2402.04333, section 2.2; Kingma & Ba, algorithm 1):

        Gamma(g) = (m' / (1 - beta1^t)) / (sqrt(v' / (1 - beta2^t)) + eps)
        m' = beta1 m + (1 - beta1) g        v' = beta2 v + (1 - beta2) g^2        t = steps taken + 1

    Before the first step m = v = 0. Weight decay does not depend on the row, and is left out.
    """

    def __init__(self, moments: Callable[[torch.nn.Parameter], Moments]) -> None:
        self.moments = moments

    def of(self, parameter: torch.nn.Parameter) -> Callable[[Float32[Tensor, "b numel"]], Float32[Tensor, "b numel"]]:
        at = self.moments(parameter)
        first, second = 1 - at.beta1 ** (at.step + 1), 1 - at.beta2 ** (at.step + 1)

        def direction(gradients: Float32[Tensor, "b numel"]) -> Float32[Tensor, "b numel"]:
            m, v = (None if t is None else t.to(gradients.device) for t in (at.m, at.v))  # offloaded ones are elsewhere
            scale = gradients.square().mul_((1 - at.beta2) / second)
            gradients.mul_((1 - at.beta1) / first)
            if m is not None and v is not None:
                gradients.add_(m, alpha=at.beta1 / first)
                scale.add_(v, alpha=at.beta2 / second)
            return gradients.div_(scale.sqrt_().add_(at.eps))

        return direction


class AuthorsDirection(Direction):
    """The step as the authors of LESS compute it (princeton-nlp/LESS, less/data_selection/collect_grad_reps.py):

        Gamma(g) = m' / sqrt(v' + 1e-8),    m' = 0.9 m + 0.1 g,    v' = 0.999 v + 0.001 g^2

    Betas and eps are fixed. eps is inside the root, where it is a floor of 1e-4 under its value. Nothing corrects the
    bias of the first steps.
    """

    beta1, beta2, eps = 0.9, 0.999, 1e-8

    def __init__(self, moments: Callable[[torch.nn.Parameter], Moments]) -> None:
        self.moments = moments

    def of(self, parameter: torch.nn.Parameter) -> Callable[[Float32[Tensor, "b numel"]], Float32[Tensor, "b numel"]]:
        at = self.moments(parameter)

        def direction(gradients: Float32[Tensor, "b numel"]) -> Float32[Tensor, "b numel"]:
            m, v = (None if t is None else t.to(gradients.device) for t in (at.m, at.v))
            scale = gradients.square().mul_(1 - self.beta2)
            gradients.mul_(1 - self.beta1)
            if m is not None and v is not None:
                gradients.add_(m, alpha=self.beta1)
                scale.add_(v, alpha=self.beta2)
            return gradients.div_(scale.add_(self.eps).sqrt_())

        return direction


def has_moments(optimizer: Any) -> bool:
    """Whether an optimizer that `optimizer_moments` reads has taken a step; asked of one rank, it waits for no other."""
    inner = getattr(optimizer, "optimizer", optimizer)
    if type(inner).__module__.startswith("deepspeed.runtime"):
        inner = inner.optimizer
    return any("exp_avg" in state for state in inner.state.values())


def optimizer_moments(optimizer: Any) -> Callable[[torch.nn.Parameter], Moments]:
    """A function that reads the moments of a parameter from an Adam or AdamW of torch or DeepSpeed.

    It works through accelerate's wrapper, and under ZeRO and FSDP 2. A sharded moment is gathered when it is asked for.
    DataflexError, at once, for an optimizer without full-precision moments.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    if type(inner).__module__.startswith("deepspeed.runtime"):
        return _remembered(_deepspeed_moments(inner))
    groups = {id(p): group for group in inner.param_groups for p in group["params"]}
    for group in inner.param_groups:
        _constants(group, inner)

    def moments(parameter: torch.nn.Parameter) -> Moments:
        group, state = groups.get(id(parameter)), inner.state.get(parameter, {})
        beta1, beta2, eps = _constants(group, inner)
        m, v = state.get("exp_avg"), state.get("exp_avg_sq")
        if state and (m is None or v is None):
            raise DataflexError(f"gradient_type: adam cannot read the moments of {type(inner).__name__}")
        step = int(state["step"]) if state else 0
        return Moments(_whole(m), _whole(v), step, beta1, beta2, eps)

    return _remembered(moments)


def _deepspeed_moments(zero: Any) -> Callable[[torch.nn.Parameter], Moments]:
    """zero: DeepSpeed's optimizer of any ZeRO stage, around the one that knows about Adam."""
    if not any(hasattr(zero, accessor) for accessor in ("get_full_hp_param", "single_partition_of_fp32_groups")):
        raise DataflexError(
            f"gradient_type: adam cannot read the moments of DeepSpeed's {type(zero).__name__}; set gradient_type: sgd, or a"
            " ZeRO stage from 1 to 3"
        )
    base = zero.optimizer
    beta1, beta2, eps = _constants(base.param_groups[0], base)
    states = [s for s in base.state.values() if "exp_avg" in s]
    step = int(states[0].get("step", base.param_groups[0].get("step", 0))) if states else 0

    def moments(parameter: torch.nn.Parameter) -> Moments:
        m = v = None
        if step:
            m, v = (_gathered(zero, parameter, key) for key in ("exp_avg", "exp_avg_sq"))
        return Moments(m, v, step, beta1, beta2, eps)

    return moments


def _remembered(read: Callable[[torch.nn.Parameter], Moments]) -> Callable[[torch.nn.Parameter], Moments]:
    """What has been read once, as long as there is room: the parts of a sharded moment are on other ranks."""
    kept: dict[torch.nn.Parameter, Moments] = {}
    room = _KEPT

    def moments(parameter: torch.nn.Parameter) -> Moments:
        nonlocal room
        if parameter in kept:
            return kept[parameter]
        found = read(parameter)
        size = 0 if found.m is None else 2 * found.m.numel()
        if size <= room:
            room -= size
            kept[parameter] = found
        return found

    return moments


def _gathered(zero: Any, parameter: Any, key: str) -> Float32[Tensor, " numel"]:
    """One moment of a parameter from the parts that the ranks hold; a collective."""
    if hasattr(parameter, "ds_id"):  # stage 3
        return zero.get_full_hp_param(parameter, key).float().flatten()  # type: ignore[no-any-return]
    whole = torch.zeros(parameter.numel(), dtype=torch.float32, device=parameter.device)
    part = parameter._hp_mapping
    if part is not None:  # a part of it is in this rank's partition
        state = zero.optimizer.state[zero.single_partition_of_fp32_groups[part.param_group_index]]
        here, there = part.lp_fragment_address, part.hp_fragment_address
        whole[here.start : here.start + here.numel] = state[key].narrow(0, there.start, there.numel)
    dist.all_reduce(whole, group=parameter._dp_group)
    return whole


def _constants(group: Any, optimizer: Any) -> tuple[float, float, float]:
    if group is None or "betas" not in group or "eps" not in group:
        raise DataflexError(f"gradient_type: adam needs an Adam optimizer, and {type(optimizer).__name__} is none")
    beta1, beta2 = (float(b) for b in group["betas"])
    return beta1, beta2, float(group["eps"])


def _whole(moment: Any) -> Float32[Tensor, " numel"] | None:
    if moment is None:
        return None
    if hasattr(moment, "full_tensor"):  # FSDP 2
        moment = moment.to(moment.device_mesh.device_type).full_tensor()
    return moment.float().flatten()
