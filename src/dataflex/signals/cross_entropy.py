"""Per-row cross entropy, computed once, in fp32, a chunk of rows at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F

IGNORE = -100
# Logits upcast at once when no gradient is kept: 2**24 fp32 values are 64 MiB.
_CHUNK_VALUES = 1 << 24


def row_losses(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of the next-token cross entropies of each row, and the number of its trainable tokens.

    logits: [B, T, V], any float type; labels: int64 [B, T], IGNORE where nothing is learned. Returns float32 [B] and
    int64 [B]. The token mean of row i is sums[i] / counts[i]; a row without trainable tokens has sum 0 and count 0.
    With gradients, autograd keeps one fp32 [B, T, V] tensor, as the model's own loss does; without, memory is bounded.
    """
    targets = F.pad(labels, (0, 1), value=IGNORE)[:, 1:].to(logits.device)
    rows, length, vocabulary = logits.shape
    flat, flat_targets = logits.reshape(-1, vocabulary), targets.reshape(-1)
    if torch.is_grad_enabled() and logits.requires_grad:
        losses = F.cross_entropy(flat.float(), flat_targets, ignore_index=IGNORE, reduction="none")
    else:
        losses = torch.zeros(flat_targets.shape, dtype=torch.float32, device=logits.device)
        active = torch.nonzero(flat_targets != IGNORE).squeeze(-1)
        for chunk in active.split(max(1, _CHUNK_VALUES // vocabulary)):
            losses[chunk] = F.cross_entropy(flat[chunk].float(), flat_targets[chunk], reduction="none")
    return losses.view(rows, length).sum(dim=1), (targets != IGNORE).sum(dim=1)
