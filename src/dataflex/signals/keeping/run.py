"""Scoring passes of a run, kept piece by piece, so that a killed pass continues.

A resumed run trains up to the step of the pass. Stored values are used only if a hash of the model and its moments
equals the stored one. It does if training is bit-exact up to that step.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from dataflex.components.signal_request import SignalRequest
from dataflex.distributed.collectives import decide, rank, ranks
from dataflex.distributed.engine import engine_of
from dataflex.distributed.trainer_view import TrainerView
from dataflex.notices import say
from dataflex.record.ledger import DIRECTORY
from dataflex.record.sharing import signals_folder
from dataflex.signals import pace
from dataflex.signals.batching import ScoringRows
from dataflex.signals.keeping.dependencies import Dependencies, order_in
from dataflex.signals.keeping.disk import PieceFile, Run, rows_of_run
from dataflex.signals.keeping.memory import MemoryCache, SignalCache
from dataflex.signals.keeping.shared import SharedCache, measured_alike

# Bytes of other passes beside which a pass is kept; the oldest go first.
_ROOM = 1 << 30


class StepFolders:
    """<output_dir>/dataflex/signals/: a directory per pass, step_<n>/<hash>/, written by rank 0.

    Values measured before step n are needed until a checkpoint of a later step is there. If they cannot be written, one
    line says so, and nothing more is kept.

    Args:
        run: A hash that all keys share.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self.folder, self.run, self.gave_up = folder, run, False

    def holds(self, step: int) -> bool:
        return (self.folder / f"step_{step}").is_dir()

    def attempt(self, act: Callable[[], None]) -> None:
        try:
            act()
        except OSError as error:
            self.gave_up = True
            self.remove()  # a checkpoint may need the room
            say(
                f"what scoring measures is not kept from here on ({error.strerror or error}: {self.folder}); a run"
                " that is killed in the middle of a scoring pass makes all of it again"
            )

    def remove(self, before: int | None = None) -> None:
        """Remove passes of steps below `before`, and those of other runs; None: all."""
        if before is None:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        for folder, step in self._steps():
            if step < before or not all(_belongs(f, self.run) for f in folder.iterdir()):
                shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            self.folder.rmdir()  # if it is empty

    def _steps(self) -> list[tuple[Path, int]]:
        found = [(f, f.name.removeprefix("step_")) for f in self.folder.glob("step_*")]
        return sorted(((f, int(n)) for f, n in found if n.isdecimal()), key=lambda pair: pair[1])

    def make_room(self, step: int) -> None:
        others = [(f, sum(p.stat().st_size for p in f.rglob("*"))) for f, n in self._steps() if n != step]
        while sum(size for _, size in others) > _ROOM:
            shutil.rmtree(others.pop(0)[0], ignore_errors=True)


class RunCache(MemoryCache):
    """Values in memory on every rank, and on rank 0 also in a file while that can be written.

    Args:
        key: Gives what the values depend on, equal on every rank; None if that is unknown. It may take seconds, so it
            is called only if there are values of this step, or before the first piece is written.
        order: As that of `PieceFile`.
        at_once: Whether `key` is called right away.
    """

    def __init__(
        self,
        folders: StepFolders,
        step: int,
        count: int,
        key: Callable[[], Mapping[str, Any] | None],
        order: Callable[[], np.ndarray | None],
        at_once: bool = False,
    ) -> None:
        super().__init__(count)
        self._folders, self._step, self._make_key, self._make_order = folders, step, key, order
        self._file: PieceFile | None = None
        self._begun = False
        self._unwritten: list[np.ndarray] = []
        self._written = self._last = pace.clock()
        there = decide(lambda: not folders.gave_up and folders.holds(step))
        known = (there or at_once) and self._key is not None
        if there and known:
            self._take_up()

    def put(self, indices: np.ndarray, values: np.ndarray) -> None:
        super().put(indices, values)
        self._unwritten.append(indices)
        if decide(self._due):
            if self._key is not None and rank() == 0:  # every rank takes part in making the key
                self._folders.attempt(self._write)
            self._unwritten, self._written = [], pace.clock()
        self._last = pace.clock()

    @cached_property
    def _key(self) -> Mapping[str, Any] | None:
        key = self._make_key()
        return None if key is None else {"run": self._folders.run, "step": self._step, **key}

    @cached_property
    def _order(self) -> np.ndarray | None:
        return self._make_order()

    def _due(self) -> bool:
        """Whether to write a piece now: with another batch like the last, too much would be unwritten.

        At the end, whether the rest belongs to a file that was begun.
        """
        if self._folders.gave_up:
            return False
        if not self.missing.any():
            return self._begun
        now = pace.clock()
        return (now - self._written) + (now - self._last) >= pace.PIECE_SECONDS

    def _open(self) -> PieceFile:
        if self._file is None:
            assert self._key is not None
            self._folders.make_room(self._step)
            folder = self._folders.folder / f"step_{self._step}"
            self._file = PieceFile(folder, self._key, len(self.missing), self._order)
        return self._file

    def _write(self) -> None:
        indices = np.sort(np.concatenate(self._unwritten))
        self._open().write(indices, self.values()[indices])
        self._begun = True

    def _take_up(self) -> None:
        found: list[Run] = []

        def look() -> list[Run]:
            self._folders.attempt(lambda: found.extend(self._open().runs))
            return found

        for run in decide(look):
            super().put(rows_of_run(run, self._order), decide(lambda: self._open().read(run)))  # noqa: B023
        if found:
            self._begun = True
            count, there, signal = len(self.missing), int((~self.missing).sum()), self._key["signal"]  # type: ignore[index]
            say(f"step {self._step}: {there} of {count} rows of {signal} are there")


class RunCaches:
    """The caches of a training run: one per scoring pass, until the next checkpoint is complete.

    Args:
        identity: What tells this run from others.
        output_dir: Its directory.
    """

    def __init__(self, view: TrainerView, identity: Mapping[str, Any], output_dir: str) -> None:
        self.view, self._dependencies = view, Dependencies(view)
        self.folders = StepFolders(Path(output_dir) / DIRECTORY / "signals", _hash(identity))
        self._identity, self._shared = identity, signals_folder()

    def open(self, request: SignalRequest, rows: ScoringRows, more: Callable[[], dict[str, Any]]) -> SignalCache | None:
        if not (request.kept and request.per == "row" and len(rows)):
            return None

        def key() -> dict[str, Any] | None:
            found = self._dependencies.of(request, rows)
            # Sums over the target's rows round differently on another number of ranks.
            return None if found is None else {**found, **more(), "ranks": ranks(), "batches of": rows.batch_tokens}

        # Of a model that is split each rank reads its part alone, and what is read may be another thing once it has run.
        split = engine_of(self.view.args) != "DDP"
        cache = RunCache(self.folders, self.view.step, len(rows), key, lambda: order_in(request, rows), at_once=split)
        if self._shared is None or (known := key()) is None:
            return cache
        alike = {"runs": _hash(measured_alike(self._identity)), "step": self.view.step}
        return SharedCache(cache, self._shared, alike | dict(known))

    def remove(self, before: int | None = None) -> None:
        if rank() == 0:
            self.folders.remove(before)


def _hash(identity: Mapping[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(identity, sort_keys=True, default=str).encode())


def _belongs(folder: Path, run: str) -> bool:
    try:
        return bool(json.loads((folder / "key.json").read_text())["run"] == run)
    except (OSError, ValueError, KeyError, TypeError):
        return False
