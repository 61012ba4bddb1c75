"""The run's own files: resolved configuration, ledger, selections and exposure. Written by rank 0 only."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from dataflex.trainer.plan import Domains

DIRECTORY = "dataflex"
LEDGER = "ledger.jsonl"
EXPOSURE = "exposure.parquet"


def write_atomically(path: Path, content: bytes) -> None:
    """Write and fsync beside `path`, then rename: a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """The decisions of a ledger file in order; a torn last line (a run killed while writing) is left out."""
    records = []
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return records


class RunFiles:
    """<output_dir>/dataflex/, appended to as the run goes."""

    def __init__(self, output_dir: str | Path, domains: Domains, *, writes: bool) -> None:
        self.path, self.domains, self.writes = Path(output_dir) / DIRECTORY, domains, writes
        self.ledger_text = b""

    def start(self, config: dict[str, Any]) -> None:
        """A new run: what an earlier one left in the directory is removed."""
        if not self.writes:
            return
        shutil.rmtree(self.path / "selections", ignore_errors=True)
        (self.path / EXPOSURE).unlink(missing_ok=True)
        write_atomically(self.path / "config.yaml", yaml.safe_dump(config, sort_keys=False).encode())
        write_atomically(self.path / LEDGER, b"")

    def cut_back(self, config: dict[str, Any], ledger: bytes, step: int, exposure: Path) -> None:
        """A resumed run: the files say what was known at the checkpoint of `step`, and nothing later."""
        self.ledger_text = ledger
        if not self.writes:
            return
        for file in (self.path / "selections").glob("step_*.parquet"):
            if int(file.stem.removeprefix("step_")) >= step:
                file.unlink()
        if exposure.is_file():
            write_atomically(self.path / EXPOSURE, exposure.read_bytes())
        else:
            (self.path / EXPOSURE).unlink(missing_ok=True)
        write_atomically(self.path / "config.yaml", yaml.safe_dump(config, sort_keys=False).encode())
        write_atomically(self.path / LEDGER, ledger)

    def record(self, decision: dict[str, Any]) -> None:
        """Append one line. The text is kept on every rank, since a checkpoint holds it whole."""
        line = json.dumps(decision, default=_plain).encode() + b"\n"
        self.ledger_text += line
        if self.writes:
            with (self.path / LEDGER).open("ab") as file:
                file.write(line)

    def write_selection(
        self, step: int, scores: np.ndarray | None, selected: np.ndarray, candidates: np.ndarray
    ) -> str:
        """selections/step_<n>.parquet over `candidates` (ids), with their scores and whether each was selected.

        Returns the path relative to the run directory."""
        relative = f"selections/step_{step}.parquet"
        if self.writes:
            names = pa.array(self.domains.names)
            table = pa.table(
                {
                    "sample_id": candidates,
                    "domain": pa.DictionaryArray.from_arrays(self.domains.of(candidates).astype(np.int32), names),
                    "score": pa.array(
                        np.full(len(candidates), np.nan) if scores is None else scores,
                        type=pa.float64(),
                        from_pandas=True,
                    ),
                    "selected": np.isin(candidates, selected),
                }
            )
            write_table(self.path / relative, table)
        return relative


def write_table(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    pq.write_table(table, temporary, compression="zstd")
    os.replace(temporary, path)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"cannot write {type(value).__name__} to the ledger")


class Exposure:
    """Which rows were trained on, how often, with what loss and when; only rows that were touched take memory.

    Each rank notes its own rows; `table` merges them. Between two merges a note is 24 bytes a row served.
    """

    def __init__(self, domains: Domains) -> None:
        self.domains = domains
        self.ids = np.empty(0, dtype=np.int64)
        self.seen = np.empty(0, dtype=np.int64)
        self.loss = np.empty(0, dtype=np.float32)
        self.step = np.empty(0, dtype=np.int64)

    def merge(self, ids: np.ndarray, loss: np.ndarray, step: np.ndarray) -> None:
        """Add notes (one per row served, any order; loss NaN where it is not known)."""
        if not len(ids):
            return
        order = np.lexsort((step, ids))
        ids, loss, step = ids[order], loss[order], step[order]
        last = np.flatnonzero(np.append(ids[1:] != ids[:-1], True))
        first = np.append(0, last[:-1] + 1)
        new_ids, new_seen = ids[last], last - first + 1
        merged = np.union1d(self.ids, new_ids)
        seen = np.zeros(len(merged), dtype=np.int64)
        losses = np.full(len(merged), np.nan, dtype=np.float32)
        steps = np.zeros(len(merged), dtype=np.int64)
        old, new = np.searchsorted(merged, self.ids), np.searchsorted(merged, new_ids)
        seen[old], losses[old], steps[old] = self.seen, self.loss, self.step
        seen[new] += new_seen
        losses[new], steps[new] = loss[last], step[last]
        self.ids, self.seen, self.loss, self.step = merged, seen, losses, steps

    def table(self) -> pa.Table:
        names = pa.array(self.domains.names)
        return pa.table(
            {
                "sample_id": self.ids,
                "domain": pa.DictionaryArray.from_arrays(self.domains.of(self.ids).astype(np.int32), names),
                "times_seen": self.seen,
                "last_loss": pa.array(self.loss, from_pandas=True),
                "last_step": self.step,
            }
        )

    def load(self, path: Path) -> None:
        table = pq.read_table(path)
        self.ids = table["sample_id"].to_numpy()
        self.seen = table["times_seen"].to_numpy()
        self.loss = table["last_loss"].to_numpy().astype(np.float32)
        self.step = table["last_step"].to_numpy()
