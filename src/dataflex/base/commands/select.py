"""`select`: a selection before training, over the data sets of a configuration."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dataflex.base import seams
from dataflex.base.checks.arguments import check_arguments
from dataflex.base.loading.raw import numbered_rows, places_read, stored_numbers, take_numbers
from dataflex.base.output.destination import Destination
from dataflex.base.output.outcome import Outcome, Source
from dataflex.base.output.sets import write_selection
from dataflex.config import RunConfig
from dataflex.config.combinations import hides_row_losses
from dataflex.config.schema import DataflexConfig, OfflineConfig
from dataflex.errors import ConfigError
from dataflex.locking import alone_in
from dataflex.notices import say


def select(config: RunConfig) -> None:
    """Select, and write the selection into output_dir. Signals that need the model are measured as in training, on every rank."""
    assert config.dataflex is not None
    reads_model = needs_model(config.dataflex)
    config = check_arguments(config, needs_model=reads_model)
    assert config.dataflex is not None
    say(*config.notices)
    seams.check()
    with alone_in(Path(str(config.llamafactory["output_dir"]))):
        _select(config, reads_model)


def _select(config: RunConfig, reads_model: bool) -> None:
    assert config.dataflex is not None and config.dataflex.offline is not None
    examples = config.dataflex.offline.examples
    destination = _destination(config)
    begin = time.perf_counter()
    outcome = _with_model(config) if reads_model else _without_model(config)
    if outcome is None:  # another rank writes
        return
    outcome.notes.append(f"{time.perf_counter() - begin:.1f} s in all")
    lines: list[str] = []

    def write(folder: Path) -> dict[str, dict[str, Any]]:
        entries, lines[:] = write_selection(folder, outcome, destination.names, examples)
        return entries

    written = destination.put(write)
    say(*lines, f"written to {written}; set dataset_dir to {destination.folder}, or see {written / 'summary.md'}")


def _destination(config: RunConfig) -> Destination:
    """Where the selection goes. ConfigError if something there would be lost, on the rank that will write."""
    assert config.dataflex is not None and config.dataflex.select is not None
    values, select = config.llamafactory, config.dataflex.select
    folder, data = Path(str(values["output_dir"])), values.get("dataset_dir", "data")
    here = isinstance(data, str) and Path(data).resolve() == folder.resolve()
    destination = Destination(folder, select.name, _named(values.get("dataset")))
    if os.environ.get("RANK", "0") == "0":
        read = [*_named(values.get("dataset")), *_named(values.get("eval_dataset")), *config.dataflex.target[1]]
        destination.check(read if here else ())
    return destination


def _named(datasets: Any) -> list[str]:
    return [n.strip() for n in datasets.split(",")] if isinstance(datasets, str) else list(datasets or [])


def needs_model(config: DataflexConfig) -> bool:
    """Whether a signal is to be measured by the model: not where embeddings come from a file or a text encoder."""
    offline = config.offline or OfflineConfig()
    return any(not offline.file_of(r) and r.reads() != "encoder" for r in config.requests("select"))


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
        from dataflex.base.checks.nodes import check_contents, same_rows
        from dataflex.base.loading.data import load_domains
        from dataflex.base.loading.targets import check_apart, check_cut, load_target
        from dataflex.distributed.engine import engine_of

        engine = engine_of(training_args)
        if engine != "DDP":
            raise ConfigError(f"{engine} belongs to training, and a selection before it runs without")
        if training_args.resume_from_checkpoint:
            check_contents(Path(training_args.resume_from_checkpoint))
        attributes = _attributes(data_args.dataset, data_args.dataset_dir)
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
        loaded["names"], loaded["attributes"] = list(data_args.dataset), attributes
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
    with seams.replaced(
        *seams.that_may_refuse(stage, data=False),
        (seam.trainer_module, seam.trainer, trainer),
        (seam.workflow, "get_dataset", get_dataset),
    ):
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
    notes += chosen.remarks
    sources = _sources(loaded["names"], loaded["attributes"], loaded["stored"], loaded["places"])
    return Outcome(sources, dataflex.select.name, chosen.ids, chosen.scores, text, notes)  # type: ignore[union-attr]


def _aims_at_rows(config: DataflexConfig) -> bool:
    """Whether rows of a target are to be measured."""
    return "select" in config.aiming()


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


def _attributes(names: Sequence[str], folder: Any) -> list[Any]:
    from llamafactory.data.parser import get_dataset_list

    return list(get_dataset_list(list(names), folder))


def _sources(
    names: Sequence[str], attributes: Sequence[Any], stored: Sequence[Any], places: Sequence[np.ndarray]
) -> list[Source]:
    return [
        Source(name, read, how, at, stored_numbers(read)[at])
        for name, read, how, at in zip(names, stored, attributes, places, strict=False)
    ]


# -- without it ------------------------------------------------------------------------------------------------------


def _without_model(config: RunConfig) -> Outcome:
    from dataflex.base.loading.texts import choose, read_texts

    assert config.dataflex is not None and config.dataflex.select is not None
    dataflex, spec, target = config.dataflex, config.dataflex.select, None
    rows = read_texts(config, "dataset")
    attributes = _attributes(rows.names, config.llamafactory.get("dataset_dir", "data"))
    _check(dataflex, rows.raw_total, len(rows))
    if _aims_at_rows(dataflex):
        target = read_texts(config, "target_dataset" if spec.target_dataset else "eval_dataset")
    chosen = choose(dataflex, rows, target, str(config.llamafactory["output_dir"]))
    say(*(f"select:{spec.name}: {line}" for line in chosen.remarks))
    sources = _sources(rows.names, attributes, rows.stored, rows.valid)
    return Outcome(sources, spec.name, chosen.ids, chosen.scores, rows.__getitem__, list(chosen.remarks))
