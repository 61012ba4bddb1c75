"""The size of data sets: rows are counted, tokens are estimated from a sample of rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dataflex.reading.stored import texts_of
from dataflex.values import integer

_SAMPLE = 200  # rows that are read for the estimate, evenly spaced
_CHARACTERS = 4.0  # of a token, where the model has no tokenizer.json on this machine


@dataclass(frozen=True)
class DataSet:
    name: str
    rows: int | None
    """That a run uses; None: not known before it is loaded, as of a data set on the hub."""
    stored: int | None
    """In its file."""
    tokens: float | None
    """Of a row, on average, at most cutoff_len."""
    learned: float | None
    """Of these, tokens of answers; in pre-training all."""


class Sizes:
    """Sizes of the data sets of one configuration.

    Args:
        keys: LLaMA-Factory's keys.
    """

    def __init__(self, keys: Mapping[str, Any]) -> None:
        self.keys = keys
        self.folder = Path(str(keys.get("dataset_dir") or "data"))
        self.most = integer(keys["max_samples"], "max_samples") if keys.get("max_samples") else None
        self.cutoff = integer(keys.get("cutoff_len") or 2048, "cutoff_len")
        self.counts_tokens = _tokenizer(str(keys.get("model_name_or_path") or ""))
        """Whether tokens are those of the model; otherwise they are a share of the characters."""
        self._entries = self._read_entries()

    def of(self, name: str) -> DataSet:
        entry, files = self.entry(name), self.files(name)
        if not files:
            return DataSet(name, None, None, None, None)
        stored = sum(map(_count, files))
        used = min(stored, int(entry["num_samples"])) if entry.get("num_samples") else stored
        used = min(used, self.most) if self.most is not None else used
        lengths = [self._tokens(row, entry) for row in self.sample(name)]
        if not lengths:
            return DataSet(name, used, stored, None, None)
        tokens, learned = (sum(column) / len(lengths) for column in zip(*lengths, strict=True))
        return DataSet(name, used, stored, tokens, learned)

    def entry(self, name: str) -> Mapping[str, Any]:
        """Of a data set in dataset_info.json; empty where it has none."""
        found = self._entries.get(name)
        return found if isinstance(found, dict) else {}

    def files(self, name: str) -> list[Path]:
        """The files of a data set on this machine, in the order in which LLaMA-Factory lists them."""
        named = self.entry(name).get("file_name")
        return _files(self.folder / str(named)) if named else []

    def sample(self, name: str) -> Iterator[Mapping[str, Any]]:
        """Some of its rows."""
        return _sample(min(self.files(name)))

    def draws(self, name: str) -> bool:
        """Whether rows of it are drawn (`num_samples`)."""
        return bool(self.entry(name).get("num_samples"))

    def _tokens(self, row: Mapping[str, Any], entry: Mapping[str, Any]) -> tuple[float, float]:
        """All tokens of a row, and those of its answers. Tokens of the template are not counted."""
        prompt, answer = texts_of(row, entry)
        if self.keys.get("stage") == "pt":
            prompt, answer = "", "\n".join(part for part in (prompt, answer) if part)
        before, after = (self._length(text) for text in (prompt, answer))
        total = min(before + after, self.cutoff)
        return total, min(after, total)

    def _length(self, text: str) -> float:
        if self.counts_tokens is None:
            return len(text) / _CHARACTERS
        return float(len(self.counts_tokens.encode(text, add_special_tokens=False).ids))

    def _read_entries(self) -> Mapping[str, Any]:
        try:
            found = json.loads((self.folder / "dataset_info.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def _tokenizer(model: str) -> Any:
    path = Path(model) / "tokenizer.json"
    if not path.is_file():
        return None
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path))


def _files(path: Path) -> list[Path]:
    found = list(path.iterdir()) if path.is_dir() else [path]
    return [file for file in found if file.is_file() and file.suffix in (".json", ".jsonl", ".parquet", ".txt", ".csv")]


def _count(path: Path) -> int:
    if path.suffix == ".parquet":
        return int(pq.ParquetFile(path).metadata.num_rows)
    if path.suffix == ".json" and _is_list(path):
        return len(json.loads(path.read_text(encoding="utf-8")))
    with path.open("rb") as file:
        lines = sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
        if file.tell():
            file.seek(-1, 2)
            lines += file.read(1) != b"\n"
    return lines - (path.suffix == ".csv")


def _sample(path: Path) -> Iterator[Mapping[str, Any]]:
    """Rows, evenly spaced, of at most the first 64 MiB of a text file."""
    if path.suffix == ".parquet":
        file = pq.ParquetFile(path)
        rows = next(file.iter_batches(batch_size=10 * _SAMPLE), None)
        yield from _spaced(rows.to_pylist() if rows is not None else [])
    elif path.suffix == ".json" and _is_list(path):
        yield from _spaced(json.loads(path.read_text(encoding="utf-8")))
    elif path.suffix in (".json", ".jsonl"):
        with path.open(encoding="utf-8", errors="replace") as lines:
            texts = [line for line in islice(lines, 50 * _SAMPLE) if line.strip()]
        for line in _spaced(texts):
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row
    elif path.suffix == ".txt":
        with path.open(encoding="utf-8", errors="replace") as lines:
            yield from ({"text": line} for line in _spaced(list(islice(lines, 50 * _SAMPLE))))


def _spaced(rows: list[Any]) -> list[Any]:
    return rows[:: max(1, len(rows) // _SAMPLE)][:_SAMPLE]


def _is_list(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(64).lstrip().startswith(b"[")
