"""Announces what the Trainer does: that it begins, logs, evaluates and saves."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from dataflex import events
from dataflex.distributed.host import Host


class Announcing(Host):  # type: ignore[misc]
    """Mixin below `DynamicTrainer`: emits events around what LLaMA-Factory's trainer does."""

    view: Any
    _started = _evaluating = False

    def announce_start(self, global_batch: int, parts: Mapping[str, Any]) -> None:
        """Once, before the first step of this process. parts: those with a schedule, by slot; None: there is none."""
        if not self._started:
            self._started = True
            schedules = {slot: part.schedule for slot, part in parts.items() if part is not None}
            events.emit(events.Started(self.view.step, global_batch, schedules, self.view))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        events.emit(events.Logging(self.view.step, logs))
        super().log(logs, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Several data sets are evaluated by calls within a call."""
        if self._evaluating:
            return super().evaluate(*args, **kwargs)  # type: ignore[no-any-return]
        self._evaluating, begin = True, time.perf_counter()
        try:
            with events.timing("evaluating"):
                found: dict[str, float] = super().evaluate(*args, **kwargs)
        finally:
            self._evaluating = False
        events.emit(events.Evaluated(self.view.step, found, time.perf_counter() - begin))
        return found

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """By itself, at the end; as a part of a checkpoint it belongs to `_save_checkpoint`."""
        if _internal_call:
            super().save_model(output_dir, _internal_call)
            return
        with events.timing("saving"):
            super().save_model(output_dir)
