"""Scoring passes of a run, kept shard by shard, so that one that is killed goes on where it was.

A run that is resumed trains to the step of the pass again. Where it gets there to the bit, which a hash of the model and of
the moments tells, what was measured is taken up; else the hash is another one, and all is measured anew.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
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
from dataflex.signals.batching import Held, Keep, Places, Pool, shards_of
from dataflex.signals.embeddings import load_encoder
from dataflex.trainer.collectives import decide, rank, ranks
from dataflex.trainer.fingerprint import model_fingerprint, moments_fingerprint
from dataflex.trainer.host import Host
from dataflex.trainer.ledger import DIRECTORY
from dataflex.trainer.rows import Rows
from dataflex.trainer.store import ShardFile

# Bytes of other passes beside which a pass is kept; the oldest go first.
_ROOM = 1 << 30
# Texts of a shard: sixteen of the blocks that an encoder is given.
_TEXTS = 1 << 14


class Passes:
    """<output_dir>/dataflex/signals/: a directory per pass, step_<n>/<hash>/. Rank 0 writes. run: what all keys share.

    What was measured before step n is needed until there is a checkpoint of a later step. Keeping it is a convenience: if it
    cannot be written, one line says so, and nothing more is.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self.folder, self.run, self.gave_up = folder, run, False

    def open(self, step: int, key: Mapping[str, Any], count: int, rows: Sequence[Places]) -> KeptPass:
        """Equal on every rank, with what is there of this pass already put."""
        held, found = KeptPass(self, rows, count), list[int]()

        def begin() -> None:
            self._make_room(step)
            held.file = ShardFile(self.folder / f"step_{step}", {"run": self.run, "step": step, **key}, count, rows)
            found[:] = sorted(held.file.done)
            if found:
                print(
                    f"dataflex: step {step}: {len(found)} of {len(rows)} shards of {key['signal']} are there",
                    flush=True,
                )

        def begun() -> list[int]:
            if not self.gave_up:
                self.attempt(begin)
            return found

        for shard in decide(begun):
            held.put_back(shard, decide(lambda: held.file.read(shard)))  # type: ignore[union-attr]  # noqa: B023
        return held

    def attempt(self, act: Callable[[], None]) -> None:
        try:
            act()
        except OSError as error:
            self.gave_up = True
            self.forget()  # a checkpoint may need the room
            print(
                f"dataflex: what scoring measures is not kept from here on ({error.strerror or error}: {self.folder}); a run"
                " that is killed in the middle of a scoring pass makes all of it again",
                flush=True,
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

    def _make_room(self, step: int) -> None:
        others = [(f, sum(p.stat().st_size for p in f.rglob("*"))) for f, n in self._steps() if n != step]
        while sum(size for _, size in others) > _ROOM:
            shutil.rmtree(others.pop(0)[0], ignore_errors=True)


class KeptPass(Held):
    """Values in memory on every rank, and on rank 0 in a file too, as long as that can be written."""

    def __init__(self, passes: Passes, rows: Sequence[Places], count: int) -> None:
        super().__init__(rows, count)
        self.passes = passes
        self.file: ShardFile | None = None

    def put_back(self, shard: int, values: np.ndarray) -> None:
        super().put(shard, values)
        self.missing = [k for k in self.missing if k != shard]

    def put(self, shard: int, values: np.ndarray) -> None:
        super().put(shard, values)
        if self.file is not None and not self.passes.gave_up:
            file = self.file
            self.passes.attempt(lambda: file.write(shard, values))


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
        """Where the values of rows go; None: a pass that is not kept. One that is a single shard has nothing to go on from."""
        per_row = request == "loss" or isinstance(request, Embedding | TargetAlignment | PolicyAlignment | Features)
        if not per_row or isinstance(request, TargetEmbedding) or pool.rows is not self.rows:
            return None
        rows = shard_rows(request, pool)
        if len(rows) < 2:
            return None
        key = self._depends_on(request, pool)
        if key is None:
            return None
        # Sums over the target's rows round differently on another number of ranks.
        key |= {"ranks": ranks(), "batches of": pool.budget}
        return self.passes.open(self.state.global_step, key, len(pool), rows)

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


def shard_rows(request: Request, pool: Pool) -> list[Places]:
    """The places that each shard of a pass is of: as `over_pool` measures, and of texts as an encoder reads them."""
    if isinstance(request, Embedding) and request.model is not None:
        return [slice(a, min(a + _TEXTS, len(pool))) for a in range(0, len(pool), _TEXTS)]
    return [np.sort(places) for places in shards_of(pool.lengths)]


def _belongs(folder: Path, run: str) -> bool:
    try:
        return bool(json.loads((folder / "key.json").read_text())["run"] == run)
    except (OSError, ValueError, KeyError, TypeError):
        return False
