"""`train`: LLaMA-Factory's own run with our trainer and our data loading in place, where the configuration asks for them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import xxhash

from dataflex import events
from dataflex.base import seams
from dataflex.base.checks.arguments import check_arguments
from dataflex.base.checks.optimizers import check_resumable, optimizer_notices
from dataflex.base.loading_arguments import Loading
from dataflex.base.refusals import ours
from dataflex.config import RunConfig, load
from dataflex.config.llamafactory.trainer_keys import global_batch, settle_batch
from dataflex.config.schema import DataflexConfig
from dataflex.config.schema.losses import hides_row_losses
from dataflex.errors import ConfigError
from dataflex.locking import alone_in
from dataflex.masking import masked
from dataflex.notices import say
from dataflex.talking.talker import talking
from dataflex.talking.time_spent import TimeSpent
from dataflex.values import truth
from dataflex.version import __version__
from dataflex.writing import failed_writes_reported

_NOT_WRITTEN = (
    "a file could not be written ({reason}); what was saved before is untouched, and the run can be resumed from its newest"
    " checkpoint"
)


def train_file(path: str, overrides: Sequence[str] = ()) -> None:
    """Train from a configuration file in this process, as `dataflex-cli train <path> [key=value ...]` does."""
    train(load([path, *overrides]))


def train(config: RunConfig) -> None:
    """Run one training in this process (one rank of it under torchrun or on Ray)."""
    config = check_arguments(config)
    say(*config.notices)
    output_dir = _output_dir(config.llamafactory)
    with alone_in(output_dir), failed_writes_reported(_NOT_WRITTEN):
        if config.dataflex is None:
            _train_without_block(config, output_dir)
            return
        with talking(config, output_dir) as spent:
            _train(config, spent)


def _train_without_block(config: RunConfig, output_dir: Path) -> None:
    """LLaMA-Factory's own run. It is told of by callbacks, which change nothing of it."""
    from llamafactory.train import tuner

    from dataflex.base.commands.callbacks import EvaluationProgress, StepReporter
    from dataflex.base.commands.plain_run import PlainRunEvents, talks_like_others

    arguments = dict(config.llamafactory)
    on_ray = truth(os.getenv("USE_RAY"), "USE_RAY")  # whose workers need not have this package then
    told = PlainRunEvents()
    callbacks = [] if on_ray else [StepReporter(), EvaluationProgress(), told]
    elsewhere = on_ray or truth(os.getenv("USE_MCA"), "USE_MCA")
    with ExitStack() as stack:
        if talks_like_others(arguments, elsewhere=elsewhere):
            stack.enter_context(talking(config, output_dir))
        stack.enter_context(seams.replaced(*seams.that_may_refuse(str(arguments.get("stage", "sft")), data=True)))
        tuner.run_exp(args=arguments, callbacks=callbacks)
        told.finish()


def _train(config: RunConfig, spent: TimeSpent) -> None:
    from llamafactory.train import tuner

    from dataflex.base.commands.callbacks import BlockReporter, StepReporter

    assert config.dataflex is not None
    arguments = dict(config.llamafactory)
    seams.check()
    say(*optimizer_notices(arguments))
    _settle_resume(arguments)
    block = masked(config.dataflex.to_json())
    callbacks: list[Any] = [StepReporter(), BlockReporter(block, bool(arguments.get("use_swanlab")))]
    if config.dataflex.compat.early_stopping_min_delta and arguments.get("early_stopping_steps"):
        from transformers import EarlyStoppingCallback

        patience = int(arguments.pop("early_stopping_steps"))
        callbacks.append(EarlyStoppingCallback(patience, config.dataflex.compat.early_stopping_min_delta))
    with _dynamic(config, spent), _ends_when_asked():
        tuner._training_function(config={"args": arguments, "callbacks": callbacks})


@contextmanager
def _ends_when_asked() -> Iterator[None]:
    """The environment may name a step: the process ends once the checkpoint of that step is complete."""
    from dataflex.record.sharing import stops_at

    step = stops_at()

    def end(saved: events.Saved) -> None:
        if saved.step == step:
            raise SystemExit(0)

    with events.listening((events.Saved, end)):
        yield


def _output_dir(arguments: Mapping[str, Any]) -> Path:
    return Path(str(arguments.get("output_dir") or "trainer_output"))  # transformers' own default


def _settle_resume(arguments: dict[str, Any]) -> None:
    """`resume_from_checkpoint: true` means the newest complete checkpoint, and there must be one."""
    from dataflex.record.completeness import complete_checkpoints, newest_complete

    asked = arguments.get("resume_from_checkpoint")
    if arguments.get("stage") == "rm":
        _refuse_to_restart(arguments)
    if str(asked).lower() != "true":
        return
    output = _output_dir(arguments)
    if _of_another_rank():  # which may be on another node; see settle_checkpoint
        arguments["resume_from_checkpoint"] = next((str(path) for _, path in complete_checkpoints(output)), None)
        return
    found, passed_over = newest_complete(output)
    say(*passed_over)
    if found is None:
        raise ConfigError(f"resume_from_checkpoint: {output} has no complete checkpoint")
    arguments["resume_from_checkpoint"] = str(found)


