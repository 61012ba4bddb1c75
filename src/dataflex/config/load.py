"""Splits the keys of a command into our block and LLaMA-Factory's, and settles what one says about the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dataflex.compat.behaviour import AS_THE_BLOCK
from dataflex.compat.flat import FLAT_KEYS, read_presets, translate
from dataflex.config.block import parse_block
from dataflex.config.evaluate import BLOCK, read_evaluate, refused_at_the_end
from dataflex.config.files import CONFIG_SUFFIXES, read, read_file
from dataflex.config.heldout import check_held_out, evaluates
from dataflex.config.order import idle_interval
from dataflex.config.refusals.table import check_combinations
from dataflex.config.schema import DataflexConfig, EvaluateConfig, RunConfig, WeightPart
from dataflex.errors import ConfigError, Mistakes
from dataflex.values import integer, truth
from dataflex.values.domains import data_sets
from dataflex.values.paths import is_file

STREAM_BLOCK = 2048  # raw rows
# So that nothing is trained, saved or packed by a selection before training.
SET_BY_SELECT: Mapping[str, Any] = {
    "do_train": True, "do_eval": False, "do_predict": False, "packing": False, "neat_packing": False,
    "overwrite_output_dir": True, "save_strategy": "no", "eval_strategy": "no", "report_to": "none", "max_steps": 1,
    "plot_loss": False, "tokenized_path": None,
}  # fmt: skip


def load(arguments: Sequence[str]) -> RunConfig:
    """arguments: `<file.yaml|.yml|.json> [key=value ...]`, or LLaMA-Factory's `--key value ...`."""
    return parse(read(arguments))


