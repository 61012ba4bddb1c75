"""Writes a selection: data sets that LLaMA-Factory reads, scores, and a summary for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dataflex.base.output.outcome import Outcome
from dataflex.base.output.rows import write_rows
from dataflex.base.output.summary import summary
from dataflex.data.origins import data_sets_of, domains_of
from dataflex.record.selection_file import SelectionRecord, write_texts
from dataflex.writing import write_atomically, write_tables

_COLUMNS = (
    "prompt", "query", "response", "history", "messages", "system", "tools", "images", "videos", "audios", "chosen", "rejected",
    "kto_tag",
)  # fmt: skip
_TAGS = ("role_tag", "content_tag", "user_tag", "assistant_tag", "observation_tag", "function_tag", "system_tag")


def write_selection(
    folder: Path, outcome: Outcome, names: Mapping[str, str], examples: int
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Write into `folder`, and return how LLaMA-Factory reads what is there, by the names of the data sets, and lines for people.
    names: data set selected from -> the one that is written.

    <name>.jsonl            or .parquet, .arrow: `write_rows`
    scores.parquet          dataset, row (its number in the data set as stored), score, times (selected), rank, domain where it is
                            something else, and the columns of `Reasons`
    scores.jsonl            some of these rows with their text: sample_id (its line in scores.parquet), prompt, answer, target
    summary.md              counts, quantiles and the rows at both ends
    """
    times = np.bincount(outcome.chosen, minlength=len(outcome.scores))
    owner, known = data_sets_of(outcome.origins)
    indices = np.concatenate([origin.indices for origin in outcome.origins])
    first = {origin.name: origin for origin in reversed(outcome.origins)}
    entries, lines = {}, []
    for number, data_set in enumerate(known):
        own = outcome.chosen[owner[outcome.chosen] == number]
        origin, name = first[data_set], names[data_set]
        drawn = "" if len(np.unique(own)) == len(own) else f" ({len(np.unique(own))} different ones)"
        file = write_rows(folder, name, origin.stored.select(indices[own])) if len(own) else None
        lines.append(f"{data_set}: {len(own)}{drawn} of {len(origin.stored)} rows, {file or 'no file'}")
        if file is not None:
            entries[name] = _entry(file, origin.attributes)
    if outcome.divided:
        lines += _lines_of_domains(outcome)
    _write_scores(folder, outcome, times)
    write_atomically(folder / "summary.md", summary(outcome, times, lines, examples).encode())
    return entries, lines


def _lines_of_domains(outcome: Outcome) -> list[str]:
    domains = domains_of(outcome.origins)
    taken = np.bincount(domains.of(np.unique(outcome.chosen)), minlength=len(domains))
    return [
        f"domain {name}: {n} of {size} rows" for name, n, size in zip(domains.names, taken, domains.sizes, strict=True)
    ]


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


def _write_scores(folder: Path, outcome: Outcome, times: np.ndarray) -> None:
    domains = domains_of(outcome.origins)
    owner, data_sets = data_sets_of(outcome.origins)
    record = SelectionRecord(domains, [outcome.chosen], outcome.scores, reasons=outcome.reasons)
    ids = np.arange(len(times))
    draws = record.draws(ids)
    columns = {
        "dataset": pa.DictionaryArray.from_arrays(owner, pa.array(data_sets)),
        "row": np.concatenate([origin.numbers for origin in outcome.origins]),
        "score": pa.array(outcome.scores, type=pa.float64(), from_pandas=True),
        "times": times,
        "rank": pa.array(draws + 1, mask=times == 0),
    }
    if outcome.divided:
        codes = domains.of(ids).astype(np.int32)
        columns["domain"] = pa.DictionaryArray.from_arrays(codes, pa.array(domains.names))
    if outcome.reasons is not None:
        columns |= outcome.reasons.columns(ids, draws)
    table = pa.table(columns)
    write_tables(folder / "scores.parquet", [table.replace_schema_metadata(record.metadata)])
    write_texts(folder / "scores.jsonl", record, outcome.texts)
