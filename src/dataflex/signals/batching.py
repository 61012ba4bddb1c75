"""Scoring batches: rows of similar length together, as many as a number of padded tokens allows, dealt to ranks evenly."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from dataflex.distributed.collectives import add_over_ranks, rank, ranks
from dataflex.signals.keeping.memory import MemoryCache, SignalCache
from dataflex.signals.pace import pieces
from dataflex.signals.passing import in_rounds, passing


def default_batch_tokens(device: torch.device, gradients: bool = False) -> int:
    """Padded tokens of a scoring batch where none are configured. A CPU is as busy with 4096 as it gets, and larger
    temporaries cost it page faults; an accelerator idles on small batches. A backward pass keeps activations."""
    if device.type == "cpu":
        return 2048 if gradients else 4096
    return 8192 if gradients else 16384


def token_batches(lengths: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Split range(len(lengths)) into batches whose padded size (rows x longest row) stays within `batch_tokens`.

    Sorted by length, longest first, so that a run short of memory fails at the start. A row longer than that is a
    batch by itself. Does not depend on the number of ranks.
    """
    order = order_of(lengths)
    batches, start = [], 0
    while start < len(order):
        longest = max(int(lengths[order[start]]), 1)
        stop = start + max(1, batch_tokens // longest)
        batches.append(order[start:stop])
        start = stop
    return batches


def order_of(lengths: np.ndarray) -> np.ndarray:
    """Indices of rows in the order in which they are measured, whatever `batch_tokens` is: longest first."""
    if len(lengths) and lengths.max() < 1 << 15:
        lengths = lengths.astype(np.int16)  # numpy sorts these by radix
    return np.argsort(-lengths, kind="stable")


def share(batches: list[np.ndarray], rank: int, ranks: int) -> tuple[list[np.ndarray], int]:
    """This rank's batches, and how many extra dummy forwards it must do so that all ranks do the same number."""
    mine = batches[rank::ranks]
    return mine, -(-len(batches) // ranks) - len(mine)


@dataclass(frozen=True)
class ScoringRows:
    """Rows to be measured, N in all, and how batches are made of them."""

    rows: Any
    """The data, indexed by `ids`."""
    ids: np.ndarray
    """Sample ids, int64 [N]."""
    lengths: np.ndarray
    """Tokens of each row, int64 [N]."""
    batch_tokens: int
    """Padded tokens per batch."""
    collate: Callable[[list[dict[str, Any]]], Any]
    """Rows -> batch."""
    prepare: Callable[[Any], Any]
    """Batch -> batch on the device."""
    device: torch.device
    workers: int = 0
    """Loader workers, used where there are enough batches."""
    cache: SignalCache | None = None
    """Takes the values, piece by piece; None: all at once, in memory."""

    def __len__(self) -> int:
        return len(self.ids)

    def subset(self, indices: np.ndarray) -> ScoringRows:
        return replace(self, ids=self.ids[indices], lengths=self.lengths[indices], cache=None)


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
    scored: ScoringRows, name: str, batches: list[np.ndarray] | None = None
) -> Generator[tuple[np.ndarray | None, Any], None, None]:
    """(indices among the rows, batch) for this rank's share; indices None for a dummy, which only keeps the ranks in step.

    batches: that are dealt to the ranks in turn; None: those of all rows. Every rank makes the same number of forwards.
    name: of what is measured, for the event `Passing`.
    """
    if batches is None:
        batches = token_batches(scored.lengths, scored.batch_tokens)
    own, dummies = share(batches, rank(), ranks())
    mine: list[np.ndarray | None] = [*own, *[None] * dummies]
    served = own + [b[:1] for b in batches[:1]] * dummies
    loader = DataLoader(
        scored.rows,
        batch_sampler=_Served(scored.ids, served),  # type: ignore[arg-type]
        collate_fn=scored.collate,
        num_workers=scored.workers
        if len(mine) > 4 * scored.workers
        else 0,  # starting them takes longer than a few batches
        generator=torch.Generator().manual_seed(0),
    )
    rounds = in_rounds(batches)
    with passing(name, sum(rounds)) as under_way:
        for indices, batch, count in zip(mine, loader, rounds, strict=True):
            yield indices, scored.prepare(batch)
            under_way.advance(count)


def over_rows(
    scored: ScoringRows, measure: Callable[[Any], torch.Tensor], name: str, dtype: torch.dtype = torch.float64
) -> np.ndarray:
    """measure(batch) -> [B] or [B, K] for all rows: float64 (or `dtype`) [N] or [N, K], equal on every rank.

    Values that are not finite become NaN. The value of a row must not depend on its batch; then it does not depend on the
    number of ranks either. With a `cache`, only the rows that are missing are measured, in the
    batches of all. Must be called inside `isolated`.
    """
    if not len(scored):
        return np.empty(0)
    cache, count = scored.cache or MemoryCache(len(scored)), ranks()
    batches = [b[cache.missing[b]] for b in token_batches(scored.lengths, scored.batch_tokens)]
    batches = [b for b in batches if len(b)]
    rounds = [batches[k : k + count] for k in range(0, len(batches), count)]
    tokens = np.array([sum(np.maximum(scored.lengths[b], 1).sum() for b in some) for some in rounds], dtype=np.int64)
    with closing(batches_of(scored, name, batches)) as served:
        for piece in pieces(tokens, None if scored.cache is None else scored.device):
            rows, out = _indices_of(rounds[piece.begin : piece.most]), None
            for _ in piece:
                indices, batch = next(served)
                values = measure(batch)
                if out is None:
                    out = torch.zeros((len(rows), *values.shape[1:]), dtype=dtype, device=scored.device)
                if indices is not None:
                    here = torch.as_tensor(np.searchsorted(rows, indices), device=scored.device)
                    out[here] = values.to(dtype)
            assert out is not None
            if piece.end < piece.most:
                measured = _indices_of(rounds[piece.begin : piece.end])
                out = out[torch.as_tensor(np.searchsorted(rows, measured), device=scored.device)]
                rows = measured
            add_over_ranks(out)
            found = out.cpu().numpy()
            found[~np.isfinite(found)] = np.nan
            cache.put(rows, found)
    return cache.values()


def _indices_of(rounds: list[list[np.ndarray]]) -> np.ndarray:
    """Of all rows of some rounds, ascending."""
    return np.sort(np.concatenate([batch for some in rounds for batch in some]))
