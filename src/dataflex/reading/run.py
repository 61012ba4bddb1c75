"""A run, by its files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml

from dataflex.errors import ConfigError
from dataflex.locking import LOCK, holder_of
from dataflex.reading.cost import Cost, cost_of, seconds_of
from dataflex.reading.exposure import DomainExposure, exposure_of, last_weights
from dataflex.reading.log import LOG, Log, Series, columns, read_lines
from dataflex.reading.mixture import Mixture, mixture_of
from dataflex.reading.orders import OrderFile, orders_of
from dataflex.reading.selections import SelectionFile, selections_before, selections_of
from dataflex.record.ledger import DIRECTORY, EXPOSURE, LEDGER

_STATE = "trainer_state.json"
MEASURES = ("loss", "perplexity", "bits_per_byte")


@dataclass(frozen=True)
class HeldOut:
    """A measure of held-out rows over steps."""

    domains: dict[str, Series]
    macro: Series
    """The mean over domains."""
    micro: Series
    """Over all rows."""


class Run:
    """A training with or without a block, or the directory of selections made before training."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name

    @property
    def folder(self) -> Path:
        return self.path / DIRECTORY

    @cached_property
    def record(self) -> dict[str, Any]:
        """config.yaml of the run: block, keys, versions, domains."""
        path = self.folder / "config.yaml"
        found = yaml.load(path.read_text(), _LOADER) if path.is_file() else None
        return found if isinstance(found, dict) else {}

    @property
    def block(self) -> dict[str, Any]:
        return self.record.get("dataflex") or {}

    @cached_property
    def ledger(self) -> list[dict[str, Any]]:
        return list(read_lines(self.folder / LEDGER))

    @cached_property
    def log(self) -> Log:
        return Log(self.path / LOG)

    @cached_property
    def state(self) -> dict[str, Any]:
        """What the Trainer knows of the run, at its end or at the newest checkpoint."""
        checkpoints = sorted(self.path.glob(f"checkpoint-*/{_STATE}"), key=lambda path: path.stat().st_mtime)
        for path in (self.path / _STATE, *reversed(checkpoints)):
            try:
                return dict(json.loads(path.read_text()))
            except (OSError, ValueError):
                continue
        return {}

    @cached_property
    def sizes(self) -> dict[str, int | None]:
        """Rows of each domain; None: not known, as of a stream."""
        return {name: found.get("rows") for name, found in (self.record.get("domains") or {}).items()}

    @property
    def domains(self) -> tuple[str, ...]:
        return tuple(self.sizes)

    @property
    def _history(self) -> list[dict[str, Any]]:
        """What the Trainer has logged, with its evaluations in training."""
        return self.state.get("log_history") or []

    @cached_property
    def _evaluated_after(self) -> dict[str, Any]:
        """The evaluation after training; empty: none."""
        with suppress(OSError, ValueError):
            return dict(json.loads((self.path / "eval_results.json").read_text()))
        return {}

    # -- how far it is -----------------------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Optimizer steps that are known to be done."""
        return max(self.log.step, int(self.ledger[-1]["step"]) if self.ledger else 0)

    @property
    def total_steps(self) -> int:
        return self.log.total_steps or int(self.state.get("max_steps") or 0)

    @cached_property
    def status(self) -> str:
        """finished, running, or stopped."""
        if not self.trains:
            return "finished"
        holder = holder_of(self.path / LOCK)
        if holder is not None and not holder.gone():
            return "running"
        return "finished" if self.step and self.step >= self.total_steps else "stopped"

    @property
    def trains(self) -> bool:
        return bool(self.ledger) or self.log.path.is_file() or bool(self.state)

    # -- what happened -----------------------------------------------------------------------------------------------

    @cached_property
    def mixture(self) -> Mixture | None:
        return mixture_of(self.domains, self.ledger, self.log) if self.domains else None

    @cached_property
    def selections(self) -> list[SelectionFile]:
        return selections_of(self.folder, self.ledger) or list(selections_before(self.path))

    @cached_property
    def orders(self) -> list[OrderFile]:
        return orders_of(self.folder, self.ledger)

    @cached_property
    def exposure(self) -> dict[str, DomainExposure]:
        return exposure_of(self.folder / EXPOSURE, self.sizes)

    @cached_property
    def last_weights(self) -> np.ndarray:
        """Of the rows that were weighed, when they were last trained on, float32[n]."""
        return last_weights(self.folder / EXPOSURE)

    @cached_property
    def cost(self) -> Cost:
        evaluations = [(int(line.get("step", 0)), seconds_of(line)) for line in self._history]
        final = seconds_of(self._evaluated_after) if self.status == "finished" else 0.0
        return cost_of(self.ledger, self.log, evaluations, final)

    def train_loss(self) -> dict[str, Series]:
        """Of the whole batch under "all", and by domain."""
        return {"all": self.log.series("loss"), **self.log.under("dataflex/loss/")}

    def held_out(self, measure: str) -> HeldOut | None:
        """loss, perplexity or bits_per_byte by domain; None: not measured."""
        lines = [line for line in self.ledger if line["component"] == "evaluate" and measure in line.get("from", {})]
        if not lines:
            return None
        found = columns((int(line["step"]), line["from"][measure]) for line in lines)
        macro = columns((int(line["step"]), line["from"]["macro"]) for line in lines)
        micro = columns((int(line["step"]), line["from"]["micro"]) for line in lines)
        return HeldOut(found, macro[measure], micro[measure])

    @cached_property
    def evaluated(self) -> dict[str, Series]:
        """Losses as LLaMA-Factory evaluates them, in training and after it, by data set ("" where there is one)."""
        history = [(int(line.get("step", 0)), line) for line in self._history]
        found = columns(iter([*history, (self.step, self._evaluated_after)]))
        return {
            name.removeprefix("eval").removesuffix("loss").strip("_"): series
            for name, series in found.items()
            if name.startswith("eval_") and name.endswith("_loss") and "/" not in name
        }

    def remarks(self) -> dict[str, str]:
        """What components have remarked, each once."""
        found: dict[str, str] = {}
        for line in self.ledger:
            for name, text in (line.get("remarks") or {}).items():
                found.setdefault(f"{line['component']}: {name}", str(text))
        return found

    def life_of(self, sample_id: int) -> dict[str, Any] | None:
        """The line of a row in the table of exposure; None: it was not trained on, or that is not known."""
        return _exposure_of_row(self.folder / EXPOSURE, sample_id)

    def losses_of(self, sample_id: int) -> list[dict[str, Any]]:
        """The same at every checkpoint that is kept, and now, each state of the row once."""
        checkpoints = sorted(
            (path for path in self.path.glob("checkpoint-*") if path.name.partition("-")[2].isdigit()),
            key=lambda path: int(path.name.partition("-")[2]),
        )
        found: list[dict[str, Any]] = []
        for folder in (*(path / DIRECTORY for path in checkpoints), self.folder):
            seen = _exposure_of_row(folder / EXPOSURE, sample_id)
            if seen is not None and (not found or seen["last_step"] > found[-1]["last_step"]):
                found.append(seen)
        return found

    def id_of(self, data_set: str, row: int) -> int | None:
        """The id of a stored row, by the newest selection that knows stored rows; None: none does, or it was not looked at."""
        for selection in reversed(self.selections):
            stored, (numbers, names) = selection.stored, selection.data_sets
            if data_set in names and stored is not None:
                indices = np.flatnonzero((numbers == names.index(data_set)) & (stored == row))
                return int(selection.ids[indices[0]]) if len(indices) else None
        return None


def _exposure_of_row(path: Path, sample_id: int) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    table = pq.read_table(path, filters=[("sample_id", "==", int(sample_id))])
    return dict(table.to_pylist()[0]) if table.num_rows else None


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def open_runs(paths: Sequence[str | Path]) -> list[Run]:
    """The runs in some directories; that of `doremi` has up to three. ConfigError for a directory that holds none."""
    found: list[Run] = []
    for path in map(Path, paths):
        if not path.is_dir():
            raise ConfigError(f"{path}: there is no such directory")
        parts = (
            [path / step for step in ("reference", "proxy", "final")] if (path / "doremi.json").is_file() else [path]
        )
        runs = [Run(part, part.name if part is path else f"{path.name}/{part.name}") for part in parts]
        runs = [run for run in runs if run.trains or run.selections]
        if not runs:
            raise ConfigError(
                f"{path}: no run and no selection is here; name the output_dir of a train, select or doremi command"
            )
        found += runs
    names = [run.name for run in found]
    for run in found:
        if names.count(run.name) > 1:
            run.name = str(run.path)
    return found
