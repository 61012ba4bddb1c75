"""What is minimised on every token: its cross entropy, or what LLaMA-Factory's other losses make of it.

All of them are a sum over tokens, so that a weight on a row or token is a factor inside that sum. The signal that components
see is the cross entropy whatever is minimised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from dataflex.signals.cross_entropy import token_losses

# Of LLaMA-Factory's eaft_loss_func: the entropy is that of the likeliest tokens, over about log of their number.
_EAFT_TOP, _EAFT_ENTROPY = 20, 3.0


@dataclass(frozen=True)
class Objective:
    """The stage's own loss, and how LLaMA-Factory scales it."""

    kind: str = "cross_entropy"
    """dft, eaft, asft, smoothed or cross_entropy."""
    smoothing: float = 0.0
    eaft_alpha: float = 1.0
    asft_alpha: float = 0.0
    reference_model: Any = None
    """The reference model of asft."""
    accepts_items: bool = True
    """Whether the Trainer tells the model the number of items of the global batch (`model_accepts_loss_kwargs`)."""
    average_tokens: bool = True
    """Whether tokens are averaged over all ranks (`average_tokens_across_devices`)."""
    fix_scaling: bool = False
    """Whether a loss is divided by the tokens of the global batch where LLaMA-Factory forgets to."""

    @classmethod
    def of(cls, trainer: Any, stage: str, *, fix_scaling: bool) -> Objective:
        """Read off LLaMA-Factory's trainer, once it is made."""
        arguments, smoother = trainer.finetuning_args, trainer.label_smoother
        kinds = [k for k in ("dft", "eaft", "asft") if stage == "sft" and getattr(arguments, f"use_{k}_loss", False)]
        return cls(
            kind=kinds[0] if kinds else "smoothed" if smoother is not None else "cross_entropy",
            smoothing=0.0 if smoother is None else float(smoother.epsilon),
            eaft_alpha=getattr(arguments, "eaft_alpha", 1.0),
            asft_alpha=getattr(arguments, "asft_alpha", 0.0),
            reference_model=getattr(trainer, "ref_model", None),
            accepts_items=trainer.model_accepts_loss_kwargs,
            average_tokens=trainer.args.average_tokens_across_devices,
            fix_scaling=fix_scaling,
        )

    def of_tokens(
        self, logits: torch.Tensor, labels: torch.Tensor, inputs: Mapping[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The minimised loss of each token, with gradients; its cross entropy, without; and whether the token is
        trainable.

        Both losses are float32 [B, T], zero where there is no trainable token; the third is bool [B, T].

        Args:
            logits: [B, T, V].
            labels: int64 [B, T].
        """
        losses, active = token_losses(logits, labels)
        plain = losses.detach()
        if self.kind == "cross_entropy":
            return losses, plain, active
        if self.kind == "smoothed":
            uniform = torch.zeros_like(losses)
            chosen = logits[active].float()
            uniform[active] = chosen.logsumexp(dim=-1) - chosen.mean(dim=-1)  # the cross entropy with a uniform target
            return (1 - self.smoothing) * losses + self.smoothing * uniform, plain, active
        if self.kind == "eaft":
            top = logits.detach()[active].float().topk(_EAFT_TOP, dim=-1).values.log_softmax(dim=-1)
            entropy = -(top.exp() * top).sum(dim=-1)
            scale = torch.zeros_like(plain)
            scale[active] = (entropy / _EAFT_ENTROPY) ** self.eaft_alpha
            return losses * scale, plain, active
        weighted = losses * torch.exp(-plain)  # dft: by the probability of the token
        if self.kind == "asft":
            divergence = torch.zeros_like(losses)
            divergence[active] = _divergence(self.reference_model, logits, active, inputs)
            weighted = weighted + self.asft_alpha * divergence
        return weighted, plain, active

    def divisor(self, num_items: Any, tokens: torch.Tensor) -> tuple[Any, bool]:
        """The divisor of the sum over tokens, and whether it is a number of the global batch over all ranks.

        With label smoothing and asft, plain LLaMA-Factory takes the mean of each micro-batch. The Trainer then does not
        divide by the number of micro-batches. We do the same, unless `fix_scaling` says otherwise.
        """
        takes_items = self.accepts_items or self.kind in ("dft", "eaft", "asft")
        if self.kind in ("smoothed", "asft") and not self.fix_scaling:
            takes_items = False
        if takes_items and num_items is not None:
            return num_items, True
        return tokens, False

    def times_processes(self, num_items: Any, of_global_batch: bool) -> bool:
        """Whether the Trainer multiplies the loss by the number of ranks, which gradients are then averaged over."""
        if not self.average_tokens:
            return False
        if (
            self.kind == "smoothed" and not of_global_batch
        ):  # it does so although nothing was divided by all ranks' tokens
            return bool(self.accepts_items and num_items is not None)
        return of_global_batch


def _divergence(
    reference_model: Any, logits: torch.Tensor, active: torch.Tensor, inputs: Mapping[str, Any]
) -> torch.Tensor:
    """KL(reference || policy) at each token that is learned, [M]."""
    with torch.no_grad():
        given = reference_model(input_ids=inputs["input_ids"], attention_mask=inputs.get("attention_mask")).logits
        reference = given[active].float().softmax(dim=-1)
    return F.kl_div(logits[active].float().log_softmax(dim=-1), reference, reduction="none").sum(dim=-1)
