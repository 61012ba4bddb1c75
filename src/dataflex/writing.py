"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import secrets
import socket
import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from dataflex.errors import DataflexError, WriteError

UNTOUCHED = "; what was saved before is untouched"
PARTIAL = ".partial"
_OURS = re.compile(r"\.[0-9a-f]{16}\.partial$")
_NAME_BYTES = 200  # of a file's name that a temporary one takes over; names end at 255
# What a file system says when it can take no more, as against a path that is wrong.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_RUST = re.compile(r"\(os error (\d+)\)")
_WHERE = re.compile(r"^\[enforce fail at [^]]*\] \.? ?")
_NETWORK = {"requests", "urllib3", "httpx", "httpcore", "aiohttp", "huggingface_hub"}
_TORCH = ("inline_container", "PytorchStreamWriter", "iostream error")  # its writer, by its source and its stream


@contextmanager
def atomically(path: Path) -> Iterator[BinaryIO]:
    """A file to write to beside `path`, which takes its place once it is complete and on disk: a reader sees the old file or the
    whole new one, a crash of the machine included. WriteError if that fails; then nothing is left of it."""
    with reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(_temporary_name(path.name))
        with open(temporary, "xb", opener=_new_file) as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                file.close()  # a network file system may report a failed write as late as here
                os.replace(temporary, path)
            except BaseException:
                with suppress(OSError):
                    file.close()
                with suppress(OSError):
                    temporary.unlink()
                raise
        sync_folder(path.parent)


def write_atomically(path: Path, content: bytes | bytearray) -> None:
    with atomically(path) as file:
        file.write(content)


def write_table(path: Path, table: pa.Table) -> None:
    write_tables(path, [table])


def write_tables(path: Path, parts: Iterable[pa.Table]) -> None:
    """Parts of one table, at least one, as one Parquet file, which is there whole or not at all. WriteError if that fails."""
    parts = iter(parts)
    first = next(parts)
    with atomically(path) as file, pq.ParquetWriter(file, first.schema, compression="zstd") as writer:
        writer.write_table(first)
        for part in parts:
            writer.write_table(part)


def append(path: Path, content: bytes) -> None:
    """Add to the end of a file. WriteError if it fails; a part may have been written."""
    with reported(path), path.open("ab") as file:
        file.write(content)


def clear_leftovers(folder: Path) -> None:
    """Remove the temporary files that runs killed while writing have left in a folder that no other run writes to."""
    for path in folder.glob(f"*{PARTIAL}"):
        if _OURS.search(path.name) and path.is_file() and not path.is_symlink():
            with suppress(OSError):
                path.unlink()


def sync(path: Path) -> None:
    """Return once the content of a file is on disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """As `sync`, for the names in a folder, on file systems that can."""
    try:
        sync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EACCES, errno.EPERM):
            raise


@contextmanager
def reported(path: Path) -> Iterator[None]:
    """What cannot be written is a WriteError that names `path`."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(f"{path} cannot be written: {error.strerror or error}{UNTOUCHED}") from error


@contextmanager
def failed_writes_reported(message: str, *, only_full: bool = True) -> Iterator[None]:
    """A write that failed, by whatever library, becomes a DataflexError. message: with `{reason}`. only_full: where more is done
    than writing, only what a full or broken disk says is meant."""
    try:
        yield
    except DataflexError as error:
        if not isinstance(error, WriteError):
            raise
        raise DataflexError(message.format(reason=str(error).removesuffix(UNTOUCHED))) from error
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # what torch raises of a distributed checkpoint is no Exception
        reason = why_not_written(error, only_full=only_full)
        if reason is None:
            raise
        raise DataflexError(message.format(reason=reason)) from error


def why_not_written(error: BaseException, *, only_full: bool = True) -> str | None:
    """What a file system, or the writer of a library, said when it could not write; None for an error of another kind.

    OSError carries the number of its cause. Libraries in Rust (safetensors, tokenizers) raise errors of their own, or a plain
    Exception, with the number in their words. torch's writer loses the cause: its errors are known by the names in them.
    """
    met: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in met:
        met.add(id(found))
        for said in (found, *_of_ranks(found)):
            reason = _reason(said, only_full)
            if reason is not None:
                return reason
        found = found.__cause__
    return None


def _reason(error: BaseException, only_full: bool) -> str | None:
    words = " ".join(str(error).split())
    if isinstance(error, WriteError):
        return words.removesuffix(UNTOUCHED)
    if _of_network(error):
        return None
    if isinstance(error, OSError):
        number, reason = (
            error.errno,
            f"{error.filename}: {error.strerror}" if error.filename else error.strerror or words,
        )
    elif (numbered := _RUST.search(words)) is not None:
        number, reason = int(numbered[1]), os.strerror(int(numbered[1]))
    elif isinstance(error, RuntimeError) and any(sign in words for sign in _TORCH):
        return f"torch could not write, as on a full disk: {_WHERE.sub('', words)}"
    else:
        return None
    return reason if number in _NO_ROOM or not only_full else None


def _of_network(error: BaseException) -> bool:
    """Errors of connections are OSErrors too. One that names a file is about that file, as on a network file system."""
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return False
    makers = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return isinstance(error, ConnectionError | TimeoutError | socket.gaierror | ssl.SSLError) or bool(makers & _NETWORK)


def _of_ranks(error: BaseException) -> list[BaseException]:
    """What the ranks have met, of an error that torch raises about a distributed checkpoint."""
    failures = getattr(error, "failures", None)
    found = [said[0] for said in failures.values() if isinstance(said, tuple)] if isinstance(failures, dict) else []
    return [said for said in found if isinstance(said, BaseException)]


def _temporary_name(name: str) -> str:
    """One that nobody can foresee, for a file beside the one that it will become."""
    kept = os.fsencode(name)[:_NAME_BYTES].decode(errors="ignore")
    return f"{kept}.{secrets.token_hex(8)}{PARTIAL}"


def _new_file(path: str, flags: int) -> int:
    """Never a file that is there, nor one that a link leads to; its mode is what the user's umask leaves."""
    return os.open(path, flags | os.O_EXCL | os.O_NOFOLLOW, 0o666)
