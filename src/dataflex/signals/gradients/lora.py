"""A LoRA layer with its gradient per row as one operation, during one pass.

peft computes y = W x + s B A x as six operations, each recorded by autograd. Here it is one, on the same values. The
forward pass takes two matrix products more than the base layer, added in place. The backward pass takes g B, which the
gradient of A needs, and the two products that lead on to x. The factors of both gradients are by-products:

    grad A = (s g B)^T x        grad B = g^T (s A x)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from dataflex.signals.gradients.factors import Factors
from dataflex.signals.gradients.sites import Sites

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

Accept = Callable[[torch.nn.Parameter, Factors], None]


def fusable_layers(model: torch.nn.Module, sites: Sites) -> list[Any]:
    """peft's LoRA layers over a plain `nn.Linear` that is frozen and whole on this device, with one active adapter."""
    try:
        from peft.tuners.lora.layer import Linear
    except ImportError:
        return []
    covered = {id(p) for p in sites.covered.values()}
    return [m for m in model.modules() if type(m) is Linear and _is_plain(m, covered)]


def _is_plain(layer: Any, covered: set[int]) -> bool:
    if layer.merged or layer.disable_adapters or len(layer.active_adapters) != 1:
        return False
    name, base = layer.active_adapters[0], layer.base_layer
    if type(base) is not torch.nn.Linear or name not in layer.lora_A or layer.lora_variant:
        return False
    a, b = layer.lora_A[name], layer.lora_B[name]
    if any(type(m) is not torch.nn.Linear for m in (a, b)) or a.bias is not None or b.bias is not None:
        return False
    if not all(id(m.weight) in covered for m in (a, b)):
        return False
    weights = [base.weight, a.weight, b.weight]
    whole = all(type(w.data) is torch.Tensor and not hasattr(w, "ds_id") and w.numel() for w in weights)
    return whole and not any(p.requires_grad for p in base.parameters())


def takes(layer: Any, x: Float[Tensor, "B T in"]) -> bool:
    """Whether this call can be fused: no dropout, the precision of the base layer, and a gradient that goes on to x."""
    dropout = layer.lora_dropout[layer.active_adapters[0]]
    drops = dropout.training and not isinstance(dropout, torch.nn.Identity)
    return x.requires_grad and _precision(x) == layer.base_layer.weight.dtype and not drops


def _precision(x: torch.Tensor) -> torch.dtype:
    """What a linear layer would compute in."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def fused(layer: Any, x: Float[Tensor, "B T in"], accept: Accept) -> Float[Tensor, "B T out"]:
    """W x + s B A x; in the backward pass accept(parameter, factors) is called for B and for A."""
    name = layer.active_adapters[0]
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    base, x = layer.base_layer, x.to(_precision(x))
    y: torch.Tensor = _LoraLinear.apply(x, base.weight, base.bias, a, b, layer.scaling[name], accept)
    return y


class _LoraLinear(torch.autograd.Function):
    """Gives a gradient for x only."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "B T in"],
        weight: Float[Tensor, "out in"],
        bias: Float[Tensor, " out"] | None,
        a: Float[Tensor, "r in"],
        b: Float[Tensor, "out r"],
        scaling: float,
        accept: Accept,
    ) -> Float[Tensor, "B T out"]:
        with torch.autocast(x.device.type, enabled=False):  # x has the precision already
            h = F.linear(x, a.to(x.dtype)).mul_(scaling)
            y = F.linear(x, weight, bias)
        y.view(-1, y.shape[-1]).addmm_(h.flatten(0, -2), b.to(x.dtype).T)
        ctx.save_for_backward(x, h, weight)
        ctx.a, ctx.b, ctx.scaling, ctx.accept = a, b, scaling, accept
        return y

    @staticmethod
    def backward(ctx: Any, g: Float[Tensor, "B T out"]) -> Any:  # type: ignore[override]
        x, h, weight = ctx.saved_tensors
        gb = (g @ ctx.b.to(g.dtype)).mul_(ctx.scaling)
        ctx.accept(ctx.b, Factors([(g, h)]))
        ctx.accept(ctx.a, Factors([(gb, x)]))
        gx = g @ weight
        gx.view(-1, gx.shape[-1]).addmm_(gb.flatten(0, -2), ctx.a.to(g.dtype))
        return gx, None, None, None, None, None, None
