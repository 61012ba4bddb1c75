"""Orders of a run: the scores and ranks of rows, each time that rows were ranked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


@dataclass(frozen=True)
class RankedRow:
    """A row that an order ranked."""

    sample_id: int
    domain: str
    data_set: str
    row: int | None
    """Its number in the data set as it is stored; None: not known."""
    score: float | None
    rank: int
    """Its place in its pool by score, from 0."""


@dataclass(frozen=True)
class OrderFile:
    """A decision of an order, with its line of the ledger."""

    path: Path
    line: Mapping[str, Any]

    @property
    def step(self) -> int:
        return int(self.line["step"])

    @property
    def name(self) -> str:
        return str(self.line["component"]).partition(":")[2]

    @cached_property
    def _table(self) -> pa.Table:
        return pq.read_table(self.path)

    @property
    def data_sets(self) -> list[str]:
        """Names that rows go by."""
        return [str(name) for name in self._table[self._named].unique().to_pylist()]

    def ranked(self, count: int, *, highest: bool, data_set: str | None = None) -> list[RankedRow]:
        """Rows with the highest ranks, or the lowest ones, of all pools or of a data set."""
        ranks = self._table["rank"].to_numpy(zero_copy_only=False)
        places = np.flatnonzero(np.isfinite(ranks.astype(np.float64)))
        if data_set is not None:
            places = places[np.asarray(self._table[self._named].take(places).to_pylist()) == data_set]
        order = np.argsort(-ranks[places] if highest else ranks[places], kind="stable")
        found = self._table.take(places[order[:count]]).to_pylist()
        return [
            RankedRow(r["sample_id"], r["domain"], r[self._named], r.get("row"), r["score"], int(r["rank"]))
            for r in found
        ]

    @property
    def _named(self) -> str:
        return "dataset" if "dataset" in self._table.column_names else "domain"


def orders_of(folder: Path, ledger: Sequence[Mapping[str, Any]]) -> list[OrderFile]:
    """Those of a run whose files are there."""
    lines = [line for line in ledger if str(line["component"]).startswith("order:")]
    found = [OrderFile(folder / str(line["decided"]["file"]), line) for line in lines]
    return [order for order in found if order.path.is_file()]
