"""Values of a signal on disk: written a shard at a time, taken up again where a measurement was cut off."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import xxhash

from dataflex.errors import DataflexError
from dataflex.signals.batching import Places
from dataflex.trainer.collectives import decide, rank
from dataflex.writing import write_atomically

# Rows of a shard, where nothing is known about their lengths.
_ROWS = 4096


class ShardFile:
    """The directory of one signal, for the process that writes it. key: what the values depend on; count: rows in all; rows:
    places of each shard.

        key.json       the key
        values.npy     float [count] or [count, K]
        done.jsonl     a line per shard that is complete, with a hash of its values

    done: the shards that are there as they were written; one that does not match its hash is not. Raises OSError.
    """

    def __init__(self, parent: Path, key: Mapping[str, Any], count: int, rows: Sequence[Places]) -> None:
        composed = xxhash.xxh3_64()
        for part in rows:
            composed.update(repr(part).encode() if isinstance(part, slice) else part.tobytes() + b"|")
        whole = {**key, "rows": count, "shards": composed.hexdigest()}
        text = json.dumps(whole, indent=1, sort_keys=True, default=str)
        self.folder = parent / xxhash.xxh3_64_hexdigest(text.encode())
        self.rows, self.count = rows, count
        write_atomically(self.folder / "key.json", text.encode())
        self._values = self._found()
        self.done = self._verified()

    def read(self, shard: int) -> np.ndarray:
        """The values of a shard that is done."""
        assert self._values is not None
        return np.array(self._values[self.rows[shard]])

    def write(self, shard: int, values: np.ndarray) -> None:
        """Not through the map: a full disk would then end the process instead of raising OSError."""
        path = self.folder / "values.npy"
        if self._values is None:
            (self.folder / "done.jsonl").unlink(missing_ok=True)
            shape = (self.count, *values.shape[1:])
            with path.open("wb") as file:
                form = {"descr": np.lib.format.dtype_to_descr(values.dtype), "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, form)
                file.truncate(file.tell() + self.count * values[:1].nbytes)
            self._values = np.load(path, mmap_mode="r")
        with path.open("r+b") as file:
            _write_rows(file, int(self._values.offset), self.rows[shard], values)  # type: ignore[union-attr]
            file.flush()
            os.fsync(file.fileno())
        line = json.dumps({"shard": shard, "hash": _hash(values)})
        with (self.folder / "done.jsonl").open("a") as done:
            done.write(f"{line}\n")
            done.flush()
            os.fsync(done.fileno())

    def values(self) -> np.ndarray:
        """All of them, mapped into memory; what is written to the array is not written to the file."""
        return np.load(self.folder / "values.npy", mmap_mode="c")  # type: ignore[no-any-return]

    def _found(self) -> np.ndarray | None:
        try:
            values = np.load(self.folder / "values.npy", mmap_mode="r")
            return values if len(values) == self.count else None
        except (OSError, ValueError, EOFError):
            return None

    def _verified(self) -> set[int]:
        if self._values is None:
            return set()
        try:
            lines = (self.folder / "done.jsonl").read_text(errors="replace").splitlines()
        except OSError:
            return set()
        found = set()
        for line in lines:
            try:
                shard = json.loads(line)
                if _hash(self.read(shard["shard"])) == shard["hash"]:
                    found.add(int(shard["shard"]))
            except (ValueError, KeyError, TypeError, IndexError):  # a torn line
                continue
        return found


class SignalStore:
    """A directory with one subdirectory per signal. Rank 0 writes; what it finds there it sends to the others. DataflexError
    on every rank if it cannot be written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self, key: Mapping[str, Any], count: int, rows: Sequence[Places]) -> Stored:
        return Stored(self.folder, key, count, rows)

    def measured(
        self,
        key: Mapping[str, Any],
        rows: int,
        measure: Callable[[np.ndarray], np.ndarray],
        edges: np.ndarray | None = None,
    ) -> np.ndarray:
        """measure(places) for all of range(rows), equal on every rank; only what is not there yet is measured.

        edges: where shards begin and the last one ends, ascending from 0 to `rows`; None: every 4096 rows."""
        if not rows:
            return np.empty(0)
        if edges is None:
            edges = np.append(np.arange(0, rows, _ROWS), rows)
        stored = self.open(key, rows, [slice(a, b) for a, b in pairwise(edges.tolist())])
        for shard in stored.missing:
            stored.put(shard, measure(np.arange(edges[shard], edges[shard + 1])))
        return stored.values()


class Stored:
    """A `Keep` on disk: on rank 0 the file itself is the values, memory-mapped, on the others a file that nobody else sees."""

    def __init__(self, folder: Path, key: Mapping[str, Any], count: int, rows: Sequence[Places]) -> None:
        self._file: ShardFile | None = None
        self._parent, self._rows, self._count = folder, rows, count
        self._elsewhere: np.ndarray | None = None

        def begin() -> list[int]:
            self._file = ShardFile(folder, key, count, rows)
            return sorted(self._file.done)

        done = decide(lambda: self._or_end(begin))
        self.missing: Sequence[int] = sorted(set(range(len(rows))) - set(done))
        for shard in done:
            self._put_elsewhere(shard, decide(lambda: self._file.read(shard)))  # type: ignore[union-attr]  # noqa: B023

    def put(self, shard: int, values: np.ndarray) -> None:
        decide(lambda: self._or_end(lambda: self._file.write(shard, values)))  # type: ignore[union-attr]
        self._put_elsewhere(shard, values)

    def values(self) -> np.ndarray:
        if self._file is not None:
            return self._file.values()
        assert self._elsewhere is not None
        return self._elsewhere

    def _put_elsewhere(self, shard: int, values: np.ndarray) -> None:
        if rank() == 0:
            return
        if self._elsewhere is None:
            shape = (self._count, *values.shape[1:])
            file = TemporaryFile()  # noqa: SIM115
            size = self._count * values[:1].nbytes
            self._or_end(lambda: os.posix_fallocate(file.fileno(), 0, size))  # a map of a full disk ends the process
            self._elsewhere = np.memmap(file, values.dtype, "w+", shape=shape)
        self._elsewhere[self._rows[shard]] = values

    def _or_end(self, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except OSError as error:
            raise DataflexError(
                f"what is measured cannot be kept in {self._parent} ({error.strerror or error}); what is there is taken up"
                " when the command is run again"
            ) from error


def _write_rows(file: Any, start: int, rows: Places, values: np.ndarray) -> None:
    """Rows of an array that begins `start` bytes into a file, runs of neighbours at once."""
    width = values[:1].nbytes
    if isinstance(rows, slice):
        file.seek(start + rows.start * width)
        file.write(values.tobytes())
        return
    for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) != 1) + 1):
        file.seek(start + int(rows[run[0]]) * width)
        file.write(values[run[0] : run[-1] + 1].tobytes())


def _hash(values: np.ndarray) -> str:
    return xxhash.xxh3_64_hexdigest(np.ascontiguousarray(values).tobytes())
