"""Scoring passes of a run, kept piece by piece, so that one that is killed goes on where it was.

A run that is resumed trains to the step of the pass again. Where it gets there to the bit, which a hash of the model and of
the moments tells, what was measured is taken up; else the hash is another one, and all is measured anew.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import xxhash

from dataflex.components.requests import (
    Embedding,
    Features,
    Gradient,
    PolicyAlignment,
    Request,
    TargetAlignment,
    TargetEmbedding,
    name_of,
)
from dataflex.data.rows import Rows
from dataflex.distributed.collectives import decide, rank, ranks
from dataflex.distributed.engine import engine_of
from dataflex.distributed.host import Host
from dataflex.notices import say
from dataflex.record.ledger import DIRECTORY
from dataflex.signals import pace
from dataflex.signals.batching import Held, Keep, Pool, order_of
from dataflex.signals.embeddings import load_encoder
from dataflex.signals.keeping.fingerprint import model_fingerprint, moments_fingerprint
from dataflex.signals.keeping.store import PieceFile, Run, places_of

# Bytes of other passes beside which a pass is kept; the oldest go first.
_ROOM = 1 << 30


class Passes:
    """<output_dir>/dataflex/signals/: a directory per pass, step_<n>/<hash>/. Rank 0 writes. run: what all keys share.

    What was measured before step n is needed until there is a checkpoint of a later step. Keeping it is a convenience: if it
    cannot be written, one line says so, and nothing more is.
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
            self.forget()  # a checkpoint may need the room
            say(
                f"what scoring measures is not kept from here on ({error.strerror or error}: {self.folder}); a run"
                " that is killed in the middle of a scoring pass makes all of it again"
            )

    def forget(self, before: int | None = None) -> None:
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


class KeptPass(Held):
    """Values in memory on every rank, and on rank 0 in a file too, as long as that can be written.

    key: what the values depend on, equal on every rank; None: that cannot be told. It may take seconds to make, so it is made
    when something of this step is there, or when a first piece is to be written, once the pass has taken about as long as one.
    at_once: it is made right away. order: as that of `PieceFile`.
    """

    def __init__(
        self,
        passes: Passes,
        step: int,
        count: int,
        key: Callable[[], Mapping[str, Any] | None],
        order: Callable[[], np.ndarray | None],
        at_once: bool = False,
    ) -> None:
        super().__init__(count)
        self._passes, self._step, self._make_key, self._make_order = passes, step, key, order
        self._file: PieceFile | None = None
        self._begun = False
        self._unwritten: list[np.ndarray] = []
        self._written = self._last = pace.clock()
        there = decide(lambda: not passes.gave_up and passes.holds(step))
        known = (there or at_once) and self._key is not None
        if there and known:
            self._take_up()

    def put(self, places: np.ndarray, values: np.ndarray) -> None:
        super().put(places, values)
        self._unwritten.append(places)
        if decide(self._due):
            if self._key is not None and rank() == 0:  # every rank takes part in making the key
                self._passes.attempt(self._write)
            self._unwritten, self._written = [], pace.clock()
        self._last = pace.clock()

    @cached_property
    def _key(self) -> Mapping[str, Any] | None:
        key = self._make_key()
        return None if key is None else {"run": self._passes.run, "step": self._step, **key}

    @cached_property
    def _order(self) -> np.ndarray | None:
        return self._make_order()

    def _due(self) -> bool:
        """Whether another piece like the last would make too much that is not written; what is left at the end, if there is
        something in the file."""
        if self._passes.gave_up:
            return False
        if not self.missing.any():
            return self._begun
        now = pace.clock()
        return (now - self._written) + (now - self._last) >= pace.PIECE_SECONDS

    def _open(self) -> PieceFile:
        if self._file is None:
            assert self._key is not None
            self._passes.make_room(self._step)
            folder = self._passes.folder / f"step_{self._step}"
            self._file = PieceFile(folder, self._key, len(self.missing), self._order)
        return self._file

    def _write(self) -> None:
        places = np.sort(np.concatenate(self._unwritten))
        self._open().write(places, self.values()[places])
        self._begun = True

    def _take_up(self) -> None:
        found: list[Run] = []

        def look() -> list[Run]:
            self._passes.attempt(lambda: found.extend(self._open().runs))
            return found

        for run in decide(look):
            super().put(places_of(run, self._order), decide(lambda: self._open().read(run)))  # noqa: B023
        if found:
            self._begun = True
            count, there, signal = len(self.missing), int((~self.missing).sum()), self._key["signal"]  # type: ignore[index]
            say(f"step {self._step}: {there} of {count} rows of {signal} are there")


