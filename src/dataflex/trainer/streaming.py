"""StreamTrainer: a run on streams. Its plan counts draws per domain, and the streams say which samples these are."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dataflex.data.feed import STEPS_AT_ONCE
from dataflex.data.readers import ReadAhead, ReadHere
from dataflex.data.rows import SAMPLE_IDS
from dataflex.data.streams import STREAM, Cursor, Streams
from dataflex.distributed import collectives
from dataflex.plan.plan import Plan
from dataflex.trainer.core import DynamicTrainer


class StreamFeed:
    """Global batches as `Feed` has them, of samples that are taken from streams one after the other. Every rank takes all of
    them and keeps its own. saved: states of the cursors by domain name, of the run that is gone on with."""

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
            reader.seek(Cursor.place(saved.get(reader.name)))
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


class StreamTrainer(DynamicTrainer):
    """Mixed over the other mixins where `train_dataset` is `Streams`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.plan = Plan(self.rows.domains, self.plan.seed, shuffle=False)  # the n-th draw is the n-th of the stream
        self._saved_streams: Mapping[str, Any] = {}

    # -- a stream has no length ----------------------------------------------------------------------------------------

    def _settle_steps(self) -> None:
        self._counts_epochs = False  # max_steps is required

    def num_examples(self, dataloader: Any) -> int:
        return self.args.max_steps * self.global_batch

    def _epoch(self) -> float:
        return self.state.global_step / self.args.max_steps

    def _extent(self) -> dict[str, Any]:
        return {"streams": len(self.rows.domains)}

    # -- nor does it show a row twice: which ones were served is told by the cursors -----------------------------------

    def _note(self, losses: torch.Tensor | None) -> None:
        return

    def _write_exposure(self, folder: Path | None = None) -> None:
        return

    # -- serving and saving --------------------------------------------------------------------------------------------

    def _make_feed(self) -> Any:
        args = self.args
        return StreamFeed(
            self.rows,  # type: ignore[arg-type]
            self.data_collator,
            self.plan.rows,
            per_device=self._train_batch_size,
            accumulation=args.gradient_accumulation_steps,
            rank=collectives.rank(),
            ranks=self.global_batch // (self._train_batch_size * args.gradient_accumulation_steps),
            workers=args.dataloader_num_workers,
            seed=self.plan.seed,
            shuffle=not self.finetuning_args.disable_shuffling,
            saved=self._saved_streams,
        )

    def _extra_state(self) -> dict[str, Any]:
        assert isinstance(self._feed, StreamFeed)
        return {**super()._extra_state(), "streams": self._feed.state()}

    def _restore_extra(self, extra: Mapping[str, Any]) -> None:
        super()._restore_extra(extra)
        self._saved_streams = extra["streams"]

    def _scalars(self) -> dict[str, float]:
        out = super()._scalars()
        if isinstance(self._feed, StreamFeed):
            out |= {f"dataflex/epoch/{cursor.name}": float(cursor.epoch) for cursor in self._feed.cursors}
        return out