def parse(raw: dict[str, Any], *, offline: bool = False) -> RunConfig:
    """Split a flat mapping of keys into RunConfig; ConfigError with all that is wrong. offline: to select before training."""
    raw = dict(raw)
    notices: list[str] = []
    mistakes = Mistakes()
    block = raw.pop("dataflex", None)
    if isinstance(block, dict) and "doremi" in block:
        block = {key: value for key, value in block.items() if key != "doremi"}
        notices.append("dataflex.doremi has no effect on train; dataflex-cli doremi reads it")
    evaluate: EvaluateConfig | None = None
    if isinstance(block, dict) and "evaluate" in block:
        block = dict(block)
        given = block.pop("evaluate")
        if offline:
            notices.append(f"{BLOCK} has no effect on select; dataflex-cli evaluate reads it")
        elif given is not None:
            evaluate = read_evaluate(given, BLOCK, mistakes)
            mistakes.gather(refused_at_the_end(raw))
    flat = {key: raw.pop(key) for key in FLAT_KEYS if key in raw}
    if block is not None and set(flat) - {"components_cfg_file"}:
        other = sorted(set(flat) - {"components_cfg_file"})[0]
        raise ConfigError(f"dataflex and {other} are two spellings of one block: keep one of them")
    if block is None:
        said = translate(flat, raw, notices)
        if not said.block:  # static: LLaMA-Factory's run, untouched
            return RunConfig(dataflex=None, llamafactory=raw, notices=tuple(notices))
        block, presets, spelled, compat = said.block, said.presets, said.spelled, said.compat
    else:
        presets, spelled, compat = None, {}, AS_THE_BLOCK
        with mistakes.noting():
            presets = read_presets(flat.get("components_cfg_file"))
    settled = parse_block(block, presets or {}, spelled, notices, data_sets(raw), mistakes)
    if settled is None or presets is None:
        mistakes.settle()
        raise AssertionError("a block that cannot be read has a mistake")
    config = replace(settled, compat=compat)
    if not config.components and block and not mistakes:
        mistakes.note(ConfigError("dataflex: the block has no component; add select, mix, weight or order"))
    if not config.components:
        mistakes.settle()
        return RunConfig(dataflex=None, llamafactory=raw, notices=tuple(notices), evaluate=evaluate)

    with mistakes.noting(once=True):
        _settle_steps(config, raw, spelled, notices)
    if config.offline is not None and not offline:
        notices.append("dataflex.offline has no effect on train; dataflex-cli select reads it")
        config = replace(config, offline=None)
    if not offline and truth(raw.get("save_only_model"), "save_only_model"):
        notices.append("save_only_model: checkpoints cannot be resumed from")
    if config.compat.early_stopping_min_delta and not raw.get("early_stopping_steps"):
        notices.append("early_stopping_min_delta has no effect without early_stopping_steps")
    given = block.get("select") if isinstance(block, dict) else None
    if isinstance(given, dict) and "keep_ratio" in given and config.mix is None:
        notices.append("dataflex.select.keep_ratio has no effect without mix: the budget is interval x global batch")
    if (
        config.select
        and config.select.serving_order == "selection"
        and not config.order
        and not truth(raw.get("disable_shuffling"), "disable_shuffling")
    ):
        notices.append("dataflex.select.serving_order has no effect without disable_shuffling")
    if config.order and (idle := idle_interval(config.order, config.mix is not None)):
        notices.append(idle)
    if config.order and config.select and config.select.serving_order == "selection":
        notices.append("dataflex.select.serving_order has no effect with order, which says how a selection is served")
    if config.select and config.select.target_dataset and not config.aiming():
        notices.append(f"dataflex.select.target_dataset has no effect: {config.select.name} aims at no target")
    if config.weight and config.weight.target_dataset and not config.aiming():
        notices.append(f"dataflex.weight.target_dataset has no effect: {config.weight.name} aims at no target")
    with mistakes.noting(once=True):
        config = _settle_block(config, raw, notices)
    check_combinations(config, raw, notices, mistakes)
    if config.plans_data and not offline:
        with mistakes.noting(once=True):
            check_held_out(config, raw, notices)
    mistakes.settle()
    if config.plans_data and not offline:
        held_out = config.mix.eval_dataset if config.mix else ()
        if held_out and evaluates(raw) and not raw.get("eval_dataset") and not raw.get("val_size"):
            raw["eval_dataset"] = ",".join(held_out.values() if isinstance(held_out, dict) else held_out)
    return RunConfig(dataflex=config, llamafactory=raw, notices=tuple(notices), evaluate=evaluate)


def _settle_steps(config: DataflexConfig, raw: dict[str, Any], spelled: dict[str, str], notices: list[str]) -> None:
    """`max_steps` from `dataflex.total_steps`, and a notice for what the run is too short for."""
    asked = raw.get("max_steps")
    steps = 0 if asked is None else integer(asked, "max_steps")
    if config.total_steps is not None:
        if steps > 0 and steps != config.total_steps:
            winner = spelled.get("dataflex.total_steps", "dataflex.total_steps")
            notices.append(f"{winner} ({config.total_steps} steps) wins over max_steps ({asked})")
        raw["max_steps"] = steps = config.total_steps
    weights = config.weight.slots() if config.weight else {}
    slots = {"select": config.select, "mix": config.mix, **weights, "order": config.order}
    for slot, spec in slots.items():
        if spec is None:
            continue
        warmup = spec.warmup if isinstance(spec, WeightPart) else spec.schedule.warmup
        if 0 < steps <= warmup:
            notices.append(f"{slot}: {spec.name} never acts: its warmup is {warmup} steps and the run has {steps}")