def _of_another_rank() -> bool:
    """Before ranks can speak to each other."""
    return os.getenv("RANK", "0") != "0"


def _refuse_to_restart(arguments: dict[str, Any]) -> None:
    """LLaMA-Factory cannot resume a reward model (its value head is stored apart): trained in full it would start over on
    top of what is there, and with LoRA loading the checkpoint fails."""
    from dataflex.record.completeness import newest_complete

    if arguments.get("resume_from_checkpoint"):
        raise ConfigError("resume_from_checkpoint: LLaMA-Factory cannot resume a reward model (stage: rm)")
    folder = _output_dir(arguments)
    if not arguments.get("overwrite_output_dir") and newest_complete(folder)[0] is not None:
        raise ConfigError(
            f"output_dir: {folder} holds checkpoints, and LLaMA-Factory cannot resume a reward model (stage: rm);"
            " change output_dir or set overwrite_output_dir"
        )


def _dynamic(config: RunConfig, spent: TimeSpent) -> Any:
    """LLaMA-Factory with this run's trainer, data loading and choice of checkpoint. spent: knows how much time is left."""
    from dataflex.base.commands.callbacks import log_callback, reporter_callback
    from dataflex.record.completeness import newest_complete
    from dataflex.trainer import build_trainer

    assert config.dataflex is not None
    dataflex = config.dataflex
    stage = str(config.llamafactory.get("stage", "sft"))
    seam = seams.STAGES[stage]
    base = seams.attribute(seam.trainer_module, seam.trainer)
    identity: dict[str, Any] = {}
    run_record: dict[str, Any] = {}

    @ours
    def last_checkpoint(folder: str) -> str | None:
        try:
            found, passed_over = newest_complete(Path(folder))
        except ConfigError:
            if not _of_another_rank():
                raise
            found, passed_over = None, []
        say(*passed_over)
        if found is None and _of_another_rank():
            return ""  # None could end this rank, where the checkpoints are on another node; see settle_checkpoint
        return str(found) if found else None

    def get_dataset(*given: Any, **named: Any) -> Any:
        nonlocal config, dataflex
        from dataflex.base.checks.engine import check_engine
        from dataflex.base.checks.identity import asked_of, identity_of_run
        from dataflex.base.checks.nodes import same_rows, same_run, settle_checkpoint
        from dataflex.base.loading.data import check_budgets
        from dataflex.config.domains import left_out_lines, settled

        loading = Loading(*given, **named)
        training_args = loading.training_args
        settle_batch(dataflex, training_args)
        check_engine(dataflex, training_args, str(config.llamafactory.get("stage", "sft")))
        settle_checkpoint(training_args, config.llamafactory.get("resume_from_checkpoint"))
        module = load_data(dataflex, loading)
        left_out = module.pop("left_out", {})
        say(*left_out_lines(left_out))
        dataflex = settled(dataflex, module["train_dataset"].domains.names)
        config = replace(config, dataflex=dataflex)
        trainer.config = dataflex  # type: ignore[attr-defined]
        check_budgets(dataflex, module["train_dataset"], global_batch(dataflex, training_args))
        if dataflex.mix is not None and not training_args.resume_from_checkpoint:
            dataflex.mix.settled(global_batch(dataflex, training_args))
        identity.update(identity_of_run(config, loading, module["train_dataset"]))
        if "order_scores" in module:
            identity["content of dataflex.order"] = xxhash.xxh3_128_hexdigest(module["order_scores"].tobytes())
        if dataflex.plans_data:
            from dataflex.base.loading.heldout import identity_of, load_held_out

            trained = {identity[f"content of {name}"]: name for name in module["train_dataset"].domains.names}
            module["held_out"] = load_held_out(config, module, trained, loading)
            identity.update(identity_of(dataflex, module["held_out"]))
        if dataflex.aiming():
            from dataflex.base.loading.targets import check_apart, check_cut, load_target

            module["target_dataset"] = load_target(dataflex, module, loading)
            check_cut(dataflex, module["target_dataset"])
            check_apart(dataflex, module["target_dataset"], module["train_dataset"])
            digests = same_rows(module["target_dataset"].fingerprints, dataflex.target[0])
            identity.update({f"content of target {name}": digest for name, digest in digests.items()})
        same_run(identity, config.llamafactory)
        run_record.update(_record(config, identity, module["train_dataset"], left_out))
        if training_args.resume_from_checkpoint:
            check_resumable(config.llamafactory, Path(training_args.resume_from_checkpoint))
        _check_resume(dataflex, training_args, identity)
        references: dict[str, Any] = {}
        for slot, request in asked_of(dataflex):
            model = request.other_models().get("reference")
            if model is not None and model not in references:
                from dataflex.base.loading.reference import load_reference

                references[model] = load_reference(
                    model,
                    module["train_dataset"],
                    loading,
                    key=f"dataflex.{slot}.reference_model_path",
                    folder=Path(request.own_folder() or Path(training_args.output_dir) / "dataflex" / "reference"),
                    batch_tokens=dataflex.scoring_tokens,
                )
        return {**module, "references": references}

    trainer = build_trainer(
        base,
        dataflex,
        stage=stage,
        per_row=hides_row_losses(config.llamafactory) is None,
        packed=stage == "sft" and any(truth(config.llamafactory.get(k), k) for k in ("packing", "neat_packing")),
        identity=identity,
        run_record=run_record,
    )
    return seams.replaced(
        *seams.that_may_refuse(stage, data=False),
        (seam.trainer_module, seam.trainer, trainer),
        (seam.workflow, "get_dataset", get_dataset),
        ("llamafactory.hparams.parser", "get_last_checkpoint", last_checkpoint),
        *seams.of_progress(),
        ("llamafactory.train.tuner", "LogCallback", log_callback(spent.left)),
        ("llamafactory.train.tuner", "ReporterCallback", reporter_callback()),
    )


