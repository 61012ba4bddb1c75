"""Writes a selection: data sets that LLaMA-Factory reads, scores, and a summary for people."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dataflex.writing import write_atomically, write_table

_COLUMNS = (
    "prompt", "query", "response", "history", "messages", "system", "tools", "images", "videos", "audios", "chosen", "rejected",
    "kto_tag",
)  # fmt: skip
_TAGS = ("role_tag", "content_tag", "user_tag", "assistant_tag", "observation_tag", "function_tag", "system_tag")
# Characters of a row that the summary shows.
_SHOWN = 600


@dataclass(frozen=True)
class Source:
    """A data set that was selected from.

    stored: its rows as they were read (a Hugging Face Dataset). attributes: how LLaMA-Factory reads it (DatasetAttr). places: of
    the rows that can be chosen, their places in `stored`, int64[n]. numbers: the numbers of those rows as they are stored.
    """

    name: str
    stored: Any
    attributes: Any
    places: np.ndarray
    numbers: np.ndarray


@dataclass(frozen=True)
class Outcome:
    """sources: laid end to end they are the rows 0..N-1. chosen: ids, int64[budget], in the order of the selector. scores:
    float64[N], NaN: none. text: id -> what a row says. notes: lines for the summary."""

    sources: list[Source]
    selector: str
    chosen: np.ndarray
    scores: np.ndarray
    text: Callable[[int], str]
    notes: list[str]


def write_selection(folder: Path, outcome: Outcome, examples: int) -> list[str]:
    """Write into `folder`, each file whole or not at all, and return lines that say what is there.

    <data set>_<selector>.jsonl (or .parquet, for rows that hold more than text)
    dataset_info.json       entries under these names: set dataset_dir to the folder
    scores.parquet          dataset, row (its number in the data set as stored), score, times (selected)
    summary.md              counts, quantiles and the rows at both ends
    """
    folder.mkdir(parents=True, exist_ok=True)
    times = np.bincount(outcome.chosen, minlength=len(outcome.scores))
    ends = np.cumsum([len(source.places) for source in outcome.sources])
    entries, lines = {}, []
    for source, stop in zip(outcome.sources, ends, strict=True):
        start = stop - len(source.places)
        own = outcome.chosen[(outcome.chosen >= start) & (outcome.chosen < stop)] - start
        name = f"{source.name.replace('/', '_')}_{outcome.selector.replace(':', '_').replace('/', '_')}"
        drawn = "" if len(np.unique(own)) == len(own) else f" ({len(np.unique(own))} different ones)"
        lines.append(
            f"{source.name}: {len(own)}{drawn} of {len(source.stored)} rows" + ("" if len(own) else ", no file")
        )
        if len(own):
            file = _write_rows(folder, name, source.stored.select(source.places[own]))
            entries[name] = _entry(file, source.attributes)
    _write_scores(folder / "scores.parquet", outcome, times)
    write_atomically(folder / "dataset_info.json", json.dumps(entries, indent=2, ensure_ascii=False).encode())
    write_atomically(folder / "summary.md", _summary(outcome, times, lines, examples).encode())
    return lines


def _write_rows(folder: Path, name: str, rows: Any) -> str:
    plain = all(type(feature).__name__ not in ("Image", "Audio", "Video") for feature in rows.features.values())
    file = f"{name}.{'jsonl' if plain else 'parquet'}"
    temporary = folder / f"{file}.partial"
    if plain:
        rows.to_json(str(temporary), lines=True, force_ascii=False)
    else:
        rows.to_parquet(str(temporary))
    os.replace(temporary, folder / file)
    return file


def _entry(file: str, attributes: Any) -> dict[str, Any]:
    """The entry of dataset_info.json that reads the file as the data set it came from was read."""
    kind = type(attributes)
    standard = {f.name: f.default for f in fields(kind)}
    entry: dict[str, Any] = {"file_name": file}
    if attributes.formatting != "alpaca":
        entry["formatting"] = attributes.formatting
    if attributes.ranking:
        entry["ranking"] = True
    columns = {name: getattr(attributes, name) for name in _COLUMNS if getattr(attributes, name)}
    if columns != {name: standard[name] for name in _COLUMNS if standard[name]}:
        entry["columns"] = columns
    tags = {name: getattr(attributes, name) for name in _TAGS if getattr(attributes, name)}
    if tags != {name: standard[name] for name in _TAGS}:
        entry["tags"] = tags
    return entry


def _write_scores(path: Path, outcome: Outcome, times: np.ndarray) -> None:
    owner = np.repeat(np.arange(len(outcome.sources)), [len(s.places) for s in outcome.sources]).astype(np.int32)
    table = {
        "dataset": pa.DictionaryArray.from_arrays(owner, pa.array([s.name for s in outcome.sources])),
        "row": np.concatenate([s.numbers for s in outcome.sources]),
        "score": pa.array(outcome.scores, type=pa.float64(), from_pandas=True),
        "times": times,
    }
    write_table(path, pa.table(table))


def _summary(outcome: Outcome, times: np.ndarray, lines: list[str], examples: int) -> str:
    scored = np.flatnonzero(np.isfinite(outcome.scores))
    total, left = sum(len(s.stored) for s in outcome.sources), len(outcome.scores)
    out = [f"# Selection by {outcome.selector}", ""]
    out += [f"- {line}" for line in (*lines, *outcome.notes)]
    out.append(
        f"- {total - left} rows could not be prepared and were left out" if total > left else f"- {total} rows in all"
    )
    if (times > 1).any():
        out.append(
            f"- drawn with replacement: {int((times > 0).sum())} different rows, one of them {int(times.max())} times"
        )
    if not len(scored):
        return "\n".join([*out, "- the selector gives no scores", ""])
    quantiles = np.quantile(outcome.scores[scored], [0, 0.25, 0.5, 0.75, 1])
    out += ["", "| score | lowest | 25 % | 50 % | 75 % | highest |", "|---|---|---|---|---|---|"]
    for name, rows in (("all rows", scored), ("selected", scored[times[scored] > 0])):
        if len(rows):
            quantiles = np.quantile(outcome.scores[rows], [0, 0.25, 0.5, 0.75, 1])
            out.append(f"| {name} | " + " | ".join(f"{q:.4g}" for q in quantiles) + " |")
    order = scored[np.argsort(-outcome.scores[scored], kind="stable")]
    count = min(examples, len(order))
    for title, some in (("Highest scores", order[:count]), ("Lowest scores", order[::-1][:count])):
        out += ["", f"## {title}"]
        for row in some:
            out += ["", _heading(outcome, int(row), bool(times[row])), "", *_quoted(outcome.text(int(row)))]
    return "\n".join([*out, ""])


def _heading(outcome: Outcome, row: int, selected: bool) -> str:
    place = row
    for source in outcome.sources:
        if place < len(source.places):
            break
        place -= len(source.places)
    mark = ", selected" if selected else ""
    return f"**{source.name}, row {source.numbers[place]}**: {outcome.scores[row]:.6g}{mark}"


def _quoted(text: str) -> list[str]:
    cut = text if len(text) <= _SHOWN else text[:_SHOWN].rstrip() + " ..."
    return [f"> {line}" for line in cut.splitlines() or [""]]
