"""The `embedding` signal: hidden states of the current model, pooled over the tokens of a row."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch

from dataflex.errors import DataflexError
from dataflex.signals.batching import Pool, over_pool
from dataflex.signals.cross_entropy import forward_inputs, output_embedding
from dataflex.signals.isolation import isolated


def pool_embeddings(
    model: torch.nn.Module, pool: Pool, *, layer: int = -1, pooling: Literal["mean", "last"] = "mean"
) -> np.ndarray:
    """float64 [N, hidden], padding left out on either side, equal on every rank."""
    with isolated(model):
        return over_pool(pool, lambda batch: row_embeddings(model, batch, layer, pooling), "embedding")


def row_embeddings(model: torch.nn.Module, batch: dict[str, Any], layer: int, pooling: str) -> torch.Tensor:
    """float32 [B, hidden]: hidden states after `layer` at the tokens that the attention mask admits; no logits are made."""
    head = output_embedding(model)
    skip = head.register_forward_pre_hook(lambda _, args: (args[0][:, :1],)) if head is not None else None
    try:
        states = model(**forward_inputs(model, batch), output_hidden_states=True).hidden_states
    finally:
        if skip is not None:
            skip.remove()
    if not -len(states) <= layer < len(states):
        raise DataflexError(
            f"embedding_layer: there is no layer {layer}; the model has {len(states) - 1}, and 0 is its input"
        )
    states = states[layer].float()
    mask = batch["attention_mask"]
    if mask.ndim == 4:  # one block per packed sequence: a token is there if it sees itself
        mask = torch.diagonal(mask[:, 0], dim1=-2, dim2=-1) >= 0
    mask = mask.bool()
    if pooling == "last":
        places = torch.arange(mask.shape[1], device=mask.device)
        last = torch.where(mask, places, -1).max(dim=1).values
        return states[torch.arange(len(states), device=mask.device), last]
    weights = mask.float()[:, :, None]
    return (states * weights).sum(dim=1) / weights.sum(dim=1)
