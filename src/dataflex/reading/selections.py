"""Selections of a run, or of one before training: what was taken, by which scores, and the rows themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataflex.reading.log import read_lines
from dataflex.record.selection_file import SUMMARY
from dataflex.record.selection_summary import Scores, SelectionSummary, Spread, cut_between


@dataclass(frozen=True)
class TargetRow:
    """A row of the target, or a data set of it as a whole."""

    dataset: str | None
    """None: a row of a file of vectors or of neighbours."""
    row: int | None
    """Its number in the data set as it is stored; None: the whole data set, or not known."""
    text: tuple[str, str] | None = None
    """Prompt and answer; None: not kept."""


@dataclass(frozen=True)
class RowOfSelection:
    """A row that a selector looked at."""

    sample_id: int
    domain: str
    row: int | None
    """Its number in the data set as it is stored."""
    score: float | None
    selected: bool
    rank: int | None
    """Its place in the order of the selector, from 1."""
    place: int | None
    """Its place by score among all rows looked at, from 1."""
    margin: float | None
    """Its score less the highest score left out (of a row taken) or the lowest one taken (of a row left out), where the rows of
    the highest scores are taken; of each domain where domains are selected from apart."""
    tokens: int | None
    text: tuple[str, str] | None
    """Prompt and answer; None: not kept."""
    turn: int | None = None
    """The turn, from 1, in which it was taken."""
    chosen_for: TargetRow | None = None
    """What of the target it was taken for."""
    score_from: TargetRow | None = None
    """What of the target its score comes from."""
    dataset: str | None = None
    """The data set that it is stored in; None: the domain is the data set."""

    @property
    def data_set(self) -> str:
        return self.dataset or self.domain


class SelectionFile:
    """One decision. step: optimizer steps done, 0 before training."""

    def __init__(self, path: Path, step: int, line: Mapping[str, Any]) -> None:
        self.path, self.step, self.line = path, step, line

    @property
    def name(self) -> str:
        """The selector."""
        return str(self.line.get("component", "")).removeprefix("select:")

    @property
    def seconds(self) -> float:
        return float(self.line.get("seconds", 0.0))

    @cached_property
    def file(self) -> pq.ParquetFile:
        return pq.ParquetFile(self.path)

    @cached_property
    def summary(self) -> SelectionSummary:
        """As it was written, or of files of an older version made here."""
        written = (self.file.schema_arrow.metadata or {}).get(SUMMARY)
        if written is not None:
            return _summary(json.loads(written))
        return SelectionSummary.of(
            self.domain_numbers, self.names, self.scores, self.selected, drawn=int(self.times.sum())
        )

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(self._column(self._domain).combine_chunks().dictionary.to_pylist())

    @cached_property
    def domain_numbers(self) -> np.ndarray:
        return np.asarray(self._column(self._domain).combine_chunks().indices)

    @cached_property
    def data_sets(self) -> tuple[np.ndarray, tuple[str, ...]]:
        """The data set that each row is stored in, as an index into names, and these names."""
        if "dataset" not in self.file.schema_arrow.names:
            return self.domain_numbers, self.names
        found = self._column("dataset").combine_chunks()
        return np.asarray(found.indices), tuple(found.dictionary.to_pylist())

    @cached_property
    def ids(self) -> np.ndarray:
        """int64[n]; of a selection before training, the index of the row in the file."""
        if "sample_id" in self.file.schema_arrow.names:
            return np.asarray(self._column("sample_id"))
        return np.arange(self.file.metadata.num_rows)

    @cached_property
    def scores(self) -> np.ndarray:
        """float64[n], NaN: none."""
        return np.asarray(self._column("score").to_numpy(zero_copy_only=False), dtype=np.float64)

    @cached_property
    def selected(self) -> np.ndarray:
        """bool[n]"""
        if "selected" in self.file.schema_arrow.names:
            return np.asarray(self._column("selected").to_numpy(zero_copy_only=False))
        return self.times > 0

    @cached_property
    def times(self) -> np.ndarray:
        """How often each row was taken, int64[n]."""
        if "times" in self.file.schema_arrow.names:
            return np.asarray(self._column("times"))
        return self.selected.astype(np.int64)

    @cached_property
    def stored(self) -> np.ndarray | None:
        """The number of each row in its data set as it is stored, int64[n]; None: not known."""
        return np.asarray(self._column("row")) if "row" in self.file.schema_arrow.names else None

    @cached_property
    def ranks(self) -> np.ndarray:
        """The place of each row in the order of the selector, from 1, int64[n]; 0: not taken, or not known."""
        if "rank" not in self.file.schema_arrow.names:
            return np.zeros(len(self.ids), dtype=np.int64)
        return np.asarray(self._column("rank").fill_null(0))

    def index_of(self, sample_id: int) -> int | None:
        """The index of a row in the file; None: it was not looked at."""
        index = int(np.searchsorted(self.ids, sample_id))
        return index if index < len(self.ids) and self.ids[index] == sample_id else None

    @property
    def chosen(self) -> np.ndarray:
        """Ids, ascending, int64."""
        return self.ids[self.selected]

    def overlap(self, before: SelectionFile | None) -> float | None:
        """The share of the rows taken that the selection before had taken; None for the first."""
        if before is None:
            return None
        known = self.line.get("decided", {}).get("overlap")
        if known is not None:
            return float(known)
        own = self.chosen
        return float(np.isin(own, before.chosen, assume_unique=True).mean()) if len(own) else None

    @property
    def by_chance(self) -> float:
        """The share of rows that a selection at random would share with any other: rows taken over rows looked at."""
        return self.summary.rows_taken / max(self.summary.rows_looked_at, 1)

    @cached_property
    def turns(self) -> int | None:
        """Turns that the target has taken; None: it takes none."""
        if "turn" not in self.file.schema_arrow.names:
            return None
        return int(np.asarray(self._column("turn").fill_null(0)).max(initial=0)) or None

    @property
    def by_domain(self) -> bool:
        """Whether each domain is selected from apart."""
        return len(self.line.get("decided", {}).get("rows", ())) > 1

    def cut(self, domain: str) -> tuple[float, float] | None:
        """The highest score left out and the lowest one taken, among the rows that those of a domain were chosen with."""
        if not self.by_domain:
            return self.summary.scores.cut if self.summary.scores else None
        if domain not in self._cuts:
            mine = np.isfinite(self.scores) & (self.domain_numbers == self.names.index(domain))
            self._cuts[domain] = cut_between(self.scores[mine], self.selected[mine])
        return self._cuts[domain]

    @cached_property
    def _cuts(self) -> dict[str, tuple[float, float] | None]:
        return {}

    @cached_property
    def texts(self) -> dict[int, tuple[str, str]]:
        """Prompt and answer of some of the rows, by id."""
        return {int(line["sample_id"]): (str(line["prompt"]), str(line["answer"])) for line in self._lines}

    @cached_property
    def _target_of(self) -> dict[int, tuple[str, str]]:
        """Prompt and answer of the row of the target that a row was taken for, or its score comes from, by the id of the row."""
        found = {int(line["sample_id"]): line.get("target") or {} for line in self._lines}
        return {i: (str(t["prompt"]), str(t["answer"])) for i, t in found.items() if "prompt" in t}

    @cached_property
    def _target_texts(self) -> dict[tuple[str, int], tuple[str, str]]:
        """The same by data set and stored row."""
        found = {int(line["sample_id"]): line["target"] for line in self._lines if line.get("target")}
        return {(t["dataset"], t["row"]): self._target_of[i] for i, t in found.items() if i in self._target_of}

    @cached_property
    def _lines(self) -> list[dict[str, Any]]:
        return list(read_lines(self.path.with_suffix(".jsonl")))

    def rows(self, indices: Sequence[int] | np.ndarray) -> list[RowOfSelection]:
        """Rows of the file, by their indices in it."""
        return [self._row(int(i)) for i in indices]

    def highest(self, count: int, *, selected: bool | None = None, domain: str | None = None) -> np.ndarray:
        """Indices of the rows with the highest scores, highest first. selected: only of those taken, or left out. domain: only of
        this one."""
        indices = self._indices(selected, domain)
        return indices[smallest(-self.scores[indices], count)]

    def lowest(self, count: int, *, selected: bool | None = None, domain: str | None = None) -> np.ndarray:
        indices = self._indices(selected, domain)
        return indices[smallest(self.scores[indices], count)]

    def first(self, count: int, *, domain: str | None = None) -> np.ndarray:
        """Indices of the rows taken first, in the order of the selector."""
        indices = self._indices(True, domain, scored=False)
        return indices[smallest(self.ranks[indices], count)]

    def _indices(self, selected: bool | None, domain: str | None, *, scored: bool = True) -> np.ndarray:
        rows = np.isfinite(self.scores) if scored else np.ones(len(self.ids), dtype=bool)
        if selected is not None:
            rows &= self.selected == selected
        if domain is not None:
            rows &= self.domain_numbers == self.names.index(domain)
        return np.flatnonzero(rows)

    def _row(self, i: int) -> RowOfSelection:
        score, domain = float(self.scores[i]), self.names[int(self.domain_numbers[i])]
        cut = self.cut(domain)
        scored, taken = np.isfinite(score), bool(self.selected[i])
        margin = score - (cut[0] if taken else cut[1]) if cut is not None and scored else None
        return RowOfSelection(
            sample_id=int(self.ids[i]),
            domain=domain,
            row=self._value("row", i),
            score=score if scored else None,
            selected=taken,
            rank=self._value("rank", i),
            place=int(np.count_nonzero(self.scores > score)) + 1 if scored else None,
            margin=margin,
            tokens=self._value("tokens", i),
            text=self.texts.get(int(self.ids[i])),
            turn=self._value("turn", i),
            chosen_for=self._target_row("chosen_for", i),
            score_from=self._target_row("score_from", i),
            dataset=self._value("dataset", i) if self._domain != "dataset" else None,
        )

    def _target_row(self, name: str, i: int) -> TargetRow | None:
        dataset, row = self._value(name, i), self._value(f"{name}_row", i)
        if dataset is None and row is None:
            return None
        if name == ("chosen_for" if self.selected[i] else "score_from") and int(self.ids[i]) in self._target_of:
            return TargetRow(dataset, row, self._target_of[int(self.ids[i])])
        return TargetRow(dataset, row, self._target_texts.get((dataset, row)) if row is not None else None)

    def _value(self, column: str, i: int) -> Any:
        """None where there is no such column, too."""
        return self._column(column)[i].as_py() if column in self.file.schema_arrow.names else None

    @property
    def _domain(self) -> str:
        return "domain" if "domain" in self.file.schema_arrow.names else "dataset"

    def _column(self, name: str) -> pa.ChunkedArray:
        if name not in self._columns:
            self._columns[name] = self.file.read([name]).column(0)
        return self._columns[name]

    @cached_property
    def _columns(self) -> dict[str, pa.ChunkedArray]:
        return {}


def smallest(values: np.ndarray, count: int) -> np.ndarray:
    """Places of the `count` smallest values, in their order, and among equals in that of the rows."""
    if count < len(values):
        limit = np.partition(values, count - 1)[count - 1]
        near = np.flatnonzero(values <= limit)
        return near[np.argsort(values[near], kind="stable")[:count]]
    return np.argsort(values, kind="stable")


def selections_of(folder: Path, ledger: Sequence[Mapping[str, Any]]) -> list[SelectionFile]:
    """Those of a training whose files are there."""
    found = []
    for line in ledger:
        decided, chosen = line.get("decided"), str(line["component"]).startswith("select:")
        file = decided.get("file") if chosen and isinstance(decided, Mapping) else None
        if file and (folder / file).is_file():
            found.append(SelectionFile(folder / file, int(line["step"]), line))
    return found


def selections_before(folder: Path) -> Iterator[SelectionFile]:
    """Those that `select` wrote into a directory."""
    for manifest in sorted(folder.glob("*/selection.json")):
        scores = manifest.with_name("scores.parquet")
        if scores.is_file():
            name = json.loads(manifest.read_text()).get("selector", "")
            yield SelectionFile(scores, 0, {"component": f"select:{name}"})


def _summary(record: Mapping[str, Any]) -> SelectionSummary:
    scores = record["scores"]
    if scores is not None:
        cut = scores["cut"]
        scores = Scores(
            tuple(scores["edges"]),
            _spread(scores["all"]),
            _spread(scores["selected"]),
            None if cut is None else (float(cut[0]), float(cut[1])),
        )
    return SelectionSummary(**{**record, "scores": scores})


def _spread(record: Mapping[str, Any]) -> Spread:
    return Spread(record["mean"], tuple(record["quantiles"]), tuple(record["counts"]))
