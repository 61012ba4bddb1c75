"""The `loss` signal: one value per pool row under the current model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from dataflex.signals.batching import Pool, over_pool
from dataflex.signals.isolation import isolated


def pool_losses(
    model: torch.nn.Module, pool: Pool, row_loss: Callable[[torch.nn.Module, Any], torch.Tensor]
) -> np.ndarray:
    """Loss of every row of the pool, float64[N], equal on every rank; NaN where a row has no trainable token or no finite
    loss. row_loss(model, batch) -> float32[B]."""
    with isolated(model):
        return over_pool(pool, lambda batch: row_loss(model, batch), "scoring")