def load_data(dataflex: DataflexConfig, loading: Loading) -> dict[str, Any]:
    """What LLaMA-Factory's get_dataset gives, as the run needs it."""
    from dataflex.base.loading.carried import Carried
    from dataflex.base.loading.data import load_domains, load_merged
    from dataflex.base.loading.weight_column import check_weights

    carried = Carried.by(dataflex, loading)
    if dataflex.streams:
        from dataflex.base.loading.streams import load_streams

        assert dataflex.mix is not None
        module = load_streams(dataflex.mix, loading, carried, dataflex.domains)
    elif dataflex.plans_data:
        module = load_domains(loading, carried, dataflex.domains)
    else:
        module = load_merged(loading, carried, dataflex.domains)
    origins, sizes = module.pop("origins", None), module.pop("stored_rows", None)
    if dataflex.order is not None and dataflex.order.given:
        from dataflex.base.loading.scores import scores_of

        module["order_scores"] = scores_of(dataflex.order, origins, sizes)
    check_weights(dataflex, module["train_dataset"])
    return module


def _record(config: RunConfig, identity: dict[str, Any], rows: Any, left_out: Mapping[str, int]) -> dict[str, Any]:
    """What config.yaml shows: the resolved block, LLaMA-Factory's keys, versions and data fingerprints."""
    from importlib.metadata import version

    assert config.dataflex is not None
    packages = ("llamafactory", "torch", "transformers", "datasets", "accelerate", "peft", "trl")
    return {
        "dataflex": {
            **masked(config.dataflex.to_json()),
            "scoring_tokens": config.dataflex.scoring_tokens,
            "evaluate_domains": config.dataflex.evaluate_domains,
        },
        "llamafactory": masked(config.llamafactory),
        "versions": {"dataflex": __version__, **{p: version(p) for p in packages}},
        "domains": {
            name: {"rows": size or None, "fingerprint": identity[f"content of {name}"]}
            for name, size in zip(rows.domains.names, rows.sizes, strict=True)
        },
        **({"left_out": dict(left_out)} if left_out else {}),
        "tokenizer": identity["tokenizer"],
    }


def _check_resume(dataflex: DataflexConfig, training_args: Any, identity: dict[str, Any]) -> None:
    """Raise ConfigError if the run cannot go on from the checkpoint that is named."""
    from dataflex.base.checks.engine import check_same_engine
    from dataflex.base.checks.identity import comparable
    from dataflex.base.checks.nodes import check_generators
    from dataflex.deciding.mixing import check_older
    from dataflex.record.sharing import before_selecting, branches, without_selector
    from dataflex.record.snapshot import check_identity, read_snapshot

    folder = training_args.resume_from_checkpoint
    if not folder:
        return
    snapshot, ledger = read_snapshot(Path(folder))
    saved, current = comparable(snapshot.identity, identity)
    if branches():
        before_selecting(snapshot, ledger, Path(folder))
        elsewhere = any(slot.startswith("weight") for slot in dataflex.aiming())
        saved, current = (without_selector(side, aims_elsewhere=elsewhere) for side in (saved, current))
    check_identity(saved, current, Path(folder))
    check_same_engine(snapshot, training_args, Path(folder))
    check_generators(training_args, snapshot.ranks)
    if dataflex.mix is not None:
        check_older(dataflex.mix, snapshot.components["mix"], snapshot.parts["mixing"])
    fixed_batch = None if dataflex.plans_data else global_batch(dataflex, training_args)
    if fixed_batch not in (None, snapshot.global_batch):  # the order of rows is LLaMA-Factory's
        raise ConfigError(
            f"cannot resume from {folder}: per_device_train_batch_size x gradient_accumulation_steps x ranks was"
            f" {snapshot.global_batch} rows there and is {fixed_batch} now; without select, mix or order the order of rows cannot"
            " go on with another global batch"
        )
