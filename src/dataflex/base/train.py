"""`train`: LLaMA-Factory's own run with our trainer and our data loading in place, where the configuration asks for them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dataflex.base import seams
from dataflex.base.arguments import check_arguments
from dataflex.base.launch import say
from dataflex.components.requests import ReferenceLoss, Request
from dataflex.config import RunConfig, load
from dataflex.config.combinations import hides_row_losses
from dataflex.config.schema import DataflexConfig
from dataflex.config.values import truth
from dataflex.errors import ConfigError
from dataflex.version import __version__

# Keys of the block that say where something is: what is there counts.
_PATHS = ("eval_dataset", "store", "reference_store")
# Keys that are not written down.
_SECRET = ("token", "api_key", "secret", "ray_init_kwargs")


def train_file(path: str, overrides: Sequence[str] = ()) -> None:
    """Train from a configuration file in this process, as `dataflex-cli train <path> [key=value ...]` does."""
    train(load([path, *overrides]))


def train(config: RunConfig) -> None:
    """Run one training in this process (one rank of it under torchrun or on Ray)."""
    config = check_arguments(config)
    say(config.notices)
    from llamafactory.train import tuner

    arguments = dict(config.llamafactory)
    if config.dataflex is None:
        tuner.run_exp(args=arguments)
        return
    seams.check()
    _settle_resume(arguments)
    from dataflex.base.callbacks import BlockReporter

    callbacks: list[Any] = [BlockReporter(config.dataflex.to_json(), bool(arguments.get("use_swanlab")))]
    if config.dataflex.early_stopping_min_delta and arguments.get("early_stopping_steps"):
        from transformers import EarlyStoppingCallback

        patience = int(arguments.pop("early_stopping_steps"))
        callbacks.append(EarlyStoppingCallback(patience, config.dataflex.early_stopping_min_delta))
    with _dynamic(config):
        tuner._training_function(config={"args": arguments, "callbacks": callbacks})


def _settle_resume(arguments: dict[str, Any]) -> None:
    """`resume_from_checkpoint: true` means the newest complete checkpoint, and there must be one."""
    from dataflex.trainer.state import complete_checkpoints, newest_complete

    asked = arguments.get("resume_from_checkpoint")
    if arguments.get("stage") == "rm":
        _refuse_to_restart(arguments)
    if str(asked).lower() != "true":
        return
    output = Path(str(arguments.get("output_dir")))
    if _of_another_rank():  # which may be on another node; see settle_checkpoint
        arguments["resume_from_checkpoint"] = next((str(path) for _, path in complete_checkpoints(output)), None)
        return
    found, passed_over = newest_complete(output)
    say(passed_over)
    if found is None:
        raise ConfigError(f"resume_from_checkpoint: {arguments.get('output_dir')} has no complete checkpoint")
    arguments["resume_from_checkpoint"] = str(found)


def _of_another_rank() -> bool:
    """Before ranks can speak to each other."""
    return os.getenv("RANK", "0") != "0"


def _refuse_to_restart(arguments: dict[str, Any]) -> None:
    """LLaMA-Factory cannot resume a reward model (its value head is stored apart): trained in full it would start over on
    top of what is there, and with LoRA loading the checkpoint fails."""
    from dataflex.trainer.state import newest_complete

    if arguments.get("resume_from_checkpoint"):
        raise ConfigError("resume_from_checkpoint: LLaMA-Factory cannot resume a reward model (stage: rm)")
    folder = str(arguments.get("output_dir"))
    if not arguments.get("overwrite_output_dir") and newest_complete(Path(folder))[0] is not None:
        raise ConfigError(
            f"output_dir: {folder} holds checkpoints, and LLaMA-Factory cannot resume a reward model (stage: rm);"
            " change output_dir or set overwrite_output_dir"
        )


def _dynamic(config: RunConfig) -> Any:
    """LLaMA-Factory with this run's trainer, data loading and choice of checkpoint."""
    from dataflex.base.callbacks import log_callback
    from dataflex.trainer import build_trainer
    from dataflex.trainer.state import newest_complete

    assert config.dataflex is not None
    dataflex = config.dataflex
    stage = str(config.llamafactory.get("stage", "sft"))
    seam = seams.STAGES[stage]
    base = seams.attribute(seam.trainer_module, seam.trainer)
    identity: dict[str, Any] = {}
    run_record: dict[str, Any] = {}

    def last_checkpoint(folder: str) -> str | None:
        try:
            found, passed_over = newest_complete(Path(folder))
        except ConfigError:
            if not _of_another_rank():
                raise
            found, passed_over = None, []
        say(passed_over)
        if found is None and _of_another_rank():
            return ""  # None could end this rank, where the checkpoints are on another node; see settle_checkpoint
        return str(found) if found else None

    def get_dataset(
        template: Any, model_args: Any, data_args: Any, training_args: Any, stage: str, **tokenizer_module: Any
    ) -> Any:
        from dataflex.base.data import check_budgets
        from dataflex.base.engine import check_engine
        from dataflex.base.nodes import same_rows, same_run, settle_checkpoint

        check_engine(dataflex, training_args, str(config.llamafactory.get("stage", "sft")))
        settle_checkpoint(training_args, config.llamafactory.get("resume_from_checkpoint"))
        module = load_data(dataflex, template, model_args, data_args, training_args, stage, **tokenizer_module)
        check_budgets(dataflex, module["train_dataset"], _global_batch(training_args))
        if dataflex.mix is not None and not training_args.resume_from_checkpoint:
            dataflex.mix.settled(_global_batch(training_args))
        identity.update(_identity(config, data_args, training_args, stage, tokenizer_module, module["train_dataset"]))
        if dataflex.plans_data:
            from dataflex.base.heldout import identity_of, load_held_out

            trained = {identity[f"content of {name}"]: name for name in module["train_dataset"].domains.names}
            module["held_out"] = load_held_out(
                config, module, trained, template, model_args, data_args, training_args, stage, **tokenizer_module
            )
            identity.update(identity_of(dataflex, module["held_out"]))
        if dataflex.aiming():
            from dataflex.base.targets import check_apart, check_cut, load_target

            module["target_dataset"] = load_target(
                dataflex, module, template, model_args, data_args, training_args, stage, **tokenizer_module
            )
            check_cut(dataflex, module["target_dataset"])
            check_apart(dataflex, module["target_dataset"], module["train_dataset"])
            digests = same_rows(module["target_dataset"].fingerprints, dataflex.target[0])
            identity.update({f"content of target {name}": digest for name, digest in digests.items()})
        same_run(identity, config.llamafactory)
        run_record.update(_record(config, identity, module["train_dataset"]))
        _check_resume(training_args, identity, None if dataflex.plans_data else _global_batch(training_args))
        references: dict[str, Any] = {}
        for slot, request in asked_of(dataflex):
            if isinstance(request, ReferenceLoss) and request.model not in references:
                from dataflex.base.reference import load_reference

                references[request.model] = load_reference(
                    request.model, module["train_dataset"], template, model_args, data_args, training_args, stage,
                    key=f"dataflex.{slot}.reference_model_path", budget=dataflex.scoring_tokens,
                    folder=Path(request.store or Path(training_args.output_dir) / "dataflex" / "reference"),
                    **tokenizer_module,
                )  # fmt: skip
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
        (seam.trainer_module, seam.trainer, trainer),
        (seam.workflow, "get_dataset", get_dataset),
        ("llamafactory.hparams.parser", "get_last_checkpoint", last_checkpoint),
        ("llamafactory.train.tuner", "LogCallback", log_callback()),
    )


