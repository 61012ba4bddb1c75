"""A selection over rows as they are stored, with no model and no tokenizer: embeddings from files or a text encoder."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import xxhash
from transformers import set_seed

from dataflex.base.checks.contents import digest
from dataflex.base.loading.data import read_raw
from dataflex.base.loading.raw import numbered_rows, stored_numbers, stored_size
from dataflex.base.refusals import refusals
from dataflex.components.contracts import SelectionContext
from dataflex.components.requests import TargetEmbedding
from dataflex.config import RunConfig
from dataflex.config.schema import DataflexConfig
from dataflex.errors import ConfigError, DataflexError
from dataflex.plan.permutation import generator
from dataflex.signals.embeddings import encode_missing
from dataflex.signals.keeping.disk import DiskCache
from dataflex.trainer.offline import Chosen, given_embeddings, wanted
from dataflex.trainer.select import check_choice, finite

_PURPOSE = 0x0FF11E  # keeps these random numbers apart from those of training


@dataclass(frozen=True)
class Texts:
    """Data sets as LLaMA-Factory reads them. aligned: in its own columns. stored: as they were read. valid: places of the rows
    that its processors would keep. arguments: the training arguments they were read with."""

    names: list[str]
    aligned: list[Any]
    stored: list[Any]
    valid: list[np.ndarray]
    arguments: Any

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(len(v) for v in self.valid)

    def __len__(self) -> int:
        return sum(self.sizes)

    def __getitem__(self, place: int) -> str:
        """What a valid row says: its messages, a line each."""
        ends = np.cumsum(self.sizes)
        part = int(np.searchsorted(ends, place, side="right"))
        row = self.aligned[part][int(self.valid[part][place - (ends[part] - self.sizes[part])])]
        return "\n".join(m["content"] for m in (*row["_prompt"], *row["_response"]) if m["content"])

    @property
    def raw(self) -> np.ndarray:
        """The numbers of the valid rows among those stored, data sets laid end to end."""
        starts = np.cumsum([0, *map(stored_size, self.stored)])
        return np.concatenate([stored_numbers(s)[v] + o for s, v, o in zip(self.stored, self.valid, starts[:-1])])

    @property
    def raw_total(self) -> int:
        return sum(map(stored_size, self.stored))

    def fingerprint(self) -> str:
        digest = xxhash.xxh3_128()
        for place in range(len(self)):
            digest.update(self[place].encode() + b"\0")
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
    given = config.dataflex.select.target_dataset if ours else values.get(key)
    names = [n.strip() for n in given.split(",")] if isinstance(given, str) else list(given or [])
    spelled = f"dataflex.select.{key}" if ours else key
    stage = str(values.get("stage", "sft"))
    with numbered_rows() as stored:
        parts = [
            read_raw(name, spelled, model_args, data_args, training_args, "rm" if stage == "dpo" else stage)
            for name in names
        ]
    texts = Texts(names, parts, stored, [_valid_rows(part, 0 if stage == "pt" else 1) for part in parts], training_args)
    for name, size in zip(names, texts.sizes, strict=True):
        if size == 0:
            raise ConfigError(f"{spelled}: no row of {name!r} can be used")
    return texts


def _valid_rows(part: Any, least: int) -> np.ndarray:
    """As LLaMA-Factory's processors have it: turns end with the user's, and there are at least so many answers."""
    table = part.select_columns(["_prompt", "_response"]).with_format("arrow")[:]
    turns, answers = (pc.list_value_length(table[name]).to_numpy() for name in ("_prompt", "_response"))
    return np.flatnonzero((turns % 2 == 1) & (answers >= least))


def choose(config: DataflexConfig, rows: Texts, target: Texts | None, output_dir: str) -> Chosen:
    """One decision of the selector over `rows`."""
    spec, offline = config.select, config.offline
    assert spec is not None and offline is not None
    selector = spec.component
    signals = _signals(config, rows, target, Path(offline.store or Path(output_dir) / "signals"))
    own = {name: values for name, values in signals.items() if name != TargetEmbedding.name}
    measured = np.ones(len(rows), dtype=bool)
    for values in own.values():
        measured &= finite(values)
    candidates = np.flatnonzero(measured)
    if not measured.all():
        signals |= {name: values[candidates] for name, values in own.items()}
    budget = wanted(offline, len(candidates))
    context = SelectionContext(
        budget=budget, rows=len(candidates), step=0, update=0, updates=1, domain=None, ids=candidates,
        rng=generator(rows.arguments.seed, _PURPOSE, selector.seed),
        target_sizes=() if target is None else target.sizes, raw_rows=rows.raw[candidates],
    )  # fmt: skip
    if budget > len(candidates) and not selector.with_replacement:
        raise DataflexError(f"dataflex.offline: {budget} rows are asked for, but {len(candidates)} have an embedding")
    selection, _ = selector.select(selector.init(), signals, context)
    check_choice(spec.name, selection.chosen, budget, len(candidates), bool(selector.with_replacement))
    scores = np.full(len(rows), np.nan)
    if selection.scores is not None:
        scores[candidates] = selection.scores
    return Chosen(candidates[selection.chosen], scores, measured, tuple(selection.remarks.values()))


def _signals(config: DataflexConfig, rows: Texts, target: Texts | None, store: Path) -> dict[str, np.ndarray]:
    offline, out = config.offline, {}
    assert offline is not None
    for request in config.requests("select"):
        of_target, given = request.per == "target row", offline.file_of(request)
        if given is None:
            texts = target if of_target else rows
            assert texts is not None
            out[request.name] = _encoded(request.other_models()["encoder"], texts, store)
        elif of_target:
            out[request.name] = np.load(given, mmap_mode="r")
        else:
            out[request.name] = given_embeddings(offline, rows.raw, rows.raw_total)
    return out


def _encoded(model: str, texts: Texts, store: Path) -> np.ndarray:
    folder = Path(model)  # what is in it counts: an encoder may be trained on in its place
    encoder = digest(folder) if folder.is_dir() else model
    key = {"signal": "text", "model": encoder, "content": texts.fingerprint()}
    return encode_missing(model, DiskCache(store, key, len(texts)), texts.__getitem__, texts.arguments.device)
