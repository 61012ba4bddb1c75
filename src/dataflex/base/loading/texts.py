"""Data sets as they are stored, read without a model and a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow.compute as pc
import xxhash
from transformers import set_seed

from dataflex.base.loading.reading import read_data
from dataflex.base.loading.split import assigned_rows
from dataflex.base.loading_arguments import Loading
from dataflex.base.refusals import refusals
from dataflex.config import RunConfig
from dataflex.config.schema import DATA_SETS
from dataflex.data.origins import Origin, stored_rows
from dataflex.data.texts import RowText, joined
from dataflex.errors import ConfigError
from dataflex.values import dataset_names


@dataclass(frozen=True)
class Texts:
    """Data sets as LLaMA-Factory reads them, of which those rows count that its processors would keep."""

    aligned: list[Any]
    """Their rows in its own columns, Hugging Face `Dataset`s."""
    origins: list[Origin]
    arguments: Any
    """The training arguments they were read with."""
    stored_rows: Mapping[str, int]
    """Rows of the file of each data set."""
    left_out: Mapping[str, int]
    """Rows that are in no domain, by what they say."""

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(len(origin.indices) for origin in self.origins)

    def __len__(self) -> int:
        return sum(self.sizes)

    def __getitem__(self, row: int) -> str:
        """What a row says: its messages, a line each."""
        return joined([message for messages in self._messages(row) for message in messages])

    def _messages(self, row: int) -> tuple[list[Any], list[Any]]:
        """Prompt and response."""
        ends = np.cumsum(self.sizes)
        part = int(np.searchsorted(ends, row, side="right"))
        index = self.origins[part].indices[row - (ends[part] - self.sizes[part])]
        found = self.aligned[part][int(index)]
        return found["_prompt"], found["_response"]

    def texts(self, rows: Sequence[int]) -> list[RowText]:
        return [RowText(*(joined(messages) for messages in self._messages(row))) for row in rows]

    def fingerprint(self) -> str:
        digest = xxhash.xxh3_128()
        for row in range(len(self)):
            digest.update(self[row].encode() + b"\0")
        return digest.hexdigest()


def read_texts(config: RunConfig, key: str) -> Texts:
    """The data sets that a key names (`target_dataset` is our own)."""
    from llamafactory.hparams import DataArguments, ModelArguments, TrainingArguments

    assert config.dataflex is not None and config.dataflex.select is not None
    values = {**config.llamafactory, "model_name_or_path": config.llamafactory.get("model_name_or_path") or "none"}
    with refusals():
        model_args, data_args, training_args = (
            kind(**{f.name: values[f.name] for f in fields(kind) if f.init and f.name in values})
            for kind in (ModelArguments, DataArguments, TrainingArguments)
        )
    set_seed(training_args.seed)  # LLaMA-Factory draws the rows of `num_samples` from the global generator
    ours = key == "target_dataset"
    names = dataset_names(config.dataflex.select.target_dataset if ours else values.get(key))
    spelled = f"dataflex.select.{key}" if ours else key
    stage = str(values.get("stage", "sft"))
    loading = Loading(None, model_args, data_args, training_args, "rm" if stage == "dpo" else stage, None)
    read = {name: read_data(loading, name, spelled) for name in names}
    usable = {name: _valid_rows(found.aligned, 0 if stage == "pt" else 1) for name, found in read.items()}
    for name, indices in usable.items():
        if len(indices) == 0:
            raise ConfigError(f"{spelled}: no row of {name!r} can be used")
    spec = DATA_SETS if ours or key != "dataset" else config.dataflex.domains
    assigned = assigned_rows(read, spec, loading)
    origins = []
    for domain in assigned.names:
        for name, indices in usable.items():
            own = indices[assigned.of_domain(name, domain)[indices]]
            if len(own):
                named = "" if spec.by == "dataset" else domain
                origins.append(Origin(name, read[name].attributes, read[name].stored, own, named))
    stored = {name: stored_rows(found.stored) for name, found in read.items()}
    aligned = [read[origin.name].aligned for origin in origins]
    return Texts(aligned, origins, training_args, stored, assigned.left_out)


def _valid_rows(part: Any, least: int) -> np.ndarray:
    """As LLaMA-Factory's processors have it: turns end with the user's, and there are at least so many answers."""
    table = part.select_columns(["_prompt", "_response"]).with_format("arrow")[:]
    turns, answers = (pc.list_value_length(table[name]).to_numpy() for name in ("_prompt", "_response"))
    return np.flatnonzero((turns % 2 == 1) & (answers >= least))
