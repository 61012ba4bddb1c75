"""Writes rows in a file that LLaMA-Factory loads, so that every value is read back as it was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataflex.errors import DataflexError
from dataflex.writing import atomically, reported

# What Hugging Face's loaders of text call themselves; rows that were made in memory have none.
_TEXT_LOADERS = ("json", "csv", "text", None)
_ROWS = 1000
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


def write_rows(folder: Path, name: str, rows: Any) -> str:
    """Write a Hugging Face Dataset to <name>.jsonl, .parquet or .arrow in `folder`, and return the file's name.

    Rows that were text stay text where JSON holds them exactly, all others become Parquet; Arrow is for the few types that
    neither holds. Each file is loaded again as LLaMA-Factory would, and compared to the bit; the first that is equal stays.
    DataflexError if none is, WriteError if the disk is full.
    """
    text = rows.info.builder_name in _TEXT_LOADERS
    for kind in ("json", "parquet", "arrow") if text else ("parquet", "arrow"):
        file = folder / f"{name}.{'jsonl' if kind == 'json' else kind}"
        if _written(file, kind, rows) and _reads_back(file, kind, rows):
            return file.name
        file.unlink(missing_ok=True)
    raise DataflexError(
        f"{name}: these rows cannot be written as JSON, Parquet or Arrow so that they are read as they were"
    )


def _written(path: Path, kind: str, rows: Any) -> bool:
    """False: the format cannot hold them."""
    try:
        with atomically(path) as file:
            {"json": _write_json, "parquet": _write_parquet, "arrow": _write_arrow}[kind](file, rows)
    except OSError:
        raise
    except (pa.ArrowException, TypeError, ValueError):
        return False
    return True


def _write_json(file: BinaryIO, rows: Any) -> None:
    for table in _tables(rows):
        for row in table.to_pylist():
            line = json.dumps(row, ensure_ascii=False, allow_nan=False, default=_moment)
            file.write(line.encode() + b"\n")


def _moment(value: Any) -> str:
    """JSON has no moments, but a loader takes text like this for one."""
    if isinstance(value, datetime):
        return value.isoformat(sep=" ")
    raise TypeError(f"JSON holds no {type(value).__name__}")


def _write_parquet(file: BinaryIO, rows: Any) -> None:
    with pq.ParquetWriter(file, _schema(rows), compression="zstd") as writer:
        for table in _tables(rows):
            writer.write_table(table)


def _write_arrow(file: BinaryIO, rows: Any) -> None:
    with pa.ipc.new_stream(file, _schema(rows)) as writer:
        for table in _tables(rows):
            writer.write_table(table)


def _schema(rows: Any) -> pa.Schema:
    """With the note of what Hugging Face takes the columns for: images, class labels."""
    return next(_tables(rows)).schema.with_metadata(rows.features.arrow_schema.metadata)


def _tables(rows: Any) -> Iterator[pa.Table]:
    yield from rows.with_format("arrow").iter(batch_size=_ROWS)


def _reads_back(path: Path, kind: str, rows: Any) -> bool:
    with reported(path), TemporaryDirectory(dir=path.parent) as cache, _silent():
        try:
            found = datasets.load_dataset(kind, data_files=[str(path)], split="train", cache_dir=cache)
        except Exception as error:
            cause: BaseException | None = error
            while cause is not None:
                if isinstance(cause, OSError):
                    raise cause from None
                cause = cause.__cause__
            return False
        return len(found) == len(rows) and all(map(_same, _tables(found), _tables(rows)))


@contextmanager
def _silent() -> Iterator[None]:
    shown = not datasets.utils.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _same(found: pa.Table, wanted: pa.Table) -> bool:
    return found.column_names == wanted.column_names and all(
        _same_values(_whole(found[name]), _whole(wanted[name])) for name in wanted.column_names
    )


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks != 1 else column.chunk(0)


def _same_values(found: pa.Array, wanted: pa.Array) -> bool:
    """Equal in type and to the bit: NaN is NaN, and -0.0 is not 0.0. Where all are missing, a type cannot be told in text."""
    if isinstance(wanted, pa.ExtensionArray):
        return isinstance(found, pa.ExtensionArray) and _same_values(found.storage, wanted.storage)
    if not found.is_valid().equals(wanted.is_valid()):
        return False
    one, other = found.type, wanted.type
    if pa.types.is_null(one):
        return True
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        return [f.name for f in one] == [f.name for f in other] and all(
            map(_same_values, found.flatten(), wanted.flatten())
        )
    if one.id == other.id and any(kind(one) for kind in _LISTS):
        lengths = pc.list_value_length(found).equals(pc.list_value_length(wanted))
        return bool(lengths) and _same_values(found.flatten(), wanted.flatten())
    if one == other and pa.types.is_floating(one):
        bits = {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}[one.bit_width]
        return bool(found.view(bits).equals(wanted.view(bits)))
    return bool(one == other and found.equals(wanted))
