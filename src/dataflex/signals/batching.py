"""Scoring batches: rows of similar length together, as many as a token budget allows, dealt to ranks evenly."""

from __future__ import annotations

import numpy as np
import torch


def token_budget(device: torch.device) -> int:
    """Padded tokens of a scoring batch where none are configured. A CPU is as busy with 4096 as it gets, and larger
    temporaries cost it page faults; an accelerator idles on small batches."""
    return 4096 if device.type == "cpu" else 16384


def token_batches(lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """Split range(len(lengths)) into batches whose padded size (rows x longest row) stays within `budget` tokens.

    Sorted by length, longest first, so that a run short of memory fails at the start. A row longer than the budget is a
    batch by itself. Does not depend on the number of ranks.
    """
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        longest = max(int(lengths[order[start]]), 1)
        stop = start + max(1, budget // longest)
        batches.append(order[start:stop])
        start = stop
    return batches


def share(batches: list[np.ndarray], rank: int, ranks: int) -> tuple[list[np.ndarray], int]:
    """This rank's batches, and how many extra dummy forwards it must do so that all ranks do the same number."""
    mine = batches[rank::ranks]
    return mine, -(-len(batches) // ranks) - len(mine)
