"""One loss per row for each training stage, from the forward pass the stage makes anyway."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from dataflex.signals.cross_entropy import row_losses


def score_rows(trainer: Any, stage: str, model: torch.nn.Module, batch: Any) -> torch.Tensor:
    """float32[B] without gradient: the token-mean cross entropy of each row (pt, sft), or the loss of each pair (rm, dpo).

    A row without trainable tokens is NaN.
    """
    batch = dict(batch)
    if stage == "rm":
        return pair_losses(trainer, batch, model)
    if stage == "dpo":
        policy = trainer.concatenated_forward(model, batch)
        reference = trainer.compute_reference_log_probs(model, batch)
        losses, _, _ = trainer.compute_preference_loss(policy["chosen_logps"], policy["rejected_logps"], *reference)
        if trainer.ftx_gamma > 1e-6:
            losses = losses - trainer.ftx_gamma * policy["chosen_logps_avg"]
        return losses.detach().float()
    labels = batch.pop("labels")
    sums, counts = row_losses(model(**batch).logits, labels)
    return sums / counts  # 0 / 0 is NaN


def pair_losses(trainer: Any, inputs: dict[str, Any], model: torch.nn.Module) -> torch.Tensor:
    """-log sigmoid(chosen - rejected) of each pair, float32[B]: the terms of the reward model's loss."""
    _, _, values = model(**inputs, output_hidden_states=True, return_dict=True, use_cache=False)
    last = inputs["attention_mask"].sum(dim=-1, keepdim=True) - 1
    chosen, rejected = values.gather(-1, last).squeeze(-1).float().chunk(2)
    return -F.logsigmoid(chosen - rejected)


def auxiliary_loss(model: torch.nn.Module, outputs: Any) -> torch.Tensor | None:
    """The load-balancing loss of a mixture-of-experts model, scaled as the model itself adds it to a labelled loss."""
    value = getattr(outputs, "aux_loss", None)
    if value is None or not torch.is_tensor(value):
        return None
    config: Any = model.config
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    return value * getattr(config, "router_aux_loss_coef", 0.0)
