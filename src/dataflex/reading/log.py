"""The log of a run: scalars by optimizer step."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

try:
    import orjson
except ImportError:  # several times as fast, and no more
    orjson = None  # type: ignore[assignment]

LOG = "trainer_log.jsonl"
STEP = "current_steps"
Series = tuple[np.ndarray, np.ndarray]
"""Steps, int64[n], ascending, and the value at each, float64[n]."""
NOTHING: Series = (np.zeros(0, dtype=np.int64), np.zeros(0))


class Log:
    """Every line counts once: what a run that was killed had logged after its last checkpoint is logged again by the run that
    resumes, and the first of these lines no longer count. A line that is torn off is left out."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        kept: list[dict[str, Any]] = []
        for record in self._raw:
            step, trained = record[STEP], "loss" in record
            while kept and (kept[-1][STEP] > step or (trained and kept[-1][STEP] == step)):
                kept.pop()
            kept.append(record)
        return kept

    @cached_property
    def seconds(self) -> float:
        """Wall time of training, that of steps made twice included."""
        return _over_processes([parse_time(str(record.get("elapsed_time", ""))) for record in self._raw])

    def accumulated(self, name: str) -> float | None:
        """The last value of a scalar that every process counts from zero, over all processes; None: it is not there."""
        values = [float(record[name]) for record in self._raw if name in record]
        return _over_processes(values) if values else None

    @property
    def step(self) -> int:
        """The last one logged; 0: none."""
        return int(self.records[-1][STEP]) if self.records else 0

    @property
    def last_loss(self) -> int:
        """The step of the last log of a loss; 0: none."""
        steps = self.series("loss")[0]
        return int(steps[-1]) if len(steps) else 0

    @property
    def total_steps(self) -> int:
        return int(self.records[-1].get("total_steps", 0)) if self.records else 0

    def series(self, name: str) -> Series:
        return self._columns.get(name, NOTHING)

    def last(self, name: str) -> float | None:
        values = self.series(name)[1]
        return float(values[-1]) if len(values) else None

    def under(self, prefix: str) -> dict[str, Series]:
        """Those whose names begin with `prefix`, by the rest of their names."""
        return {name.removeprefix(prefix): found for name, found in self._columns.items() if name.startswith(prefix)}

    @cached_property
    def _raw(self) -> list[dict[str, Any]]:
        return [record for record in read_lines(self.path) if isinstance(record.get(STEP), int)]

    @cached_property
    def _columns(self) -> dict[str, Series]:
        return columns((record[STEP], record) for record in self.records)


def columns(records: Iterator[tuple[int, dict[str, Any]]]) -> dict[str, Series]:
    """Every number by its name. Where a step has several values of a name, the last counts."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for step, record in records:
        for name, value in record.items():
            if type(value) is float or type(value) is int:
                found[name][step] = value
    return {
        name: (np.fromiter(values, dtype=np.int64), np.fromiter(values.values(), dtype=np.float64))
        for name, values in found.items()
    }


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file, a line each, up to the first line that is none: the run may be writing, or was killed."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            try:
                record = _loads(line)
            except ValueError:
                return
            if isinstance(record, dict):
                yield record


def _loads(line: bytes) -> Any:
    if orjson is not None:
        try:
            return orjson.loads(line)
        except ValueError:  # NaN is no JSON, but Python writes it
            pass
    return json.loads(line)


def _over_processes(values: list[float]) -> float:
    """The sum of what each process has reached. A value below the one before is the first of another process."""
    total, last = 0.0, 0.0
    for now in values:
        total, last = (total + last, now) if now < last else (total, now)
    return total + last


def parse_time(text: str) -> float:
    """Seconds of "1 day, 2:03:04"; 0 where it is not a time."""
    days, _, clock = text.rpartition(", ")
    try:
        hours, minutes, seconds = (float(part) for part in clock.split(":"))
        return float(days.split()[0] if days else 0) * 86400 + hours * 3600 + minutes * 60 + seconds
    except ValueError:
        return 0.0
