"""The run's own files: resolved configuration, ledger, selections and exposure. Written by rank 0 only."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from dataflex.plan.plan import Domains
from dataflex.writing import append, clear_leftovers, write_atomically, write_tables

DIRECTORY = "dataflex"
LEDGER = "ledger.jsonl"
EXPOSURE = "exposure.parquet"
ROWS_AT_ONCE = 1 << 20  # of a selection's table; also the size of its row groups


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """The decisions of a ledger file in order; a torn last line (a run killed while writing) is left out."""
    records = []
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            try:
                records.append(json.loads(line))
            except ValueError:  # not JSON, or not even text
                break
    return records


class RunFiles:
    """<output_dir>/dataflex/, appended to as the run goes."""

    def __init__(self, output_dir: str | Path, domains: Domains, *, writes: bool) -> None:
        self.path, self.domains, self.writes = Path(output_dir) / DIRECTORY, domains, writes
        self.ledger_text = bytearray()  # grows in place, whatever the number of decisions

    def start(self, config: dict[str, Any]) -> None:
        """A new run: what an earlier one left in the directory is removed."""
        if not self.writes:
            return
        shutil.rmtree(self.path / "selections", ignore_errors=True)
        clear_leftovers(self.path)
        (self.path / EXPOSURE).unlink(missing_ok=True)
        write_atomically(self.path / "config.yaml", yaml.safe_dump(config, sort_keys=False).encode())
        write_atomically(self.path / LEDGER, b"")

    def cut_back(self, config: dict[str, Any], ledger: bytes, step: int, exposure: Path) -> None:
        """A resumed run: the files say what was known at the checkpoint of `step`, and nothing later."""
        self.ledger_text = bytearray(ledger)
        if not self.writes:
            return
        for folder in (self.path, self.path / "selections"):
            clear_leftovers(folder)
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
            append(self.path / LEDGER, line)

    def write_selection(
        self, step: int, scores: np.ndarray | None, selected: np.ndarray, candidates: np.ndarray | None
    ) -> str:
        """selections/step_<n>.parquet over `candidates` (ids, ascending; None: every row), with their scores (of all rows, by
        id) and whether each was selected. Written a part at a time: of all rows at once the columns would take many bytes each.

        Returns the path relative to the run directory."""
        relative = f"selections/step_{step}.parquet"
        if not self.writes:
            return relative
        chosen = np.zeros(self.domains.total, dtype=bool)
        chosen[selected] = True
        times: np.ndarray | None = None
        if np.count_nonzero(chosen) < len(selected):  # drawn with replacement
            times = np.bincount(selected, minlength=self.domains.total)
        names = pa.array(self.domains.names)
        count = self.domains.total if candidates is None else len(candidates)

        def parts() -> Iterator[pa.Table]:
            for begin in range(0, max(count, 1), ROWS_AT_ONCE):
                end = min(begin + ROWS_AT_ONCE, count)
                ids = np.arange(begin, end, dtype=np.int64) if candidates is None else candidates[begin:end]
                score = np.full(len(ids), np.nan) if scores is None else scores[ids]
                table = pa.table(
                    {
                        "sample_id": ids,
                        "domain": pa.DictionaryArray.from_arrays(self.domains.of(ids).astype(np.int32), names),
                        "score": pa.array(score, type=pa.float64(), from_pandas=True),
                        "selected": chosen[ids],
                    }
                )
                yield table if times is None else table.append_column("times", pa.array(times[ids]))

        write_tables(self.path / relative, parts())
        return relative


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"cannot write {type(value).__name__} to the ledger")
