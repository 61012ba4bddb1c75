"""Scoring batches: rows of similar length together, as many as a token budget allows, dealt to ranks evenly."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from tqdm import tqdm

from dataflex.signals.pace import pieces


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
    order = order_of(lengths)
    batches, start = [], 0
    while start < len(order):
        longest = max(int(lengths[order[start]]), 1)
        stop = start + max(1, budget // longest)
        batches.append(order[start:stop])
        start = stop
    return batches


def order_of(lengths: np.ndarray) -> np.ndarray:
    """Places of rows in the order in which they are measured, whatever the budget: longest first."""
    if len(lengths) and lengths.max() < 1 << 15:
        lengths = lengths.astype(np.int16)  # numpy sorts these by radix
    return np.argsort(-lengths, kind="stable")


def share(batches: list[np.ndarray], rank: int, ranks: int) -> tuple[list[np.ndarray], int]:
    """This rank's batches, and how many extra dummy forwards it must do so that all ranks do the same number."""
    mine = batches[rank::ranks]
    return mine, -(-len(batches) // ranks) - len(mine)


class Keep(Protocol):
    """Takes the values of the rows of a pool, piece by piece; some may be there from a measurement that was cut off.

    missing: bool[N], which rows are still to be measured. Every rank calls it with the same values.
    """

    missing: np.ndarray

    def put(self, places: np.ndarray, values: np.ndarray) -> None:
        """values: of the rows at `places`, ascending."""

    def values(self) -> np.ndarray:
        """Of all rows, once none is missing."""


class Held:
    """Keeps values in memory. count: rows in all."""

    def __init__(self, count: int) -> None:
        self.missing = np.ones(count, dtype=bool)
        self._out: np.ndarray | None = None

    def put(self, places: np.ndarray, values: np.ndarray) -> None:
        if len(places) == len(self.missing):
            self._out = values
        else:
            if self._out is None:
                self._out = np.empty((len(self.missing), *values.shape[1:]), values.dtype)
            self._out[places] = values
        self.missing[places] = False

    def values(self) -> np.ndarray:
        return np.empty(0) if self._out is None else self._out


@dataclass(frozen=True)
class Pool:
    """Rows to be measured.

    rows: indexed by `ids` (int64[N]). lengths: tokens of each, int64[N]. budget: padded tokens per batch. collate: rows ->
    batch; prepare: batch -> batch on the device. workers: of the loader, where there is enough to do. keep: where values go,
    piece by piece; None: all at once, in memory.
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
    pool: Pool, what: str, batches: list[np.ndarray] | None = None
) -> Generator[tuple[np.ndarray | None, Any], None, None]:
    """(places in the pool, batch) for this rank's share; places None for a dummy, which only keeps the ranks in step.

    batches: that are dealt to the ranks in turn; None: those of the whole pool. Every rank makes the same number of forwards.
    Rank 0 shows a progress bar on a terminal.
    """
    if batches is None:
        batches = token_batches(pool.lengths, pool.budget)
    own, dummies = share(batches, *_rank())
    mine: list[np.ndarray | None] = [*own, *[None] * dummies]
    served = own + [b[:1] for b in batches[:1]] * dummies
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
    with tqdm(total=total, desc=what, unit="sample", disable=_rank()[0] != 0 or not sys.stderr.isatty()) as bar:
        for places, batch in zip(mine, loader, strict=True):
            bar.update(0 if places is None else len(places))
            yield places, pool.prepare(batch)


def over_pool(
    pool: Pool, measure: Callable[[Any], torch.Tensor], what: str, dtype: torch.dtype = torch.float64
) -> np.ndarray:
    """measure(batch) -> [B] or [B, K] for all rows of a pool: float64 (or `dtype`) [N] or [N, K], equal on every rank.

    Values that are not finite become NaN. The value of a row must not depend on its batch; then it does not depend on the
    number of ranks either. Of a pool with a `keep`, only the rows that are missing are measured, in the batches of the whole
    pool. Must be called inside `isolated`.
    """
    if not len(pool):
        return np.empty(0)
    keep, ranks = pool.keep or Held(len(pool)), _rank()[1]
    batches = [b[keep.missing[b]] for b in token_batches(pool.lengths, pool.budget)]
    batches = [b for b in batches if len(b)]
    rounds = [batches[k : k + ranks] for k in range(0, len(batches), ranks)]
    tokens = np.array([sum(np.maximum(pool.lengths[b], 1).sum() for b in some) for some in rounds], dtype=np.int64)
    with closing(batches_of(pool, what, batches)) as served:
        for piece in pieces(tokens, None if pool.keep is None else pool.device):
            rows, out = _places(rounds[piece.begin : piece.most]), None
            for _ in piece:
                places, batch = next(served)
                values = measure(batch)
                if out is None:
                    out = torch.zeros((len(rows), *values.shape[1:]), dtype=dtype, device=pool.device)
                if places is not None:
                    here = torch.as_tensor(np.searchsorted(rows, places), device=pool.device)
                    out[here] = values.to(dtype)
            assert out is not None
            if piece.end < piece.most:
                measured = _places(rounds[piece.begin : piece.end])
                out = out[torch.as_tensor(np.searchsorted(rows, measured), device=pool.device)]
                rows = measured
            if ranks > 1:
                dist.all_reduce(out)
            found = out.cpu().numpy()
            found[~np.isfinite(found)] = np.nan
            keep.put(rows, found)
    return keep.values()


def _places(rounds: list[list[np.ndarray]]) -> np.ndarray:
    """Of all rows of some rounds, ascending."""
    return np.sort(np.concatenate([batch for some in rounds for batch in some]))


def _rank() -> tuple[int, int]:
    """This rank, and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
