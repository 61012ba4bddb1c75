"""What is minimised on every token: its cross entropy, or what LLaMA-Factory's other losses make of it.

All of them are a sum over tokens, so that a weight on a row or token is a factor inside that sum. The signal that components
see is the cross entropy whatever is minimised.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from dataflex.signals.cross_entropy import token_losses

# Of LLaMA-Factory's eaft_loss_func: the entropy is that of the likeliest tokens, over about log of their number.
_EAFT_TOP, _EAFT_ENTROPY = 20, 3.0


def kind_of(trainer: Any) -> str:
    """dft, eaft, asft, smoothed or cross_entropy: whichever the stage's own loss is."""
    if trainer.stage_name == "sft":
        for kind in ("dft", "eaft", "asft"):
            if getattr(trainer.finetuning_args, f"use_{kind}_loss", False):
                return kind
    return "smoothed" if trainer.label_smoother is not None else "cross_entropy"


def token_objective(
    trainer: Any, kind: str, logits: torch.Tensor, labels: torch.Tensor, inputs: Mapping[str, Any]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What is minimised, with gradients, and the cross entropies, without, both float32 [B, T] and zero where nothing is
    learned; and bool [B, T], where something is. logits: [B, T, V]; labels: int64 [B, T]."""
    losses, active = token_losses(logits, labels)
    plain = losses.detach()
    if kind == "cross_entropy":
        return losses, plain, active
    if kind == "smoothed":
        smooth = float(trainer.label_smoother.epsilon)
        uniform = torch.zeros_like(losses)
        chosen = logits[active].float()
        uniform[active] = chosen.logsumexp(dim=-1) - chosen.mean(dim=-1)  # the cross entropy with a uniform target
        return (1 - smooth) * losses + smooth * uniform, plain, active
    if kind == "eaft":
        top = logits.detach()[active].float().topk(_EAFT_TOP, dim=-1).values.log_softmax(dim=-1)
        entropy = -(top.exp() * top).sum(dim=-1)
        scale = torch.zeros_like(plain)
        scale[active] = (entropy / _EAFT_ENTROPY) ** trainer.finetuning_args.eaft_alpha
        return losses * scale, plain, active
    weighted = losses * torch.exp(-plain)  # dft: by the probability of the token
    if kind == "asft":
        divergence = torch.zeros_like(losses)
        divergence[active] = _divergence(trainer, logits, active, inputs)
        weighted = weighted + trainer.finetuning_args.asft_alpha * divergence
    return weighted, plain, active


def _divergence(trainer: Any, logits: torch.Tensor, active: torch.Tensor, inputs: Mapping[str, Any]) -> torch.Tensor:
    """KL(reference || policy) at each token that is learned, [M]."""
    with torch.no_grad():
        known = trainer.ref_model(input_ids=inputs["input_ids"], attention_mask=inputs.get("attention_mask")).logits
        reference = known[active].float().softmax(dim=-1)
    return F.kl_div(logits[active].float().log_softmax(dim=-1), reference, reduction="none").sum(dim=-1)


def divisor(trainer: Any, kind: str, num_items: Any, tokens: torch.Tensor) -> tuple[Any, bool]:
    """What the sum over tokens is divided by, and whether that is a number of the global batch (of all ranks, then).

    Plain LLaMA-Factory takes the mean of each micro-batch with label smoothing and asft, and the Trainer then leaves out the
    division by the number of micro-batches; so do we, unless `fix_scaling` says otherwise.
    """
    fixed = trainer.config.weight is not None and trainer.config.weight.fix_scaling
    takes_items = trainer.model_accepts_loss_kwargs or kind in ("dft", "eaft", "asft")
    if kind in ("smoothed", "asft") and not fixed:
        takes_items = False
    if takes_items and num_items is not None:
        return num_items, True
    return tokens, False


def times_processes(trainer: Any, kind: str, num_items: Any, shared: bool) -> bool:
    """Whether the Trainer multiplies the loss by the number of ranks, which gradients are then averaged over."""
    if not trainer.args.average_tokens_across_devices:
        return False
    if kind == "smoothed" and not shared:  # it does so although nothing was divided by the tokens of all ranks
        return bool(trainer.model_accepts_loss_kwargs and num_items is not None)
    return shared
