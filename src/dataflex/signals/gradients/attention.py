"""Attention in bf16 on a CPU with a fast backward pass, during one measuring pass.

torch's kernel for a CPU takes several times as long for its backward pass in bf16 as in fp32. Here the forward pass is
that kernel in bf16, and the backward pass is the same kernel on the same values in fp32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from jaxtyping import BFloat16
    from torch import Tensor

_STOCK = functional.scaled_dot_product_attention


@lru_cache
def multiplies_bf16() -> bool:
    """Whether this processor multiplies matrices in bf16 faster than in fp32 (avx512_bf16 or AMX)."""
    found = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(has() for has in found if has is not None)


@contextmanager
def attention_in_bf16() -> Iterator[None]:
    """Causal attention without a mask, in bf16 on a CPU, goes through the faster backward pass inside.

    torch's function is replaced in its module. A mode of torch functions would not reach layers that a backward pass
    computes again.
    """
    before = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = _attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = before


def _attention(*args: Any, **kwargs: Any) -> Any:
    if len(args) < 3 or not _is_plain(*args, **kwargs):
        return _STOCK(*args, **kwargs)
    query, key, value = (t.bfloat16() for t in args[:3])  # as autocast does
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    return _Attention.apply(query, key, value, kwargs.get("scale"))


def _is_plain(
    query: Any, key: Any = None, value: Any = None, attn_mask: Any = None, dropout_p: float = 0.0,
    is_causal: bool = False, **_: Any,
) -> bool:  # fmt: skip
    if key is None or value is None or attn_mask is not None or dropout_p or not is_causal:
        return False
    if query.device.type != "cpu" or not query.shape[2:] == key.shape[2:] == value.shape[2:]:
        return False
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") == torch.bfloat16
    return bool(query.dtype == key.dtype == value.dtype == torch.bfloat16)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: BFloat16[Tensor, "B heads S D"],
        key: BFloat16[Tensor, "B heads S D"],
        value: BFloat16[Tensor, "B heads S D"],
        scale: float | None,
    ) -> BFloat16[Tensor, "B heads S D"]:
        out, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, True, scale=scale
        )
        ctx.save_for_backward(query, key, value, out, logsumexp)
        ctx.scale = scale
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, gradient: BFloat16[Tensor, "B heads S D"]) -> Any:  # type: ignore[override]
        query, key, value, out, logsumexp = ctx.saved_tensors
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *(t.float() for t in (gradient, query, key, value, out)), logsumexp, 0.0, True, scale=ctx.scale
        )
        return (*(t.to(gradient.dtype) for t in found), None)
