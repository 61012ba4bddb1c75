"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq


@contextmanager
def atomically(path: Path) -> Iterator[BinaryIO]:
    """A file to write to beside `path`, which takes its place once it is complete and on disk: a reader sees the old file or the
    whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_atomically(path: Path, content: bytes | bytearray) -> None:
    with atomically(path) as file:
        file.write(content)


def write_table(path: Path, table: pa.Table) -> None:
    write_tables(path, [table])


def write_tables(path: Path, parts: Iterable[pa.Table]) -> None:
    """Parts of one table, at least one, as one file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    parts = iter(parts)
    first = next(parts)
    with pq.ParquetWriter(temporary, first.schema, compression="zstd") as writer:
        writer.write_table(first)
        for part in parts:
            writer.write_table(part)
    os.replace(temporary, path)
