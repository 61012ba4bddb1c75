"""Which experts of a mixture-of-experts model the tokens of each row are given to."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dataflex.errors import DataflexError
from dataflex.signals.batching import ScoringRows, over_rows
from dataflex.signals.cross_entropy import forward_inputs
from dataflex.signals.isolation import isolated


def expert_counts(model: Any, rows: ScoringRows, layer: int) -> np.ndarray:
    """float64 [N, experts]: how often each expert is among the experts chosen for a token of the row, padding left out.

    layer: of the layers that have a router, -1 the last. DataflexError if the model gives no router logits.
    """
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    chosen = getattr(config, "num_experts_per_tok", None)
    if not chosen:
        raise DataflexError(
            "dynamic_moe: the model is no mixture of experts (its configuration has no num_experts_per_tok)"
        )

    def measure(batch: dict[str, Any]) -> torch.Tensor:
        inputs = forward_inputs(model, batch)
        logits = getattr(model(**inputs, output_router_logits=True), "router_logits", None)
        if not logits:
            raise DataflexError(
                f"dynamic_moe: models of type {config.model_type} do not give the logits of their routers"
            )
        if not -len(logits) <= layer < len(logits):
            raise DataflexError(f"dynamic_moe: layer {layer} is asked for, and {len(logits)} layers have a router")
        rows, length = batch["input_ids"].shape
        own = logits[layer].reshape(rows, length, -1).float()
        mask = batch.get("attention_mask")
        real = torch.ones_like(batch["input_ids"]) if mask is None or mask.ndim != 2 else (mask > 0).long()
        taken = torch.zeros_like(own).scatter_(-1, own.topk(chosen, dim=-1).indices, 1.0)
        return (taken * real.to(taken)[..., None]).sum(dim=1)

    with isolated(model):
        return over_rows(rows, measure, "routing")


def freeze_routers(model: torch.nn.Module) -> None:
    """Keep mixture-of-experts routers fixed: modules called `gate` or `router`, not the `gate_proj` of every MLP."""
    for name, module in model.named_modules():
        if name.rsplit(".", 1)[-1] in ("gate", "router"):
            module.requires_grad_(False)
