"""What a selection before training measures, kept for the next one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from dataflex.components.signal_request import SignalRequest
from dataflex.data.rows import Rows
from dataflex.distributed.collectives import decide
from dataflex.distributed.trainer_view import TrainerView
from dataflex.signals.batching import ScoringRows
from dataflex.signals.keeping.dependencies import Dependencies, order_in
from dataflex.signals.keeping.disk import DiskCache
from dataflex.signals.keeping.memory import SignalCache


class SelectionCaches:
    """The caches of a selection before training: in `folder`, where those of other selections may be, and for good."""

    def __init__(self, view: TrainerView, folder: Path, rows: Rows, target: Rows | None, seed: int) -> None:
        self.folder, self.rows, self.target, self.seed = folder, rows, target, seed
        self._dependencies = Dependencies(view)

    def open(self, request: SignalRequest, rows: ScoringRows, more: Callable[[], dict[str, Any]]) -> SignalCache | None:
        if not (request.kept and len(rows)):
            return None
        found = self._dependencies.of(request, rows)
        assert found is not None
        target = self._target if request.aim == "target" else None
        key = {**found, **more(), "data": self._data, "target": target, "seed": self.seed}
        return DiskCache(self.folder, key, len(rows), order_in(request, rows))

    def remove(self, before: int | None = None) -> None:
        """Nothing: another selection may take it up."""

    @cached_property
    def _data(self) -> dict[str, str]:
        return decide(self.rows.fingerprints)

    @cached_property
    def _target(self) -> dict[str, str] | None:
        return None if self.target is None else decide(self.target.fingerprints)