def load_data(dataflex: DataflexConfig, *args: Any, **tokenizer_module: Any) -> dict[str, Any]:
    """What LLaMA-Factory's get_dataset gives, as the run needs it. args: template, model_args, data_args, training_args, stage"""
    from dataflex.base.data import load_domains, load_merged
    from dataflex.base.raw import numbered_rows, take_numbers
    from dataflex.base.weights import check_weights, given_weights

    with given_weights(dataflex, args[2]):
        if dataflex.streams:
            from dataflex.base.streams import load_streams

            assert dataflex.mix is not None
            module = load_streams(dataflex.mix, *args, **tokenizer_module)
        elif dataflex.select is not None and dataflex.select.component.reads_raw_rows:
            with numbered_rows() as stored:
                module = load_domains(*args, **tokenizer_module)
            module = take_numbers(module, stored)
        elif dataflex.plans_data:
            module = load_domains(*args, **tokenizer_module)
        else:
            module = load_merged(*args, **tokenizer_module)
    check_weights(dataflex, module["train_dataset"])
    return module


def _global_batch(args: Any) -> int:
    return args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size


def _identity(
    config: RunConfig, data_args: Any, training_args: Any, stage: str, tokenizer_module: dict[str, Any], rows: Any
) -> dict[str, Any]:
    """What a resumed run must share with the run it goes on from, as flat keys."""
    from dataflex.base.data import tokenization_signature
    from dataflex.base.nodes import OTHER_SETTING, same_everywhere, same_rows
    from dataflex.trainer.collectives import decide

    assert config.dataflex is not None
    out: dict[str, Any] = {}
    for key, value in config.dataflex.to_json().items():
        if isinstance(value, dict):
            out |= {f"dataflex.{key}.{k}": v for k, v in value.items() if k not in _PATHS}
        else:
            out[f"dataflex.{key}"] = value
    out["finetuning_type"] = config.llamafactory.get("finetuning_type", "lora")
    file = getattr(config.dataflex.components.get("select"), "file", None)
    if file is not None:
        out["content of the selector's file"] = decide(lambda: hash_file(Path(file)))
    for slot in config.dataflex.slots("weight"):
        by_domain = getattr(config.dataflex.components[slot], "by_domain", None)
        if isinstance(by_domain, str):
            key = f"content of dataflex.{slot}.by_domain"  # every rank reads it
            out |= same_everywhere(lambda key=key, path=by_domain: {key: hash_file(Path(path))}, OTHER_SETTING)  # type: ignore[misc]
    for slot, request in asked_of(config.dataflex):
        if isinstance(request, ReferenceLoss):
            from dataflex.base.reference import fingerprint

            out[f"content of the reference of {slot}"] = fingerprint(request.model, f"dataflex.{slot}")
    ledger = getattr(config.dataflex.components.get("mix"), "ledger", None)
    if ledger is not None:
        out["content of the mixer's ledger"] = decide(lambda: hash_file(Path(ledger)))
    out["seed"] = training_args.seed
    out["data_seed"] = training_args.data_seed
    out["disable_shuffling"] = bool(config.llamafactory.get("disable_shuffling", False))
    if training_args.max_steps > 0:
        out["max_steps"] = training_args.max_steps
    else:
        out["num_train_epochs"] = training_args.num_train_epochs
    out["dataset"] = ",".join(data_args.dataset)
    out |= tokenization_signature(data_args, training_args, stage, tokenizer_module["tokenizer"])
    if config.dataflex.streams:
        return out | rows.facts
    out |= {f"rows of {n}": size for n, size in zip(rows.domains.names, rows.domains.sizes, strict=True)}
    out |= {f"content of {n}": digest for n, digest in same_rows(rows.fingerprints, "dataset").items()}
    weights = same_rows(rows.weight_fingerprints, "dataset: weights and")
    out |= {f"weights of {n}": digest for n, digest in weights.items()}
    return out


