"""How often rows were trained on, by domain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

MOST = 8
"""Rows seen as often or more are counted together."""


@dataclass(frozen=True)
class DomainExposure:
    rows: int | None
    """Of the domain; None: not known."""
    seen: int
    """Different rows trained on."""
    served: int
    """Rows served, repeats included."""
    times: tuple[int, ...]
    """Rows that were seen 1, 2, ..., MOST or more times."""
    most: int
    """How often the row that was seen most was seen."""

    @property
    def epochs(self) -> float | None:
        return self.served / self.rows if self.rows else None


def last_weights(path: Path) -> np.ndarray:
    """float32: the weight of every row that was weighed, when it was last trained on. Empty where there is no such file or
    column."""
    if not path.is_file() or "last_weight" not in pq.read_schema(path).names:
        return np.empty(0, dtype=np.float32)
    found = pq.read_table(path, columns=["last_weight"])["last_weight"].to_numpy()
    return np.asarray(found[np.isfinite(found)], dtype=np.float32)


def exposure_of(path: Path, sizes: Mapping[str, int | None]) -> dict[str, DomainExposure]:
    """By domain; empty where there is no such file, as of streams and of runs that have saved nothing yet. sizes: rows of each
    domain."""
    if not path.is_file():
        return {}
    table = pq.read_table(path, columns=["domain", "times_seen"])
    column = table["domain"].combine_chunks()
    names, owner = column.dictionary.to_pylist(), np.asarray(column.indices)
    seen = np.asarray(table["times_seen"])
    order = np.argsort(owner, kind="stable")
    bounds = np.searchsorted(owner[order], np.arange(len(names) + 1))
    out = {}
    for number, name in enumerate(names):
        own = seen[order[bounds[number] : bounds[number + 1]]]
        times = np.bincount(np.minimum(own, MOST), minlength=MOST + 1)[1:]
        out[str(name)] = DomainExposure(
            sizes.get(name), len(own), int(own.sum()), tuple(times.tolist()), int(own.max(initial=0))
        )
    return out
