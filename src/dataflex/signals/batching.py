"""Scoring batches: rows of similar length together, as many as a token budget allows, dealt to ranks evenly."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from tqdm import tqdm


def token_budget(device: torch.device, gradients: bool = False) -> int:
    """Padded tokens of a scoring batch where none are configured. A CPU is as busy with 4096 as it gets, and larger
    temporaries cost it page faults; an accelerator idles on small batches. A backward pass keeps activations."""
    if device.type == "cpu":
        return 2048 if gradients else 4096
    return 8192 if gradients else 16384


def token_batches(lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """Split range(len(lengths)) into batches whose padded size (rows x longest row) stays within `budget` tokens.

    Sorted by length, longest first, so that a run short of memory fails at the start. A row longer than the budget is a
    batch by itself. Does not depend on the number of ranks.
    """
    if len(lengths) and lengths.max() < 1 << 15:
        lengths = lengths.astype(np.int16)  # numpy sorts these by radix
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


@dataclass(frozen=True)
class Pool:
    """Rows to be measured.

    rows: indexed by `ids` (int64[N]). lengths: tokens of each, int64[N]. budget: padded tokens per batch. collate: rows ->
    batch; prepare: batch -> batch on the device. workers: of the loader, where there is enough to do.
    """

    rows: Any
    ids: np.ndarray
    lengths: np.ndarray
    budget: int
    collate: Callable[[list[dict[str, Any]]], Any]
    prepare: Callable[[Any], Any]
    device: torch.device
    workers: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def subset(self, places: np.ndarray) -> Pool:
        return replace(self, ids=self.ids[places], lengths=self.lengths[places])


class _Served:
    """Batches as lists of ids, each made when it is its turn: a list of all would weigh more than the scores."""

    def __init__(self, ids: np.ndarray, batches: list[np.ndarray]) -> None:
        self.ids, self.batches = ids, batches

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            yield self.ids[batch].tolist()

    def __len__(self) -> int:
        return len(self.batches)


def batches_of(pool: Pool, what: str) -> Iterator[tuple[np.ndarray | None, Any]]:
    """(places in the pool, batch) for this rank's share; places None for a dummy, which only keeps the ranks in step.

    Every rank makes the same number of forwards. Rank 0 shows a progress bar on a terminal.
    """
    ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    rank = dist.get_rank() if ranks > 1 else 0
    batches = token_batches(pool.lengths, pool.budget)
    mine, dummies = share(batches, rank, ranks)
    served = _Served(pool.ids, mine + [b[:1] for b in batches[:1]] * dummies)
    loader = DataLoader(
        pool.rows,
        batch_sampler=served,  # type: ignore[arg-type]
        collate_fn=pool.collate,
        num_workers=pool.workers
        if len(mine) > 4 * pool.workers
        else 0,  # starting them takes longer than a few batches
        generator=torch.Generator().manual_seed(0),
    )
    bar = tqdm(total=sum(map(len, mine)), desc=what, unit="sample", disable=rank != 0 or not sys.stderr.isatty())
    with bar:
        for place, batch in enumerate(loader):
            here = mine[place] if place < len(mine) else None
            yield here, pool.prepare(batch)
            if here is not None:
                bar.update(len(here))


def over_pool(
    pool: Pool, measure: Callable[[Any], torch.Tensor], what: str, dtype: torch.dtype = torch.float64
) -> np.ndarray:
    """measure(batch) -> [B] or [B, K] for all rows of a pool: float64 (or `dtype`) [N] or [N, K], equal on every rank.

    Values that are not finite become NaN. The value of a row must not depend on its batch; then it does not depend on the
    number of ranks either. Must be called inside `isolated`.
    """
    out: torch.Tensor | None = None
    for places, batch in batches_of(pool, what):
        values = measure(batch)
        if out is None:
            out = torch.zeros((len(pool), *values.shape[1:]), dtype=dtype, device=pool.device)
        if places is not None:
            out[torch.as_tensor(places, device=pool.device)] = values.to(dtype)
    if out is None:
        return np.empty(0)
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(out)
    found = out.cpu().numpy()
    found[~np.isfinite(found)] = np.nan
    return found
