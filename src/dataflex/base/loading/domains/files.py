"""The domains of rows, out of a file that names one for each stored row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.json as jsonl
import pyarrow.parquet as pq

from dataflex.base.loading.domains.columns import as_read
from dataflex.base.loading.domains.labels import Labels, encoded
from dataflex.config.refusals import domains as refused
from dataflex.config.schema import DomainsKeys
from dataflex.data.origins import stored_rows
from dataflex.errors import nearest

_ROW, _DATA_SET = "row", "dataset"


def labels_of_file(stored: Mapping[str, Any], spec: DomainsKeys) -> dict[str, Labels]:
    """The names that the file gives the rows of data sets, by data set.

    Raises ConfigError for a file that cannot be read, that does not fit the rows, or names one of them twice.

    Args:
        stored: The data sets, Hugging Face `Dataset`s, in the order of `dataset`.
    """
    assert spec.path is not None
    sizes = {name: stored_rows(rows) for name, rows in stored.items()}
    values, entries, rows = values_of_file(spec.path, spec.column or "domain", sizes, "dataflex.domains")
    names = encoded(values)
    codes = np.full(sum(sizes.values()), -1, dtype=np.int32)
    codes[rows] = names.codes[entries]
    starts = np.cumsum([0, *sizes.values()])
    return {
        name: Labels(as_read(stored[name], codes[start : start + size]), names.names)
        for (name, size), start in zip(sizes.items(), starts, strict=False)
    }


def values_of_file(
    path: str, column: str, sizes: Mapping[str, int], block: str
) -> tuple[pa.ChunkedArray, np.ndarray, np.ndarray]:
    """A column of a file about stored rows; its entries that are about the data sets, int64[k]; and the stored row that each of
    these is about, counted over the data sets, int64[k].

    Raises ConfigError for a file that cannot be read, that does not fit the rows, or names one of them twice.

    Args:
        sizes: Rows of each data set as it is stored, in the order of `dataset`.
        block: The block of the configuration whose `path` and `column` these are.
    """
    table, total = _read(path, block), sum(sizes.values())
    if column not in table.column_names:
        raise refused.NO_FILE_COLUMN.error(
            key=f"{block}.column", path=path, column=column, near=nearest(column, table.column_names)
        )
    if _ROW in table.column_names:
        entries, rows = _numbered(table, sizes, path, block)
        if len(np.unique(rows)) < len(rows):
            raise refused.FILE_ROWS.error(key=f"{block}.path", path=path, why="names a row twice")
        return table[column], entries, rows
    if table.num_rows != total:
        why = f"names {table.num_rows} rows in order, and the data sets have {total}"
        raise refused.FILE_ROWS.error(key=f"{block}.path", path=path, why=why)
    return table[column], np.arange(total), np.arange(total)


def _numbered(table: pa.Table, sizes: Mapping[str, int], path: str, block: str) -> tuple[np.ndarray, np.ndarray]:
    """The entries of the file that are about the data sets, int64[k], and the stored row that each is about, counted over
    the data sets, int64[k]."""
    given = table[_ROW]
    if not pa.types.is_integer(given.type) or given.null_count:
        raise refused.FILE_ROWS.error(
            key=f"{block}.path", path=path, why=f"has a column {_ROW!r} that does not hold whole numbers alone"
        )
    rows = given.to_numpy().astype(np.int64)
    entries, first, most = (
        np.arange(len(rows)),
        np.zeros(len(rows), dtype=np.int64),
        np.full(len(rows), sum(sizes.values())),
    )
    if _DATA_SET in table.column_names:
        of = encoded(table[_DATA_SET])
        known = [*(list(sizes).index(name) if name in sizes else -1 for name in of.names), -1]
        owner = np.array(known)[of.codes]
        entries = np.flatnonzero(owner >= 0)
        counts = np.array(list(sizes.values()))
        first, most = (np.cumsum(counts) - counts)[owner[entries]], counts[owner[entries]]
        rows = rows[entries]
    outside = (rows < 0) | (rows >= most)
    if outside.any():
        place = int(np.argmax(outside))
        raise refused.FILE_ROWS.error(
            key=f"{block}.path", path=path, why=f"names row {rows[place]}, and there are {most[place]}"
        )
    return entries, rows + first


def _read(path: str, block: str) -> pa.Table:
    kind = Path(path).suffix
    try:
        if kind == ".parquet":
            return pq.read_table(path)
        return csv.read_csv(path) if kind == ".csv" else jsonl.read_json(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise refused.FILE_ROWS.error(
            key=f"{block}.path", path=path, why=f"cannot be read ({' '.join(str(error).split())})"
        ) from None
