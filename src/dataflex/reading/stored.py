"""Rows as they are stored, from the files that a run has read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

_ANSWERS = ("response", "output", "chosen", "answer")
_SPEAKERS = ("assistant", "gpt", "function_call")


def stored_row(keys: Mapping[str, Any], dataset: str, row: int) -> dict[str, Any] | None:
    """Row `row`, from 0, of a data set that is one local JSON, JSON lines or Parquet file; None for any other, and where the file
    has gone. keys: LLaMA-Factory's, of the run."""
    try:
        path = _folder(keys) / str(_entry(keys, dataset)["file_name"])
        if path.suffix == ".parquet":
            return _of_parquet(path, row)
        return _of_json(path, row) if path.suffix in (".json", ".jsonl") else None
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def stored_texts(keys: Mapping[str, Any], dataset: str, row: int) -> tuple[str, str] | None:
    """What a stored row asks, and what it answers; None as for `stored_row`."""
    found = stored_row(keys, dataset, row)
    return None if found is None else texts_of(found, _entry(keys, dataset))


def texts_of(row: Mapping[str, Any], entry: Mapping[str, Any]) -> tuple[str, str]:
    """What a stored row asks, and what it answers, as far as its format in dataset_info.json says."""
    columns = {**{name: name for name in ("messages", "conversations")}, **(entry.get("columns") or {})}
    talk = next((row[c] for c in columns.values() if isinstance(row.get(c), list) and row[c]), None)
    if talk is not None and isinstance(talk[0], dict):
        tags = entry.get("tags") or {}
        role, content = tags.get("role_tag", "from"), tags.get("content_tag", "value")
        speakers = {*_SPEAKERS, tags.get("assistant_tag")}
        turns = [(str(turn.get(role)), str(turn.get(content) or "")) for turn in talk if isinstance(turn, dict)]
        asked, said = ("\n".join(t for r, t in turns if (r in speakers) == answers) for answers in (False, True))
        return asked, said
    answers = {columns[name] for name in ("response", "chosen") if name in columns} or set(_ANSWERS)
    texts = {name: value for name, value in row.items() if isinstance(value, str)}
    known = set(columns.values()) if entry.get("columns") else set(texts)
    asked = "\n".join(value for name, value in texts.items() if name in known and name not in answers)
    return asked, "\n".join(value for name, value in texts.items() if name in answers)


def _folder(keys: Mapping[str, Any]) -> Path:
    return Path(str(keys.get("dataset_dir", "data")))


def _entry(keys: Mapping[str, Any], dataset: str) -> dict[str, Any]:
    """Of a data set in dataset_info.json."""
    return dict(json.loads((_folder(keys) / "dataset_info.json").read_text())[dataset])


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
