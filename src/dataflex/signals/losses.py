"""The `loss` signal: one value per pool row under the current model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from tqdm import tqdm

from dataflex.signals.batching import share, token_batches
from dataflex.signals.isolation import isolated


def pool_losses(
    model: torch.nn.Module,
    rows: Any,
    collate: Callable[[list[dict[str, Any]]], Any],
    row_loss: Callable[[torch.nn.Module, Any], torch.Tensor],
    *,
    lengths: np.ndarray,
    budget: int,
    prepare: Callable[[Any], Any],
    device: torch.device,
    workers: int = 0,
) -> np.ndarray:
    """Loss of every row, float64[N], equal on every rank; NaN where a row has no trainable token or no finite loss.

    row_loss(model, batch) -> float32[B]. lengths: tokens per row, int64[N]. budget: padded tokens per batch. The value
    of a row does not depend on which rows share its batch, nor on the number of ranks.
    """
    ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    rank = dist.get_rank() if ranks > 1 else 0
    batches = token_batches(lengths, budget)
    mine, dummies = share(batches, rank, ranks)
    served = mine + [batches[0][:1]] * dummies
    loader = DataLoader(
        rows,
        batch_sampler=[b.tolist() for b in served],
        collate_fn=collate,
        num_workers=workers,
        generator=torch.Generator().manual_seed(0),
    )
    losses = torch.zeros(len(lengths), dtype=torch.float64, device=device)
    bar = tqdm(total=sum(map(len, mine)), desc="scoring", unit="sample", disable=rank != 0 or not sys.stderr.isatty())
    with isolated(model), bar:
        for place, batch in enumerate(loader):
            values = row_loss(model, prepare(batch))
            if place < len(mine):
                ids = torch.as_tensor(mine[place], device=device)
                losses[ids] = values.double()
                bar.update(len(ids))
    if ranks > 1:
        dist.all_reduce(losses)
    out = losses.cpu().numpy()
    out[~np.isfinite(out)] = np.nan
    return out
