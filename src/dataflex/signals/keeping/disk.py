"""Values of a signal on disk: written piece by piece, and read again after an interruption."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import xxhash

from dataflex.distributed.collectives import decide, rank
from dataflex.errors import DataflexError
from dataflex.writing import write_atomically

Run = tuple[int, int]
"""Of an order: from, and up to but not including."""

# Values that are measured together, where nothing is known about them.
_ROWS = 4096


class PieceFile:
    """The directory of one signal, for the process that writes it. Raises OSError.

        key.json       the key
        values.npy     float [count] or [count, K]
        done.jsonl     a line per complete piece, a run of the order, with a hash of its values

    Args:
        key: What the values depend on.
        count: Rows in all.
        order: Indices of the rows in the order of measurement, int64[count]; None: as they are stored.

    Attributes:
        runs: The runs on disk whose values match their hash.
    """

    def __init__(self, parent: Path, key: Mapping[str, Any], count: int, order: np.ndarray | None = None) -> None:
        digest = "as stored" if order is None else xxhash.xxh3_64_hexdigest(order.astype(np.int64).tobytes())
        text = json.dumps({**key, "rows": count, "order": digest}, indent=1, sort_keys=True, default=str)
        self.folder = parent / xxhash.xxh3_64_hexdigest(text.encode())
        self.order, self.count = order, count
        write_atomically(self.folder / "key.json", text.encode())
        self._values = self._found()
        self.runs = self._verified()

    def indices(self, run: Run) -> np.ndarray:
        """Of the rows of a run, ascending."""
        return rows_of_run(run, self.order)

    def read(self, run: Run) -> np.ndarray:
        """The values of a run that is there."""
        assert self._values is not None
        return np.array(self._values[self.indices(run)])

    def write(self, indices: np.ndarray, values: np.ndarray) -> None:
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
            _write_rows(file, int(self._values.offset), indices, values)  # type: ignore[union-attr]
            file.flush()
            os.fsync(file.fileno())
        lines = []
        for run in self._runs_of(indices):
            own = values if run[1] - run[0] == len(indices) else values[np.searchsorted(indices, self.indices(run))]
            lines.append(json.dumps({"from": run[0], "to": run[1], "hash": _hash(own)}) + "\n")
        with (self.folder / "done.jsonl").open("a") as done:
            done.write("".join(lines))
            done.flush()
            os.fsync(done.fileno())

    def values(self) -> np.ndarray:
        """All of them, mapped into memory; what is written to the array is not written to the file."""
        return np.load(self.folder / "values.npy", mmap_mode="c")  # type: ignore[no-any-return]

    @cached_property
    def _position(self) -> np.ndarray | None:
        """Of each row in the order."""
        if self.order is None:
            return None
        found = np.empty(self.count, dtype=np.int64)
        found[self.order] = np.arange(self.count)
        return found

    def _runs_of(self, indices: np.ndarray) -> list[Run]:
        at = indices if self._position is None else np.sort(self._position[indices])
        edges = np.flatnonzero(np.diff(at) != 1) + 1
        return [(int(part[0]), int(part[-1]) + 1) for part in np.split(at, edges) if len(part)]

    def _found(self) -> np.ndarray | None:
        try:
            values = np.load(self.folder / "values.npy", mmap_mode="r")
            return values if len(values) == self.count else None
        except (OSError, ValueError, EOFError):
            return None

    def _verified(self) -> list[Run]:
        if self._values is None:
            return []
        try:
            lines = (self.folder / "done.jsonl").read_text(errors="replace").splitlines()
        except OSError:
            return []
        found = []
        for line in lines:
            try:
                said = json.loads(line)
                run = (int(said["from"]), int(said["to"]))
                if 0 <= run[0] < run[1] <= self.count and _hash(self.read(run)) == said["hash"]:
                    found.append(run)
            except (ValueError, KeyError, TypeError, IndexError):  # a torn line
                continue
        return found


def rows_of_run(run: Run, order: np.ndarray | None) -> np.ndarray:
    """Indices of the rows of a run, ascending, int64[n]."""
    return np.arange(*run) if order is None else np.sort(order[run[0] : run[1]])


class DiskCache:
    """Values in a file below `folder`, which may hold those of many signals. DataflexError on every rank if it cannot
    be written.

    Rank 0 writes. It sends the values on disk to the other ranks, which keep them in a private file. Both files are
    memory-mapped.

    Args:
        key: As that of `PieceFile`.
        count: As that of `PieceFile`.
        order: As that of `PieceFile`.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any], count: int, order: np.ndarray | None = None) -> None:
        self._file: PieceFile | None = None
        self._parent = folder
        self._elsewhere: np.ndarray | None = None
        self.missing = np.ones(count, dtype=bool)

        def begin() -> list[Run]:
            self._file = PieceFile(folder, key, count, order)
            return self._file.runs

        for run in decide(lambda: self._or_end(begin)):
            indices = rows_of_run(run, order)
            self._put_elsewhere(indices, decide(lambda: self._file.read(run)))  # type: ignore[union-attr]  # noqa: B023
            self.missing[indices] = False

    def put(self, indices: np.ndarray, values: np.ndarray) -> None:
        decide(lambda: self._or_end(lambda: self._file.write(indices, values)))  # type: ignore[union-attr]
        self._put_elsewhere(indices, values)
        self.missing[indices] = False

    def values(self) -> np.ndarray:
        if self._file is not None:
            return self._file.values()
        assert self._elsewhere is not None
        return self._elsewhere

    def _put_elsewhere(self, indices: np.ndarray, values: np.ndarray) -> None:
        if rank() == 0:
            return
        if self._elsewhere is None:
            shape = (len(self.missing), *values.shape[1:])
            file = TemporaryFile()  # noqa: SIM115
            size = len(self.missing) * values[:1].nbytes
            self._or_end(lambda: os.posix_fallocate(file.fileno(), 0, size))  # a map of a full disk ends the process
            self._elsewhere = np.memmap(file, values.dtype, "w+", shape=shape)
        self._elsewhere[indices] = values

    def _or_end(self, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except OSError as error:
            raise DataflexError(
                f"what is measured cannot be kept in {self._parent} ({error.strerror or error}); what is there is taken up"
                " when the command is run again"
            ) from error


def kept_values(
    folder: Path,
    key: Mapping[str, Any],
    count: int,
    measure: Callable[[np.ndarray], np.ndarray],
    edges: np.ndarray | None = None,
) -> np.ndarray:
    """measure(indices) for all of range(count), equal on every rank; only what `folder` does not have yet is measured.

    edges: where pieces begin and the last one ends, ascending from 0 to `count`; None: every 4096 values.
    """
    if not count:
        return np.empty(0)
    if edges is None:
        edges = np.append(np.arange(0, count, _ROWS), count)
    cache = DiskCache(folder, key, count)
    for begin, end in pairwise(edges.tolist()):
        if cache.missing[begin:end].any():
            cache.put(np.arange(begin, end), measure(np.arange(begin, end)))
    return cache.values()


def _write_rows(file: Any, start: int, rows: np.ndarray, values: np.ndarray) -> None:
    """Rows of an array that begins `start` bytes into a file, runs of neighbours at once."""
    width = values[:1].nbytes
    for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) != 1) + 1):
        file.seek(start + int(rows[run[0]]) * width)
        file.write(values[run[0] : run[-1] + 1].tobytes())


def _hash(values: np.ndarray) -> str:
    return xxhash.xxh3_64_hexdigest(np.ascontiguousarray(values).tobytes())