class KeptPasses(Host):  # type: ignore[misc]
    """Mixin: what is kept of a measurement, and what its values depend on."""

    identity: ClassVar[dict[str, Any]]
    rows: Rows
    _hashed: tuple[int, dict[str, str | None]] = (-1, {})

    @cached_property
    def passes(self) -> Passes:
        run = xxhash.xxh3_64_hexdigest(json.dumps(self.identity, sort_keys=True, default=str).encode())
        return Passes(Path(str(self.args.output_dir)) / DIRECTORY / "signals", run)

    def _forget_passes(self, before: int | None = None) -> None:
        if rank() == 0:
            self.passes.forget(before)

    def _keep(self, request: Request, pool: Pool) -> Keep | None:
        """Where the values of rows go; None: a pass that is not kept."""
        per_row = request == "loss" or isinstance(request, Embedding | TargetAlignment | PolicyAlignment | Features)
        if not per_row or isinstance(request, TargetEmbedding) or pool.rows is not self.rows:
            return None
        if not len(pool):
            return None

        def key() -> dict[str, Any] | None:
            # Sums over the target's rows round differently on another number of ranks.
            found = self._depends_on(request, pool)
            return None if found is None else found | {"ranks": ranks(), "batches of": pool.budget}

        # Of a model that is split each rank reads its part alone, and what is read may be another thing once it has run.
        split = engine_of(self.args) != "DDP"
        step = self.state.global_step
        return KeptPass(self.passes, step, len(pool), key, lambda: order_in(request, pool), at_once=split)

    def _depends_on(self, request: Request, pool: Pool) -> dict[str, Any] | None:
        """Of the values of a signal, as far as it may change while a run has this identity; equal on every rank. None where
        that cannot be told."""
        adam = isinstance(request, Gradient) and request.gradient_type == "adam"
        hashes = {"model": self._hash_of_model(request), "moments": self._hash("moments") if adam else ""}
        if None in hashes.values():
            return None
        out: dict[str, Any] = {
            "signal": name_of(request),
            **hashes,
            "settings": self._settings,
            "ids": xxhash.xxh3_64_hexdigest(pool.ids.tobytes()),
        }
        if is_dataclass(request):
            out["request"] = {"kind": type(request).__name__, **asdict(request)}
        return out

    @cached_property
    def _settings(self) -> str:
        """A hash of what makes a function of parameters, as far as it may change from one start of a run to the next: the
        configurations of model, adapter and loss, and the precision."""
        adapters = getattr(self.model, "peft_config", {})
        found = [
            {k: v for k, v in settings.items() if not k.endswith("name_or_path")}
            for settings in (
                self.model.config.to_dict(),
                *(adapters[name].to_dict() for name in sorted(adapters)),
                vars(self.finetuning_args),
                {"smoothing": self.args.label_smoothing_factor, "precision": self.accelerator.mixed_precision},
            )
        ]
        text = json.dumps(
            found, sort_keys=True, default=lambda v: sorted(map(str, v)) if isinstance(v, set) else str(v)
        )
        return xxhash.xxh3_64_hexdigest(text.encode())

    def _hash_of_model(self, request: Request) -> str | None:
        if isinstance(request, Embedding) and request.model is not None:
            return model_fingerprint(load_encoder(request.model, self.args.device))
        return self._hash("model and reference" if request == "loss" and self._reference is not None else "model")

    @property
    def _reference(self) -> Any:
        """Of dpo."""
        return getattr(self, "ref_model", None)

    def _hash(self, what: str) -> str | None:
        """Made once per step."""
        if self._hashed[0] != self.state.global_step:
            self._hashed = (self.state.global_step, {})
        kept = self._hashed[1]
        if what not in kept:
            models = [self.model, self._reference] if what == "model and reference" else [self.model]
            kept[what] = moments_fingerprint(self.optimizer) if what == "moments" else model_fingerprint(*models)
        return kept[what]


def order_in(request: Request, pool: Pool) -> np.ndarray | None:
    """In which rows are measured: as `over_pool` does it; texts as they come."""
    if isinstance(request, Embedding) and request.model is not None:
        return None
    return order_of(pool.lengths)


def _belongs(folder: Path, run: str) -> bool:
    try:
        return bool(json.loads((folder / "key.json").read_text())["run"] == run)
    except (OSError, ValueError, KeyError, TypeError):
        return False
