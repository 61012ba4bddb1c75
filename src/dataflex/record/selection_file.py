"""What a selector decided of each row it looked at, as a Parquet file, and some of these rows with their text beside it.

step_<n>.parquet   one line per row; its metadata hold a `SelectionSummary`, so that a reader need not read the rows
step_<n>.jsonl     {"sample_id", "prompt", "answer"}: rows of both ends of the scores, around the cut, and drawn at random;
                   "target": {"dataset", "row", "prompt", "answer"}, the row of the target that it was taken for
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from dataflex.plan.plan import Domains
from dataflex.record.reasons import Reasons
from dataflex.record.selection_summary import SelectionSummary, examples_of
from dataflex.writing import write_atomically, write_tables

if TYPE_CHECKING:
    from dataflex.data.texts import RowText  # which needs torch

ROWS_AT_ONCE = 1 << 20
"""Rows of a table that are made together; also the size of its row groups."""
SUMMARY = b"dataflex"
"""The key of the summary among the metadata of the schema."""
_TEXT = 4000  # characters of a prompt, and of an answer, that are kept


@dataclass(frozen=True)
class SelectionRecord:
    """One decision of a selector. N: rows of the data."""

    domains: Domains
    groups: Sequence[np.ndarray]
    """Ids taken, in the order of the selector: of all data, or of each domain where domains are selected from apart, int64[n]."""
    scores: np.ndarray | None = None
    """float64[N]; NaN: none."""
    looked_at: np.ndarray | None = None
    """Ids, ascending; None: every row."""
    stored: np.ndarray | None = None
    """The number of each row in its data set as it is stored, int64[N]."""
    tokens: np.ndarray | None = None
    """Tokens of each row that are learned, int32[N]."""
    data_sets: tuple[np.ndarray, tuple[str, ...]] | None = None
    """The data set of each row, as an index into names, int32[N], and these names; None: its domain."""
    reasons: Reasons | None = None
    """Why rows were taken; None: the selector does not say."""

    @cached_property
    def chosen(self) -> np.ndarray:
        """All ids taken, int64[n]."""
        return np.concatenate(self.groups) if len(self.groups) > 1 else self.groups[0]

    @cached_property
    def is_chosen(self) -> np.ndarray:
        """bool[N]"""
        out = np.zeros(self.domains.total, dtype=bool)
        out[self.chosen] = True
        return out

    @cached_property
    def repeats(self) -> bool:
        """Whether a row was drawn more than once."""
        return int(np.count_nonzero(self.is_chosen)) < len(self.chosen)

    @cached_property
    def _order(self) -> np.ndarray:
        return np.argsort(self.chosen, kind="stable")

    @cached_property
    def _sorted(self) -> np.ndarray:
        return self.chosen[self._order]

    def draws(self, ids: np.ndarray) -> np.ndarray:
        """The index of each row among the rows taken, int64[k]; -1: left out. Of a row drawn twice, the first."""
        out, selected = np.full(len(ids), -1), self.is_chosen[ids]
        out[selected] = self._order[np.searchsorted(self._sorted, ids[selected])]
        return out

    def ids(self) -> Iterator[np.ndarray]:
        """Those looked at, ascending, in parts: all columns at once would take many bytes per row."""
        count = self.domains.total if self.looked_at is None else len(self.looked_at)
        for begin in range(0, max(count, 1), ROWS_AT_ONCE):
            end = min(begin + ROWS_AT_ONCE, count)
            yield np.arange(begin, end, dtype=np.int64) if self.looked_at is None else self.looked_at[begin:end]

    def tables(self) -> Iterator[pa.Table]:
        """sample_id, domain, score, selected, rank (from 1, in its group), and where they are known
        dataset, row, tokens, times and the columns of `Reasons`."""
        names = pa.array(self.domains.names)
        ranks = np.concatenate([np.arange(1, len(group) + 1) for group in self.groups])
        for ids in self.ids():
            draws, selected = self.draws(ids), self.is_chosen[ids]
            rank = np.zeros(len(ids), dtype=np.int64)
            rank[selected] = ranks[draws[selected]]
            score = np.full(len(ids), np.nan) if self.scores is None else self.scores[ids]
            columns = {
                "sample_id": ids,
                "domain": pa.DictionaryArray.from_arrays(self.domains.of(ids).astype(np.int32), names),
                "score": pa.array(score, type=pa.float64(), from_pandas=True),
                "selected": selected,
                "rank": pa.array(rank, mask=~selected),
            }
            if self.data_sets is not None:
                codes, data_sets = self.data_sets
                columns["dataset"] = pa.DictionaryArray.from_arrays(codes[ids], pa.array(data_sets))
            if self.stored is not None:
                columns["row"] = self.stored[ids]
            if self.tokens is not None:
                columns["tokens"] = self.tokens[ids]
            if self.repeats:
                begins, ends = (np.searchsorted(self._sorted, ids, side=side) for side in ("left", "right"))
                columns["times"] = ends - begins
            if self.reasons is not None:
                columns |= self.reasons.columns(ids, draws)
            yield pa.table(columns).replace_schema_metadata(self.metadata)

    @property
    def metadata(self) -> dict[bytes, bytes]:
        """Of the tables."""
        return {SUMMARY: json.dumps(asdict(self.summary)).encode()}

    @cached_property
    def summary(self) -> SelectionSummary:
        scores = np.full(self.domains.total, np.nan) if self.scores is None else self.scores
        ids = np.arange(self.domains.total) if self.looked_at is None else self.looked_at
        return SelectionSummary.of(
            self.domains.of(ids), self.domains.names, scores[ids], self.is_chosen[ids], drawn=len(self.chosen)
        )


def write_selection(path: Path, record: SelectionRecord, texts: Callable[[list[int]], list[RowText]] | None) -> None:
    """Write both files; path: of the table. texts: ids -> what the rows say; None: not known."""
    write_tables(path, record.tables())
    if texts is not None:
        write_texts(path.with_suffix(".jsonl"), record, texts)


def write_texts(path: Path, record: SelectionRecord, texts: Callable[[list[int]], list[RowText]]) -> None:
    ids = np.concatenate(list(record.ids()))
    scores = np.full(len(ids), np.nan) if record.scores is None else record.scores[ids]
    shown = ids[examples_of(scores, record.is_chosen[ids])]
    lines: list[dict[str, Any]] = [
        {"sample_id": i, **_clipped(text)} for i, text in zip(shown.tolist(), texts(shown.tolist()), strict=True)
    ]
    if record.reasons is not None:
        for line, target in zip(lines, record.reasons.texts(shown, record.draws(shown)), strict=True):
            if target is not None:
                said = {} if target.text is None else _clipped(target.text)
                line["target"] = {"dataset": target.dataset, "row": target.row, **said}
    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_atomically(path, content.encode(errors="replace"))


def _clipped(text: RowText) -> dict[str, str]:
    return {"prompt": text.prompt[-_TEXT:], "answer": text.answer[:_TEXT]}
