"""`select`: a selection before training, over the data sets of a configuration."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from dataflex.base import seams
from dataflex.base.checks.arguments import check_arguments
from dataflex.base.loading_arguments import Loading
from dataflex.base.output.destination import Destination
from dataflex.base.output.outcome import Outcome
from dataflex.base.output.sets import write_selection
from dataflex.components.contracts import declared
from dataflex.config import RunConfig
from dataflex.config.domains import left_out_lines
from dataflex.config.schema import DataflexConfig, OfflineConfig
from dataflex.config.schema.losses import hides_row_losses
from dataflex.data.origins import Origin
from dataflex.data.texts import RowTexts
from dataflex.errors import ConfigError
from dataflex.locking import alone_in
from dataflex.notices import say
from dataflex.talking.talker import talking
from dataflex.values import dataset_names


def select(config: RunConfig) -> None:
    """Select, and write the selection into output_dir. Signals that need the model are measured as in training, on every rank."""
    assert config.dataflex is not None
    reads_model = needs_model(config.dataflex)
    config = check_arguments(config, needs_model=reads_model)
    assert config.dataflex is not None
    say(*config.notices)
    seams.check()
    output_dir = Path(str(config.llamafactory["output_dir"]))
    with alone_in(output_dir), talking(config, output_dir):
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
    reads_here = isinstance(data, str) and Path(data).resolve() == folder.resolve()
    destination = Destination(folder, select.name, dataset_names(values.get("dataset")))
    if os.environ.get("RANK", "0") == "0":
        read = [
            *dataset_names(values.get("dataset")),
            *dataset_names(values.get("eval_dataset")),
            *config.dataflex.target[1],
        ]
        destination.check(read if reads_here else ())
    return destination


def needs_model(config: DataflexConfig) -> bool:
    """Whether a signal is to be measured by the model: not where embeddings come from a file or a text encoder."""
    offline = config.offline or OfflineConfig()
    return any(not offline.file_of(r) and r.reads() != "encoder" for r in config.requests("select"))


# -- with the model --------------------------------------------------------------------------------------------------


def _with_model(config: RunConfig) -> Outcome | None:
    """LLaMA-Factory's own workflow of the stage, ended where training would begin."""
    from llamafactory.train import tuner

    from dataflex.trainer import build_trainer
    from dataflex.trainer.offline import OfflineTrainer

    assert config.dataflex is not None and config.dataflex.select is not None
    dataflex, name, arguments = config.dataflex, config.dataflex.select.name, dict(config.llamafactory)
    stage = str(arguments.get("stage", "sft"))
    seam = seams.STAGES[stage]
    origins: list[Origin] = []
    made: list[OfflineTrainer] = []
    left_out: dict[str, int] = {}

    def get_dataset(*given: Any, **named: Any) -> Any:
        from dataflex.base.checks.nodes import check_contents, same_rows
        from dataflex.base.loading.carried import Carried
        from dataflex.base.loading.data import load_domains
        from dataflex.base.loading.targets import check_apart, check_cut, load_target
        from dataflex.distributed.engine import engine_of

        loading = Loading(*given, **named)
        engine = engine_of(loading.training_args)
        if engine != "DDP":
            raise ConfigError(f"{engine} belongs to training, and a selection before it runs without")
        if loading.training_args.resume_from_checkpoint:
            check_contents(Path(loading.training_args.resume_from_checkpoint))
        module = load_domains(loading, Carried(row_index=True), dataflex.domains)
        left_out.update(module.pop("left_out"))
        module.pop("stored_rows")
        say(*left_out_lines(left_out))
        origins[:], rows = module.pop("origins"), module["train_dataset"]
        same_rows(rows.fingerprints, "dataset")
        _check(dataflex, rows.raw_total, len(rows))
        if _aims_at_rows(dataflex):
            module["target_dataset"] = load_target(dataflex, module, loading)
            same_rows(module["target_dataset"].fingerprints, dataflex.target[0])
            check_cut(dataflex, module["target_dataset"])
            check_apart(dataflex, module["target_dataset"], rows)
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
        made=made,
    )
    with seams.replaced(
        *seams.that_may_refuse(stage, data=False),
        (seam.trainer_module, seam.trainer, trainer),
        (seam.workflow, "get_dataset", get_dataset),
    ):
        tuner._training_function(config={"args": arguments, "callbacks": []})
    (run,) = made
    chosen = run.chosen
    if not run.args.should_save:
        return None
    texts = RowTexts(run.rows, run.processing_class)
    notes = [f"{int((~chosen.measured).sum())} rows have no score"] if not chosen.measured.all() else []
    notes += [*chosen.remarks.values(), *left_out_lines(left_out)]
    return Outcome(origins, name, chosen.ids[0], chosen.scores, texts, notes, chosen.reasons)


def _aims_at_rows(config: DataflexConfig) -> bool:
    """Whether rows of a target are to be measured."""
    return "select" in config.aiming()


def _check(config: DataflexConfig, stored: int, rows: int) -> None:
    """Raise ConfigError if what is asked for does not fit the data."""
    from dataflex.trainer.offline import wanted

    assert config.select is not None and config.offline is not None
    component = config.select.component
    if declared(component.reads_raw_rows):
        try:
            component.check_rows(stored)
        except ConfigError as error:
            raise ConfigError(f"dataflex.select.{error}") from None
    budget = wanted(config.offline, rows)
    if budget > rows and not declared(component.with_replacement):
        raise ConfigError(f"dataflex.offline.budget: {budget} rows are asked for, but the data has {rows}")


# -- without it ------------------------------------------------------------------------------------------------------


def _without_model(config: RunConfig) -> Outcome:
    from dataflex.base.loading.text_selection import choose
    from dataflex.base.loading.texts import read_texts

    assert config.dataflex is not None and config.dataflex.select is not None
    dataflex, spec, target = config.dataflex, config.dataflex.select, None
    rows = read_texts(config, "dataset")
    say(*left_out_lines(rows.left_out))
    _check(dataflex, sum(rows.stored_rows.values()), len(rows))
    if _aims_at_rows(dataflex):
        target = read_texts(config, "target_dataset" if spec.target_dataset else "eval_dataset")
    chosen = choose(dataflex, rows, target, str(config.llamafactory["output_dir"]))
    say(*(f"select:{spec.name}: {line}" for line in chosen.remarks.values()))
    notes = [*chosen.remarks.values(), *left_out_lines(rows.left_out)]
    return Outcome(rows.origins, spec.name, chosen.ids[0], chosen.scores, rows.texts, notes, chosen.reasons)
