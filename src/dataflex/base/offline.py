"""`select`: a selection before training, over the data sets of a configuration."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dataflex.base import seams
from dataflex.base.arguments import check_arguments
from dataflex.base.launch import say
from dataflex.base.raw import numbered_rows, places_read, stored_numbers, take_numbers
from dataflex.components.requests import Embedding, TargetEmbedding, aims_at_target
from dataflex.config import RunConfig
from dataflex.config.combinations import hides_row_losses
from dataflex.config.schema import DataflexConfig, OfflineConfig
from dataflex.errors import ConfigError
from dataflex.offline.output import Outcome, Source, write_selection


def select(config: RunConfig) -> None:
    """Select, and write the selection into output_dir. Signals that need the model are measured as in training, on every rank."""
    assert config.dataflex is not None and config.dataflex.select is not None
    offline = config.dataflex.offline
    assert offline is not None
    reads_model = needs_model(config.dataflex)
    config = check_arguments(config, needs_model=reads_model)
    assert config.dataflex is not None
    say(config.notices)
    seams.check()
    begin = time.perf_counter()
    outcome = _with_model(config) if reads_model else _without_model(config)
    if outcome is None:  # another rank writes
        return
    outcome.notes.append(f"{time.perf_counter() - begin:.1f} s in all")
    folder = Path(str(config.llamafactory["output_dir"]))
    for line in write_selection(folder, outcome, offline.examples):
        print(f"dataflex: {line}", flush=True)
    print(f"dataflex: written to {folder}; set dataset_dir to it, or see {folder / 'summary.md'}", flush=True)


def needs_model(config: DataflexConfig) -> bool:
    """Whether a signal is to be measured by the model: not where embeddings come from a file or a text encoder."""
    offline = config.offline or OfflineConfig()
    for request in config.requests("select"):
        given = offline.target_embeddings if isinstance(request, TargetEmbedding) else offline.embeddings
        if not isinstance(request, Embedding) or not (given or request.model):
            return True
    return False


# -- with the model --------------------------------------------------------------------------------------------------


def _with_model(config: RunConfig) -> Outcome | None:
    """LLaMA-Factory's own workflow of the stage, ended where training would begin."""
    from llamafactory.train import tuner

    from dataflex.trainer import build_trainer
    from dataflex.trainer.offline import OfflineTrainer, Selected

    assert config.dataflex is not None and config.dataflex.select is not None
    dataflex, arguments = config.dataflex, dict(config.llamafactory)
    stage = str(arguments.get("stage", "sft"))
    seam = seams.STAGES[stage]
    loaded: dict[str, Any] = {}

    def get_dataset(
        template: Any, model_args: Any, data_args: Any, training_args: Any, stage: str, **tokenizer_module: Any
    ) -> Any:
        from dataflex.base.data import load_domains
        from dataflex.base.nodes import same_rows
        from dataflex.base.targets import check_apart, check_cut, load_target
        from dataflex.trainer.engine import engine_of

        engine = engine_of(training_args)
        if engine != "DDP":
            raise ConfigError(f"{engine} belongs to training, and a selection before it runs without")
        with numbered_rows() as stored:
            module = load_domains(template, model_args, data_args, training_args, stage, **tokenizer_module)
        loaded["places"] = [places_read(part) for part in module["train_dataset"].parts]
        module = take_numbers(module, stored)
        loaded["stored"], rows = stored, module["train_dataset"]
        same_rows(rows.fingerprints, "dataset")
        _check(dataflex, rows.raw_total, len(rows))
        if _aims_at_rows(dataflex):
            module["target_dataset"] = load_target(
                dataflex, module, template, model_args, data_args, training_args, stage, **tokenizer_module
            )
            same_rows(module["target_dataset"].fingerprints, dataflex.target[0])
            check_cut(dataflex, module["target_dataset"])
            check_apart(dataflex, module["target_dataset"], rows)
        loaded["names"], loaded["dir"] = list(data_args.dataset), data_args.dataset_dir
        return module

    trainer = build_trainer(
        seams.attribute(seam.trainer_module, seam.trainer),
        dataflex,
        stage=stage,
        per_row=hides_row_losses(config.llamafactory) is None,
        identity={},
        run_record={},
        select=OfflineTrainer,
        offline=dataflex.offline,
    )
    with seams.replaced((seam.trainer_module, seam.trainer, trainer), (seam.workflow, "get_dataset", get_dataset)):
        try:
            tuner._training_function(config={"args": arguments, "callbacks": []})
        except Selected as end:
            chosen, run = end.chosen, end.trainer
    if not run.args.should_save:
        return None
    rows, tokenizer = run.rows, run.processing_class

    def text(row: int) -> str:
        found = rows[row]
        tokens = found.get("input_ids", found.get("chosen_input_ids"))
        return str(tokenizer.decode(tokens, skip_special_tokens=True)).strip()

    notes = [f"{int((~chosen.measured).sum())} rows have no score"] if not chosen.measured.all() else []
    sources = _sources(loaded["names"], loaded["dir"], loaded["stored"], loaded["places"])
    return Outcome(sources, dataflex.select.name, chosen.ids, chosen.scores, text, notes)  # type: ignore[union-attr]


def _aims_at_rows(config: DataflexConfig) -> bool:
    """Whether rows of a target are to be measured."""
    requests = config.requests("select")
    if config.offline is not None and config.offline.target_embeddings:
        requests = frozenset(r for r in requests if not isinstance(r, TargetEmbedding))
    return aims_at_target(requests)


def _check(config: DataflexConfig, stored: int, rows: int) -> None:
    """Raise ConfigError if what is asked for does not fit the data."""
    from dataflex.trainer.offline import wanted

    assert config.select is not None and config.offline is not None
    component = config.select.component
    if component.reads_raw_rows:
        try:
            component.check_rows(stored)
        except ConfigError as error:
            raise ConfigError(f"dataflex.select.{error}") from None
    budget = wanted(config.offline, rows)
    if budget > rows and not component.with_replacement:
        raise ConfigError(f"dataflex.offline.budget: {budget} rows are asked for, but the data has {rows}")


def _sources(names: Sequence[str], folder: Any, stored: Sequence[Any], places: Sequence[np.ndarray]) -> list[Source]:
    from llamafactory.data.parser import get_dataset_list

    attributes = get_dataset_list(list(names), folder)
    return [
        Source(name, read, how, at, stored_numbers(read)[at])
        for name, read, how, at in zip(names, stored, attributes, places, strict=False)
    ]


# -- without it ------------------------------------------------------------------------------------------------------


def _without_model(config: RunConfig) -> Outcome:
    from dataflex.base.texts import choose, read_texts

    assert config.dataflex is not None and config.dataflex.select is not None
    dataflex, spec, target = config.dataflex, config.dataflex.select, None
    rows = read_texts(config, "dataset")
    _check(dataflex, rows.raw_total, len(rows))
    if _aims_at_rows(dataflex):
        target = read_texts(config, "target_dataset" if spec.target_dataset else "eval_dataset")
    chosen = choose(dataflex, rows, target, str(config.llamafactory["output_dir"]))
    sources = _sources(rows.names, config.llamafactory.get("dataset_dir", "data"), rows.stored, rows.valid)
    return Outcome(sources, spec.name, chosen.ids, chosen.scores, rows.__getitem__, [])