def asked_of(dataflex: DataflexConfig) -> list[tuple[str, Request]]:
    """What every slot asks for, in the order that all ranks share."""
    return [(slot, request) for slot in dataflex.components for request in sorted(dataflex.requests(slot), key=str)]


def hash_file(path: Path) -> str:
    import xxhash

    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def _record(config: RunConfig, identity: dict[str, Any], rows: Any) -> dict[str, Any]:
    """What config.yaml shows: the resolved block, LLaMA-Factory's keys, versions and data fingerprints."""
    from importlib.metadata import version

    assert config.dataflex is not None
    packages = ("llamafactory", "torch", "transformers", "datasets", "accelerate", "peft", "trl")
    return {
        "dataflex": {
            **config.dataflex.to_json(),
            "scoring_tokens": config.dataflex.scoring_tokens,
            "evaluate_domains": config.dataflex.evaluate_domains,
        },
        "llamafactory": {k: "*****" if k.endswith(_SECRET) and v else v for k, v in config.llamafactory.items()},
        "versions": {"dataflex": __version__, **{p: version(p) for p in packages}},
        "domains": {
            name: {"rows": size or None, "fingerprint": identity[f"content of {name}"]}
            for name, size in zip(rows.domains.names, rows.sizes, strict=True)
        },
        "tokenizer": identity["tokenizer"],
    }


def _check_resume(training_args: Any, identity: dict[str, Any], fixed_batch: int | None) -> None:
    """fixed_batch: the global batch where it must not change, because the order of rows is LLaMA-Factory's."""
    from dataflex.base.engine import check_same_engine
    from dataflex.base.nodes import check_generators
    from dataflex.trainer.state import check_identity, read_snapshot

    folder = training_args.resume_from_checkpoint
    if not folder:
        return
    snapshot, _ = read_snapshot(Path(folder))
    check_identity(snapshot.identity, identity, Path(folder))
    check_same_engine(snapshot, training_args, Path(folder))
    check_generators(training_args, snapshot.ranks)
    if fixed_batch not in (None, snapshot.global_batch):
        raise ConfigError(
            f"cannot resume from {folder}: per_device_train_batch_size x gradient_accumulation_steps x ranks was"
            f" {snapshot.global_batch} rows there and is {fixed_batch} now; without select or mix the order of rows cannot"
            " go on with another global batch"
        )
