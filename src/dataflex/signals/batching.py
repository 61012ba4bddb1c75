"""Scoring batches: rows of similar length together, as many as a token budget allows, dealt to ranks evenly."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from tqdm import tqdm

# Tokens of a shard: minutes of one accelerator, and enough batches for many.
_SHARD_TOKENS = 1 << 21

Places = np.ndarray | slice
"""Places of rows in a pool, ascending: int64[n], or all from one on."""


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


def shards_of(lengths: np.ndarray) -> list[np.ndarray]:
    """Split range(len(lengths)) into shards of about two million tokens, longest rows first. Depends on nothing else."""
    order = np.argsort(-lengths, kind="stable")
    tokens = np.cumsum(np.maximum(lengths[order], 1))
    return np.split(order, np.flatnonzero(np.diff((tokens - 1) // _SHARD_TOKENS)) + 1)


class Keep(Protocol):
    """Takes the values of the rows of a pool, shard by shard; some may be there from a measurement that was cut off.

    missing: numbers of the shards that are still to be measured. Every rank calls it with the same values.
    """

    missing: Sequence[int]

    def put(self, shard: int, values: np.ndarray) -> None:
        """values: of the rows of a shard, in ascending order of their places."""

    def values(self) -> np.ndarray:
        """Of all rows, once no shard is missing."""


class Held:
    """Keeps values in memory. rows: places of each shard. count: rows in all."""

    def __init__(self, rows: Sequence[Places], count: int) -> None:
        self.rows, self.count = rows, count
        self.missing: Sequence[int] = range(len(rows))
        self._out: np.ndarray | None = None

    def put(self, shard: int, values: np.ndarray) -> None:
        if len(self.rows) == 1:
            self._out = values
            return
        if self._out is None:
            self._out = np.empty((self.count, *values.shape[1:]), values.dtype)
        self._out[self.rows[shard]] = values

    def values(self) -> np.ndarray:
        return np.empty(0) if self._out is None else self._out


@dataclass(frozen=True)
class Pool:
    """Rows to be measured.

    rows: indexed by `ids` (int64[N]). lengths: tokens of each, int64[N]. budget: padded tokens per batch. collate: rows ->
    batch; prepare: batch -> batch on the device. workers: of the loader, where there is enough to do. keep: where values go
    by the shards of `shards_of`; None: all rows are one shard, in memory.
    """

    rows: Any
    ids: np.ndarray
    lengths: np.ndarray
    budget: int
    collate: Callable[[list[dict[str, Any]]], Any]
    prepare: Callable[[Any], Any]
    device: torch.device
    workers: int = 0
    keep: Keep | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def subset(self, places: np.ndarray) -> Pool:
        return replace(self, ids=self.ids[places], lengths=self.lengths[places], keep=None)


class _Served:
    """Batches as lists of ids, each made when it is its turn: a list of all would weigh more than the scores."""

    def __init__(self, ids: np.ndarray, batches: list[np.ndarray]) -> None:
        self.ids, self.batches = ids, batches

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            yield self.ids[batch].tolist()

    def __len__(self) -> int:
        return len(self.batches)


def batches_of(
    pool: Pool, what: str, shards: Sequence[list[np.ndarray]] | None = None
) -> Generator[tuple[np.ndarray | None, Any], None, None]:
    """(places in the pool, batch) for this rank's share; places None for a dummy, which only keeps the ranks in step.

    shards: batches that are dealt to the ranks, one list of them after the other; None: all of the pool. Every rank makes the
    same number of forwards. Rank 0 shows a progress bar on a terminal.
    """
    rank, ranks = _rank()
    mine: list[np.ndarray | None] = []
    served: list[np.ndarray] = []
    for batches in [token_batches(pool.lengths, pool.budget)] if shards is None else shards:
        own, dummies = share(batches, rank, ranks)
        mine += [*own, *[None] * dummies]
        served += own + [b[:1] for b in batches[:1]] * dummies
    loader = DataLoader(
        pool.rows,
        batch_sampler=_Served(pool.ids, served),  # type: ignore[arg-type]
        collate_fn=pool.collate,
        num_workers=pool.workers
        if len(mine) > 4 * pool.workers
        else 0,  # starting them takes longer than a few batches
        generator=torch.Generator().manual_seed(0),
    )
    total = sum(len(places) for places in mine if places is not None)
    with tqdm(total=total, desc=what, unit="sample", disable=rank != 0 or not sys.stderr.isatty()) as bar:
        for places, batch in zip(mine, loader, strict=True):
            bar.update(0 if places is None else len(places))
            yield places, pool.prepare(batch)


def over_pool(
    pool: Pool, measure: Callable[[Any], torch.Tensor], what: str, dtype: torch.dtype = torch.float64
) -> np.ndarray:
    """measure(batch) -> [B] or [B, K] for all rows of a pool: float64 (or `dtype`) [N] or [N, K], equal on every rank.

    Values that are not finite become NaN. The value of a row must not depend on its batch; then it does not depend on the
    number of ranks or on shards either. Of a pool with a `keep`, only the shards that are missing are measured. Must be called
    inside `isolated`.
    """
    if not len(pool):
        return np.empty(0)
    keep = pool.keep or Held([slice(0, len(pool))], len(pool))
    shards = [np.arange(len(pool))] if pool.keep is None else shards_of(pool.lengths)
    batches = {k: [shards[k][b] for b in token_batches(pool.lengths[shards[k]], pool.budget)] for k in keep.missing}
    with closing(batches_of(pool, what, list(batches.values()))) as served:
        for k, own in batches.items():
            rows, out = np.sort(shards[k]), None
            for places, batch in islice(served, -(-len(own) // _rank()[1])):
                values = measure(batch)
                if out is None:
                    out = torch.zeros((len(rows), *values.shape[1:]), dtype=dtype, device=pool.device)
                if places is not None:
                    here = torch.as_tensor(np.searchsorted(rows, places), device=pool.device)
                    out[here] = values.to(dtype)
            assert out is not None
            if _rank()[1] > 1:
                dist.all_reduce(out)
            found = out.cpu().numpy()
            found[~np.isfinite(found)] = np.nan
            keep.put(k, found)
    return keep.values()


def _rank() -> tuple[int, int]:
    """This rank, and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
