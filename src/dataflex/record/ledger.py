"""The run's own files: resolved configuration, ledger, selections and exposure. Written by rank 0 only."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from dataflex.plan.plan import Domains
from dataflex.record.order_file import OrderRecord, write_order
from dataflex.record.selection_file import SelectionRecord, write_selection
from dataflex.writing import append, clear_leftovers, write_atomically

if TYPE_CHECKING:
    from dataflex.data.texts import RowText  # which needs torch

DIRECTORY = "dataflex"
LEDGER = "ledger.jsonl"
EXPOSURE = "exposure.parquet"
SELECTIONS, ORDERS = "selections", "orders"
CLUSTERS = "clusters.parquet"


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
    """<output_dir>/dataflex/, appended to as the run goes. texts: ids of rows -> what they say."""

    def __init__(
        self,
        output_dir: str | Path,
        domains: Domains,
        *,
        writes: bool,
        texts: Callable[[list[int]], list[RowText]] | None = None,
    ) -> None:
        self.path, self.domains, self.writes, self.texts = Path(output_dir) / DIRECTORY, domains, writes, texts
        self.ledger_text = bytearray()  # grows in place, whatever the number of decisions

    def start(self, config: dict[str, Any]) -> None:
        """A new run: what an earlier one left in the directory is removed."""
        if not self.writes:
            return
        for folder in (SELECTIONS, ORDERS):
            shutil.rmtree(self.path / folder, ignore_errors=True)
        clear_leftovers(self.path)
        (self.path / EXPOSURE).unlink(missing_ok=True)
        if (config.get("dataflex", {}).get("domains") or {}).get("by") != "cluster":
            (self.path / CLUSTERS).unlink(missing_ok=True)
        write_atomically(self.path / "config.yaml", yaml.safe_dump(config, sort_keys=False).encode())
        write_atomically(self.path / LEDGER, b"")

    def cut_back(self, config: dict[str, Any], ledger: bytes, step: int, exposure: Path) -> None:
        """A resumed run: the files say what was known at the checkpoint of `step`, and nothing later."""
        self.ledger_text = bytearray(ledger)
        if not self.writes:
            return
        for folder in (self.path, self.path / SELECTIONS, self.path / ORDERS):
            clear_leftovers(folder)
        for file in [file for kind in (SELECTIONS, ORDERS) for file in (self.path / kind).glob("step_*.*")]:
            number = file.stem.removeprefix("step_")
            if file.suffix in (".parquet", ".jsonl") and number.isdigit() and int(number) >= step:
                file.unlink()
        if exposure.is_file():
            write_atomically(self.path / EXPOSURE, exposure.read_bytes())
        else:
            (self.path / EXPOSURE).unlink(missing_ok=True)
        write_atomically(self.path / "config.yaml", yaml.safe_dump(config, sort_keys=False).encode())
        write_atomically(self.path / LEDGER, ledger)

    def copy_clusters(self, checkpoint: Path) -> None:
        """The clusters that are the domains of this run, where there are any, into a checkpoint."""
        if (file := self.path / CLUSTERS).is_file():
            write_atomically(checkpoint / DIRECTORY / CLUSTERS, file.read_bytes())

    def record(self, decision: dict[str, Any]) -> None:
        """Append one line. The text is kept on every rank, since a checkpoint holds it whole."""
        line = json.dumps(decision, default=_plain).encode() + b"\n"
        self.ledger_text += line
        if self.writes:
            append(self.path / LEDGER, line)

    def write_order(self, step: int, record: OrderRecord) -> str:
        """orders/step_<n>.parquet. Returns the path relative to the run directory."""
        relative = f"{ORDERS}/step_{step}.parquet"
        if self.writes:
            write_order(self.path / relative, record)
        return relative

    def write_selection(self, step: int, record: SelectionRecord) -> str:
        """selections/step_<n>.parquet, and some of the rows with their text beside it.

        Returns the path relative to the run directory."""
        relative = f"{SELECTIONS}/step_{step}.parquet"
        if self.writes:
            write_selection(self.path / relative, record, self.texts)
        return relative


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"cannot write {type(value).__name__} to the ledger")
