"""Delivers to one rank its micro-batches of the planned order, with any number of loader workers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from dataflex.data.rows import Rows

STEPS_AT_ONCE = 64  # the plan's fixed cost per look-up is that of many rows


class _Span(Sampler[list[int]]):
    """The micro-batches of this rank for a span of optimizer steps; reset at every decision."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed

    def __iter__(self) -> Iterator[list[int]]:
        yield from self.feed.micro_batches()


class Feed:
    """The micro-batches of this rank for a span of optimizer steps, up to the next decision.

    In the global batch at position t, micro-step m, rank r and row i are the plan's row

        t + (m * ranks + r) * per_device + i.

    Workers read ahead inside a span, never past it, and stay from span to span. Nothing is drawn from torch's global
    generator.

    Args:
        rows_at: The plan: (start, stop) -> ids.
        lengths: The amount that each row counts, int[N]; None: one.
    """

    def __init__(
        self,
        rows: Rows,
        collate: Callable[[list[dict[str, Any]]], Any],
        rows_at: Callable[[int, int], np.ndarray],
        *,
        per_device: int,
        accumulation: int,
        rank: int,
        ranks: int,
        workers: int = 0,
        prefetch: int | None = None,
        pin_memory: bool = False,
        lengths: np.ndarray | None = None,
    ) -> None:
        self.rows, self.rows_at = rows, rows_at
        self.per_device, self.accumulation, self.rank, self.ranks = per_device, accumulation, rank, ranks
        self.lengths = lengths
        self.global_batch = per_device * accumulation * ranks
        self._span = (0, 0)
        self._counts: deque[tuple[np.ndarray, np.ndarray]] = deque()
        self._iterator: Iterator[Any] | None = None
        self._loader = DataLoader(
            rows,
            batch_sampler=_Span(self),  # type: ignore[arg-type]
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            prefetch_factor=prefetch if workers else None,
            pin_memory=pin_memory,
            generator=torch.Generator().manual_seed(0),
        )

    def micro_batches(self) -> Iterator[list[int]]:
        position, steps = self._span
        for first in range(0, steps, STEPS_AT_ONCE):
            begin = position + first * self.global_batch
            ids = self.rows_at(begin, begin + min(STEPS_AT_ONCE, steps - first) * self.global_batch)
            for step in ids.reshape(-1, self.global_batch):
                domains, k = self.rows.domains.of(step), len(self.rows.domains)
                rows = np.bincount(domains, minlength=k)
                tokens = rows if self.lengths is None else np.bincount(domains, self.lengths[step], minlength=k)
                self._counts.append((rows, tokens))
                mine = step.reshape(self.accumulation, self.ranks, self.per_device)[:, self.rank]
                yield from mine.tolist()

    def open(self, position: int, steps: int) -> None:
        """Serve `steps` optimizer steps from `position` on."""
        self._span = (position, steps)
        self._counts.clear()
        self._iterator = iter(self._loader)

    def next_step(self) -> tuple[list[Any], np.ndarray, np.ndarray]:
        """The micro-batches of the next optimizer step, and of its global batch the rows of each domain and what they count as,
        each [k]."""
        assert self._iterator is not None
        batches = [next(self._iterator) for _ in range(self.accumulation)]
        return batches, *self._counts.popleft()

    def close(self) -> None:
        """End the workers; the feed cannot be opened again."""
        self._iterator = None
        del self._loader
