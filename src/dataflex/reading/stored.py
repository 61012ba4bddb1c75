"""Rows as they are stored, from the files that a run has read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq


def stored_row(keys: Mapping[str, Any], dataset: str, row: int) -> dict[str, Any] | None:
    """Row `row`, from 0, of a data set that is one local JSON, JSON lines or Parquet file; None for any other, and where the file
    has gone. keys: LLaMA-Factory's, of the run."""
    folder = Path(str(keys.get("dataset_dir", "data")))
    try:
        entry = json.loads((folder / "dataset_info.json").read_text())[dataset]
        path = folder / str(entry["file_name"])
        if path.suffix == ".parquet":
            return _of_parquet(path, row)
        return _of_json(path, row) if path.suffix in (".json", ".jsonl") else None
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def _of_json(path: Path, row: int) -> dict[str, Any] | None:
    with path.open(encoding="utf-8") as file:
        if file.read(1) == "[":
            return dict(json.loads(path.read_text(encoding="utf-8"))[row])
        file.seek(0)
        lines = (line for line in file if line.strip())
        found = next(islice(lines, row, None), None)
    return None if found is None else dict(json.loads(found))


def _of_parquet(path: Path, row: int) -> dict[str, Any] | None:
    file = pq.ParquetFile(path)
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if row < rows:
            return dict(file.read_row_group(group).slice(row, 1).to_pylist()[0])
        row -= rows
    return None
