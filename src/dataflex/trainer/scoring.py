"""One loss per row without training: what a scoring pass measures in each stage."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from dataflex.signals.cross_entropy import forward_row_losses


def score_rows(trainer: Any, stage: str, model: torch.nn.Module, batch: Any) -> torch.Tensor:
    """float32[B] without gradient: the token-mean cross entropy of each row (pt, sft), or the loss of each pair (rm, dpo).

    A row without trainable tokens is NaN.
    """
    batch = dict(batch)
    if stage == "rm":
        return reward_losses(batch, model)
    if stage == "dpo":
        policy = trainer.concatenated_forward(model, batch)
        reference = trainer.compute_reference_log_probs(model, batch)
        losses, _, _ = trainer.compute_preference_loss(policy["chosen_logps"], policy["rejected_logps"], *reference)
        if trainer.ftx_gamma > 1e-6:
            losses = losses - trainer.ftx_gamma * policy["chosen_logps_avg"]
        return losses.detach().float()
    sums, counts = forward_row_losses(model, batch)
    return sums / counts  # 0 / 0 is NaN


def reward_losses(inputs: dict[str, Any], model: torch.nn.Module) -> torch.Tensor:
    """-log sigmoid(chosen - rejected) of each pair, float32[B]: the terms of the reward model's loss."""
    _, _, values = model(**inputs, output_hidden_states=True, return_dict=True, use_cache=False)
    last = inputs["attention_mask"].sum(dim=-1, keepdim=True) - 1
    chosen, rejected = values.gather(-1, last).squeeze(-1).float().chunk(2)
    return -F.logsigmoid(chosen - rejected)
