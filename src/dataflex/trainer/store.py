"""Values of a signal on disk: memory-mapped, written a shard at a time, taken up again where a measurement was cut off."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch
import xxhash

from dataflex.trainer.collectives import decide
from dataflex.writing import write_atomically

# Rows of a shard.
_SHARD = 4096


class SignalStore:
    """A directory with one subdirectory per signal, named by a hash of all that its values depend on (`key`):

        key.json       what they depend on
        values.npy     float [N] or [N, K]
        done.jsonl     a line per shard that is complete, with a hash of its values

    A shard whose values do not match its hash is measured again. writes: whether this rank is the one that writes.
    """

    def __init__(self, folder: Path, *, writes: bool) -> None:
        self.folder, self.writes = folder, writes

    def measured(
        self,
        key: Mapping[str, Any],
        rows: int,
        measure: Callable[[np.ndarray], np.ndarray],
        edges: np.ndarray | None = None,
    ) -> np.ndarray:
        """measure(places) for all of range(rows), equal on every rank; only what is not there yet is measured.

        edges: where shards begin and the last one ends, ascending from 0 to `rows`; None: every 4096 rows."""
        if edges is None:
            edges = np.append(np.arange(0, rows, _SHARD), rows)
        text = json.dumps({**key, "rows": rows}, indent=1, sort_keys=True, default=str)
        folder = self.folder / xxhash.xxh3_64_hexdigest(text.encode())
        if self.writes:
            write_atomically(folder / "key.json", text.encode())
        kept, done = _kept(folder, edges) if self.writes else (None, set[int]())
        done = decide(lambda: done)
        out: np.ndarray | None = kept
        for start, stop in pairwise(edges.tolist()):
            if start in done:
                values = decide(lambda: np.asarray(out[start:stop]))  # type: ignore[index]  # noqa: B023
            else:
                values = measure(np.arange(start, stop))
            if out is None:
                out = self._whole(folder, (rows, *values.shape[1:]), values.dtype)
            if start not in done or not self.writes:
                out[start:stop] = values
            if start not in done and self.writes:
                _seal(folder, out, start, stop)
        return np.empty(0) if out is None else out

    def _whole(self, folder: Path, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        if not self.writes:  # backed by a file that nobody else sees, since it may not fit into memory
            return np.memmap(TemporaryFile(), dtype, "w+", shape=shape)
        (folder / "done.jsonl").unlink(missing_ok=True)
        return np.lib.format.open_memmap(folder / "values.npy", mode="w+", dtype=dtype, shape=shape)


def _seal(folder: Path, values: np.ndarray, start: int, stop: int) -> None:
    assert isinstance(values, np.memmap)
    values.flush()
    line = json.dumps({"start": start, "stop": stop, "hash": _hash(values[start:stop])})
    with (folder / "done.jsonl").open("a") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def _kept(folder: Path, edges: np.ndarray) -> tuple[np.ndarray | None, set[int]]:
    """The values, and the starts of the shards that are there whole, as they were written; None where there are none."""
    try:
        values = np.load(folder / "values.npy", mmap_mode="r+")
        lines = (folder / "done.jsonl").read_text().splitlines()
    except (OSError, ValueError, EOFError):
        return None, set()
    found, shards = set(), set(pairwise(edges.tolist()))
    for line in lines:
        try:
            shard = json.loads(line)
            start, stop = int(shard["start"]), int(shard["stop"])
            if (start, stop) in shards and _hash(values[start:stop]) == shard["hash"]:
                found.add(start)
        except (ValueError, KeyError, TypeError):  # a torn line
            continue
    return (values, found) if found and len(values) == edges[-1] else (None, set())


def _hash(values: np.ndarray) -> str:
    return xxhash.xxh3_64_hexdigest(np.ascontiguousarray(values).tobytes())


def model_fingerprint(model: torch.nn.Module) -> str:
    """A hash of the names, shapes and types of all parameters and of some thousands of evenly spaced values of each."""
    digest = xxhash.xxh3_128()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().reshape(-1)
        digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
        digest.update(flat[:: max(1, len(flat) // 4096)].float().cpu().numpy().tobytes())
    return digest.hexdigest()