def _settle_block(config: DataflexConfig, raw: dict[str, Any], notices: list[str]) -> DataflexConfig:
    """`stream_block` from LLaMA-Factory's buffer_size, or the default, where data is streamed; None where it is not."""
    if config.mix is None:
        return config
    block, buffer = config.mix.stream_block, raw.get("buffer_size")
    if not truth(raw.get("streaming"), "streaming"):
        if block is not None:
            notices.append("dataflex.mix.stream_block has no effect without streaming")
        return replace(config, mix=replace(config.mix, stream_block=None))
    if block is not None and buffer is not None:
        notices.append("buffer_size has no effect: dataflex.mix.stream_block says how many rows are shuffled at once")
    if block is None:
        block = STREAM_BLOCK if buffer is None else integer(buffer, "buffer_size")
        if block < 1:
            raise ConfigError(f"buffer_size must be at least 1, got {block}")
    return replace(config, mix=replace(config.mix, stream_block=block))


def load_offline(arguments: Sequence[str]) -> RunConfig:
    """As `load`, for a selection before training: a selector, what it needs, and how much it selects. LLaMA-Factory's keys are
    set so that nothing is trained, saved or packed."""
    if not arguments or not arguments[0].endswith(CONFIG_SUFFIXES):
        raise ConfigError(
            f"select reads a {', '.join(CONFIG_SUFFIXES)} file, got {arguments[0] if arguments else 'none'!r}"
        )
    raw = read_file(Path(arguments[0]), list(arguments[1:]))
    mistakes = Mistakes()
    mistakes.gather(_refused_offline(raw))
    block = raw.get("dataflex")
    if not isinstance(block, dict) or block.get("select") is None:
        mistakes.note(ConfigError("dataflex.select is required: which rows to select; see dataflex-cli help"))
        mistakes.settle()
        raise AssertionError("a selection without a selector is refused")
    select = {"name": block["select"]} if isinstance(block["select"], str) else block["select"]
    if isinstance(select, dict):
        idle = ("warmup", "updates", "keep_ratio", "interval")
        select = {**{k: v for k, v in select.items() if k not in idle}, "warmup": 0, "interval": 1}
    kept = {k: v for k, v in block.items() if k not in ("mix", "weight", "order", "total_steps")}
    raw["dataflex"] = {**kept, "select": select, "offline": {} if block.get("offline") is None else block["offline"]}
    fixed = {**SET_BY_SELECT, "val_size": raw.get("val_size") or 0.0}
    config: RunConfig | None = None
    with mistakes.noting(once=True):
        config = parse({**raw, **fixed}, offline=True)
    if config is not None:
        mistakes.gather(_refused_selector(config, raw.get("resume_from_checkpoint")))
    mistakes.settle()
    assert config is not None
    return config


def _refused_offline(raw: dict[str, Any]) -> Iterator[str]:
    """What belongs to training alone."""
    block = raw.get("dataflex")
    for slot in ("mix", "weight", "order"):
        if isinstance(block, dict) and block.get(slot) is not None:
            yield f"dataflex.{slot} belongs to training; select takes a selector alone"
    if raw.get("stage") == "kto":
        yield "stage: kto makes rows of several stored ones; use sft, pt, dpo or rm with select"
    for key in ("deepspeed", "fsdp"):
        if raw.get(key):
            yield f"{key} splits the model over ranks, which select does not need; leave it out"
    if not raw.get("output_dir"):
        yield "output_dir is required: where to write the selection"


def _refused_selector(config: RunConfig, checkpoint: Any) -> Iterator[str]:
    """What a selector needs that there is not before training."""
    assert config.dataflex is not None and config.dataflex.select is not None
    if not config.dataflex.select.component.before_training:
        name = config.dataflex.select.name
        yield f"dataflex.select.name: {name} compares moments of a training and cannot select before it"
    if any(r.reads_moments() for r in config.dataflex.requests("select")):
        if not checkpoint:
            yield (
                "dataflex.select.gradient_type: adam reads the moments of an optimizer; name a checkpoint with"
                " resume_from_checkpoint, or set gradient_type: sgd"
            )
        elif not is_file(str(Path(str(checkpoint)) / "optimizer.pt")):
            yield f"resume_from_checkpoint: {checkpoint} has no optimizer.pt, whose moments are asked for"
