"""The `loss` signal: the stage's own loss of each row under the current model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from dataflex.signals.batching import ScoringRows, over_rows
from dataflex.signals.isolation import isolated


def stage_losses(
    model: torch.nn.Module, rows: ScoringRows, row_loss: Callable[[torch.nn.Module, Any], torch.Tensor]
) -> np.ndarray:
    """float64 [N], equal on every rank; NaN where a row has no trainable token or no finite
    loss. row_loss(model, batch) -> float32[B]."""
    with isolated(model):
        return over_rows(rows, lambda batch: row_loss(model, batch), "loss")
