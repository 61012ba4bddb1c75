"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from dataflex.errors import WriteError

UNTOUCHED = "; what was saved before is untouched"


@contextmanager
def atomically(path: Path) -> Iterator[BinaryIO]:
    """A file to write to beside `path`, which takes its place once it is complete and on disk: a reader sees the old file or the
    whole new one. WriteError if that fails."""
    with _replacing(path) as temporary, temporary.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, content: bytes | bytearray) -> None:
    with atomically(path) as file:
        file.write(content)


def write_table(path: Path, table: pa.Table) -> None:
    write_tables(path, [table])


def write_tables(path: Path, parts: Iterable[pa.Table]) -> None:
    """Parts of one table, at least one, as one Parquet file, which is there whole or not at all. WriteError if that fails."""
    parts = iter(parts)
    first = next(parts)
    with _replacing(path) as temporary, pq.ParquetWriter(temporary, first.schema, compression="zstd") as writer:
        writer.write_table(first)
        for part in parts:
            writer.write_table(part)


def append(path: Path, content: bytes) -> None:
    """Add to the end of a file. WriteError if it fails; a part may have been written."""
    with reported(path), path.open("ab") as file:
        file.write(content)


@contextmanager
def reported(path: Path) -> Iterator[None]:
    """What cannot be written is a WriteError that names `path`."""
    try:
        yield
    except OSError as error:
        raise WriteError(f"{path} cannot be written: {error.strerror or error}{UNTOUCHED}") from error


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    temporary = path.with_name(path.name + ".partial")
    with reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
