"""The ranks that an order gave to rows, as a Parquet file.

orders/step_<n>.parquet   sample_id, domain, score (null: none), rank: the place of the row in its pool by score, from 0; null
                          where no pool has the row. A row that a pool has twice has its first rank. Where they are known,
                          dataset and row: where the row is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from dataflex.plan.plan import Domains
from dataflex.plan.stages import Pool
from dataflex.writing import write_table


@dataclass(frozen=True)
class OrderRecord:
    """One decision of an order. N: rows of the data."""

    domains: Domains
    pools: Sequence[Pool]
    """With their courses."""
    scores: np.ndarray
    """float64[N]; NaN: none."""
    stored: np.ndarray | None = None
    """The number of each row in its data set as it is stored, int64[N]; None: not known."""
    data_sets: tuple[np.ndarray, tuple[str, ...]] | None = None
    """The data set of each row, as an index into names, int32[N], and these names; None: its domain."""


def write_order(file: Path, record: OrderRecord) -> None:
    total = record.domains.total
    ranks = np.full(total, -1, dtype=np.int64)
    for pool in record.pools:
        if pool.course is not None:
            rows = pool.rows(pool.course.ranked)
            ranks[rows[::-1]] = np.arange(len(rows))[::-1]
    domains = pa.DictionaryArray.from_arrays(
        record.domains.of(np.arange(total)).astype(np.int32), list(record.domains.names)
    )
    columns = {
        "sample_id": np.arange(total),
        "domain": domains,
        "score": pa.array(record.scores, mask=~np.isfinite(record.scores)),
        "rank": pa.array(ranks, mask=ranks < 0),
    }
    if record.data_sets is not None:
        codes, names = record.data_sets
        columns["dataset"] = pa.DictionaryArray.from_arrays(codes, pa.array(names))
    if record.stored is not None:
        columns["row"] = record.stored
    write_table(file, pa.table(columns))
