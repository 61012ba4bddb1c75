"""Delivers to one rank its micro-batches of a run on streams."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dataflex.data.feed import STEPS_AT_ONCE
from dataflex.data.readers import ReadAhead, ReadHere
from dataflex.data.rows import SAMPLE_IDS
from dataflex.data.streams import STREAM, Cursor, Streams


class StreamFeed:
    """Global batches as those of `Feed`, of samples taken from streams in sequence. Every rank takes all samples and
    keeps its own.

    Args:
        saved: States of the cursors in a checkpoint, by domain name.
    """

    def __init__(
        self,
        streams: Streams,
        collate: Callable[[list[dict[str, Any]]], Any],
        ids_at: Callable[[int, int], np.ndarray],
        *,
        per_device: int,
        accumulation: int,
        rank: int,
        ranks: int,
        workers: int,
        seed: int,
        shuffle: bool,
        saved: Mapping[str, Any],
    ) -> None:
        self.domains, self.collate, self.ids_at = streams.domains, collate, ids_at
        self.shape, self.rank = (accumulation, ranks, per_device), rank
        self.global_batch = per_device * accumulation * ranks
        self._position, self._left = 0, 0
        self._planned: deque[np.ndarray] = deque()
        readers = streams.readers(seed, shuffle=shuffle)
        for reader in readers:
            reader.seek(Cursor.begin_of(saved.get(reader.name)))
        self._reading = ReadAhead(readers, workers) if workers else ReadHere(readers)
        self.cursors = [
            Cursor(reader.name, lambda d=d: self._reading.next(d), saved.get(reader.name))  # type: ignore[misc]
            for d, reader in enumerate(readers)
        ]

    def open(self, position: int, steps: int) -> None:
        """Serve `steps` optimizer steps from `position` on."""
        self._position, self._left = position, steps
        self._planned.clear()

    def next_step(self) -> tuple[list[Any], np.ndarray, np.ndarray]:
        """This rank's micro-batches of the next optimizer step, and its global batch's samples per domain, int64[k], twice."""
        if not self._planned:
            steps = min(STEPS_AT_ONCE, self._left)
            end = self._position + steps * self.global_batch
            self._planned.extend(self.ids_at(self._position, end).reshape(steps, self.global_batch))
            self._position, self._left = end, self._left - steps
        ids = self._planned.popleft()
        samples = [{**self.cursors[i // STREAM].take(i % STREAM), SAMPLE_IDS: i} for i in ids.tolist()]
        mine = np.arange(self.global_batch).reshape(self.shape)[:, self.rank]
        batches = [self.collate([samples[i] for i in micro]) for micro in mine]
        counts = np.bincount(self.domains.of(ids), minlength=len(self.domains))
        return batches, counts, counts

    def state(self) -> dict[str, Any]:
        """What was taken of each stream, by name; nothing of what was read ahead."""
        return {cursor.name: cursor.state() for cursor in self.cursors}

    def close(self) -> None:
        self._reading.close()
