"""The rows of domains that the data names, counted in its files without LLaMA-Factory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.json as jsonl
import pyarrow.parquet as pq

from dataflex.base.loading.domains.conditions import rows_that_meet
from dataflex.base.loading.domains.files import labels_of_file
from dataflex.base.loading.domains.labels import Labels, assign, labels_of_column
from dataflex.config.schema import DomainsKeys
from dataflex.forecast.data import Sizes
from dataflex.reading.stored import texts_of

_BLOCK = 1 << 24  # bytes of a text file that are parsed at once


@dataclass(frozen=True)
class DomainRows:
    """Rows by domain, in the order of the domains."""

    rows: Mapping[str, int]
    left_out: Mapping[str, int]
    estimated: bool = False
    """Whether they follow from a sample of rows: lengths are those of texts that LLaMA-Factory joins."""


class _Stored:
    """The columns of a file that are asked for, as a data set that is read whole shows them."""

    _indices = None

    def __init__(self, data: pa.Table) -> None:
        self.data = data

    def __len__(self) -> int:
        return int(self.data.num_rows)


def count_domains(spec: DomainsKeys, sizes: Sizes, names: tuple[str, ...]) -> DomainRows | None:
    """None where the rows cannot be counted: data from elsewhere, rows that are drawn, clusters.

    Raises ConfigError where the data does not name domains as `spec` says.

    Args:
        names: The data sets, in the order of `dataset`.
    """
    if spec.by == "cluster" or any(sizes.draws(name) or not sizes.files(name) for name in names):
        return None
    if spec.by == "length":
        return None if spec.where else _by_sample(spec, sizes, names)
    wanted = {condition.column for condition in spec.where}
    wanted |= {spec.column} if spec.by == "column" and spec.column else set()
    try:
        stored = {name: _Stored(_columns(sizes, name, wanted)) for name in names}
    except (OSError, ValueError, pa.ArrowException):
        return None
    met, failed = rows_that_meet(stored, spec)
    if spec.by == "file":
        labels = labels_of_file(stored, spec)
    elif spec.by == "column":
        labels = {name: labels_of_column(rows, name, spec) for name, rows in stored.items()}
    else:
        labels = {name: Labels(np.zeros(len(rows), dtype=np.int32), (name,)) for name, rows in stored.items()}
        spec = replace(spec, keep=names)
    assigned = assign(labels, stored, spec, met)
    counts = sum(np.bincount(codes[codes >= 0], minlength=len(assigned.names)) for codes in assigned.codes.values())
    rows = dict(zip(assigned.names, np.asarray(counts).tolist(), strict=True))
    return DomainRows(rows, {**assigned.left_out, **failed})


def _by_sample(spec: DomainsKeys, sizes: Sizes, names: tuple[str, ...]) -> DomainRows:
    counts = np.zeros(len(spec.ranges))
    for name in names:
        texts = ("\n".join(filter(None, texts_of(row, sizes.entry(name)))) for row in sizes.sample(name))
        found = np.searchsorted(spec.edges, [len(text) for text in texts], side="right")
        if len(found):
            counts += np.bincount(found, minlength=len(counts)) / len(found) * (sizes.of(name).rows or 0)
    return DomainRows(dict(zip(spec.ranges, np.rint(counts).astype(int).tolist(), strict=True)), {}, estimated=True)


def _columns(sizes: Sizes, name: str, paths: set[str]) -> pa.Table:
    """Columns of all rows of a data set, in the order in which LLaMA-Factory reads its files; without any, as many rows."""
    parts, counted = [], 0
    for file in sizes.files(name):
        for part in _parts(file, paths):
            if not all(any(path == c or path.startswith(f"{c}.") for c in part.column_names) for path in paths):
                return part  # whose columns show what the path may have meant
            parts.append(part)
            counted += part.num_rows
            if sizes.most is not None and counted >= sizes.most:
                return pa.concat_tables(parts, promote_options="permissive").slice(0, sizes.most)
    return pa.concat_tables(parts, promote_options="permissive")


def _parts(file: Path, paths: set[str]) -> Iterator[pa.Table]:
    if file.suffix == ".parquet":
        opened = pq.ParquetFile(file)
        columns = _named(opened.schema_arrow.names, paths)
        for batch in opened.iter_batches(columns=columns):
            yield _table(batch, columns)
    elif file.suffix == ".csv":
        for batch in csv.open_csv(file):
            yield _table(batch, _named(batch.schema.names, paths))
    elif _begins(file, b"["):
        rows = json.loads(file.read_text(encoding="utf-8"))
        columns = _named([*dict.fromkeys(key for row in rows for key in row)], paths)
        yield pa.table(
            {**{c: [row.get(c) for row in rows] for c in columns}, _COUNT: np.zeros(len(rows), dtype=np.int8)}
        )
    else:
        for batch in jsonl.open_json(file, read_options=jsonl.ReadOptions(block_size=_BLOCK)):
            yield _table(batch, _named(batch.schema.names, paths))


_COUNT = "dataflex_rows"  # a column that says how many rows there are, where no other is read


def _table(batch: pa.RecordBatch, columns: list[str]) -> pa.Table:
    counted = pa.array(np.zeros(batch.num_rows, dtype=np.int8))
    return pa.table({_COUNT: counted, **{column: batch.column(column) for column in columns}})


def _named(columns: list[str], paths: set[str]) -> list[str]:
    """The columns that paths begin with; all where one is missing."""
    found = {path: [c for c in columns if path == c or path.startswith(f"{c}.")] for path in paths}
    return columns if not all(found.values()) else list(dict.fromkeys(c for each in found.values() for c in each))


def _begins(file: Path, start: bytes) -> bool:
    with file.open("rb") as stream:
        return stream.read(64).lstrip().startswith(start)
