"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dataflex.errors import WriteError


def write_atomically(path: Path, content: bytes) -> None:
    """Write and fsync beside `path`, then rename: a reader sees the old file or the whole new one. WriteError if it fails."""
    with _replacing(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_table(path: Path, table: pa.Table) -> None:
    """The same for a Parquet file."""
    with _replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


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
        raise WriteError(
            f"{path} cannot be written: {error.strerror or error}; what was saved before is untouched"
        ) from error


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
