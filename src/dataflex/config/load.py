"""Reads a configuration file and overrides, and splits it into our block and LLaMA-Factory's keys."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from dataflex.config.block import parse_block
from dataflex.config.combinations import check_combinations
from dataflex.config.flat import FLAT_KEYS, Translation, read_presets, translate
from dataflex.config.heldout import check_held_out, evaluates
from dataflex.config.mixture import domain_names
from dataflex.config.paths import at_home
from dataflex.config.schema import DataflexConfig, RunConfig, WeightPart
from dataflex.config.values import integer, truth
from dataflex.errors import ConfigError
from dataflex.masking import filled

STREAM_BLOCK = 2048  # raw rows
CONFIG_SUFFIXES = (".yaml", ".yml", ".json")


def load(arguments: Sequence[str]) -> RunConfig:
    """arguments: `<file.yaml|.yml|.json> [key=value ...]`, or LLaMA-Factory's `--key value ...`."""
    if arguments and arguments[0].endswith(CONFIG_SUFFIXES):
        raw = read_file(Path(arguments[0]), list(arguments[1:]))
    else:
        raw = _read_flags(arguments)
    return parse(raw)


def parse(raw: dict[str, Any], *, offline: bool = False) -> RunConfig:
    """Split a flat mapping of keys into RunConfig. offline: for a selection before training."""
    raw = dict(raw)
    notices: list[str] = []
    block = raw.pop("dataflex", None)
    if isinstance(block, dict) and "doremi" in block:
        block = {key: value for key, value in block.items() if key != "doremi"}
        notices.append("dataflex.doremi has no effect on train; dataflex-cli doremi reads it")
    flat = {key: raw.pop(key) for key in FLAT_KEYS if key in raw}
    if block is not None and set(flat) - {"components_cfg_file"}:
        other = sorted(set(flat) - {"components_cfg_file"})[0]
        raise ConfigError(f"dataflex and {other} are two spellings of one block: keep one of them")
    if block is None:
        read = translate(flat, raw, notices)
        if not read.block:  # static: LLaMA-Factory's run, untouched
            return RunConfig(dataflex=None, llamafactory=raw, notices=tuple(notices))
    else:
        read = Translation(block, presets=read_presets(flat.get("components_cfg_file")))
    block, spelled = read.block, read.spelled
    config = replace(parse_block(block, read.presets, spelled, notices, domain_names(raw)), **read.extra)
    if not config.components and block:
        raise ConfigError("dataflex: the block has no component; add select, mix or weight")
    if not config.components:
        return RunConfig(dataflex=None, llamafactory=raw, notices=tuple(notices))

    if config.total_steps is not None:
        asked = raw.get("max_steps")
        steps = 0 if asked is None else integer(asked, "max_steps")
        if steps > 0 and steps != config.total_steps:
            winner = spelled.get("dataflex.total_steps", "dataflex.total_steps")
            notices.append(f"{winner} ({config.total_steps} steps) wins over max_steps ({asked})")
        raw["max_steps"] = config.total_steps
    if config.offline is not None and not offline:
        notices.append("dataflex.offline has no effect on train; dataflex-cli select reads it")
        config = replace(config, offline=None)
    if not offline and truth(raw.get("save_only_model"), "save_only_model"):
        notices.append("save_only_model: checkpoints cannot be resumed from")
    if config.early_stopping_min_delta and not raw.get("early_stopping_steps"):
        notices.append("early_stopping_min_delta has no effect without early_stopping_steps")
    given = block.get("select") if isinstance(block, dict) else None
    if isinstance(given, dict) and "keep_ratio" in given and config.mix is None:
        notices.append("dataflex.select.keep_ratio has no effect without mix: the budget is interval x global batch")
    if (
        config.select
        and config.select.serving_order == "selection"
        and not truth(raw.get("disable_shuffling"), "disable_shuffling")
    ):
        notices.append("dataflex.select.serving_order has no effect without disable_shuffling")
    if config.select and config.select.target_dataset and not config.aiming():
        notices.append(f"dataflex.select.target_dataset has no effect: {config.select.name} aims at no target")
    if config.weight and config.weight.target_dataset and not config.aiming():
        notices.append(f"dataflex.weight.target_dataset has no effect: {config.weight.name} aims at no target")
    slots = {"select": config.select, "mix": config.mix, **(config.weight.slots() if config.weight else {})}
    for slot, spec in slots.items():
        if spec is None:
            continue
        warmup = spec.warmup if isinstance(spec, WeightPart) else spec.schedule.warmup
        steps = integer(raw.get("max_steps") or 0, "max_steps")
        if 0 < steps <= warmup:
            notices.append(f"{slot}: {spec.name} never acts: its warmup is {warmup} steps and the run has {steps}")
    config = _settle_block(config, raw, notices)
    check_combinations(config, raw, notices)
    if config.plans_data and not offline:
        check_held_out(config, raw, notices)
        given = config.mix.eval_dataset if config.mix else ()
        if given and evaluates(raw) and not raw.get("eval_dataset") and not raw.get("val_size"):
            raw["eval_dataset"] = ",".join(given.values() if isinstance(given, dict) else given)
    return RunConfig(dataflex=config, llamafactory=raw, notices=tuple(notices))


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
    block = raw.get("dataflex")
    if not isinstance(block, dict) or block.get("select") is None:
        raise ConfigError("dataflex.select is required: which rows to select; see dataflex-cli help")
    extra = [slot for slot in ("mix", "weight") if block.get(slot) is not None]
    if extra:
        raise ConfigError(f"dataflex.{extra[0]} belongs to training; select takes a selector alone")
    select = {"name": block["select"]} if isinstance(block["select"], str) else dict(block["select"])
    select = {key: value for key, value in select.items() if key not in ("warmup", "updates", "keep_ratio")}
    raw["dataflex"] = {**block, "select": {**select, "warmup": 0, "interval": 1}, "offline": block.get("offline") or {}}
    if raw.get("stage") == "kto":
        raise ConfigError("stage: kto makes rows of several stored ones; use sft, pt, dpo or rm with select")
    for key in ("deepspeed", "fsdp"):
        if raw.get(key):
            raise ConfigError(f"{key} splits the model over ranks, which select does not need; leave it out")
    if not raw.get("output_dir"):
        raise ConfigError("output_dir is required: where to write the selection")
    fixed = {
        "do_train": True, "do_eval": False, "do_predict": False, "packing": False, "neat_packing": False,
        "overwrite_output_dir": True, "save_strategy": "no", "eval_strategy": "no", "report_to": "none", "max_steps": 1,
        "plot_loss": False, "tokenized_path": None, "val_size": raw.get("val_size") or 0.0,
    }  # fmt: skip
    raw["dataflex"].pop("total_steps", None)
    config = parse({**raw, **fixed}, offline=True)
    assert config.dataflex is not None and config.dataflex.select is not None
    if not config.dataflex.select.component.before_training:
        name = config.dataflex.select.name
        raise ConfigError(f"dataflex.select.name: {name} compares moments of a training and cannot select before it")
    checkpoint = raw.get("resume_from_checkpoint")
    if any(getattr(r, "gradient_type", "") == "adam" for r in config.dataflex.requests("select")):
        if not checkpoint:
            raise ConfigError(
                "dataflex.select.gradient_type: adam reads the moments of an optimizer; name a checkpoint with"
                " resume_from_checkpoint, or set gradient_type: sgd"
            )
        if not (Path(str(checkpoint)) / "optimizer.pt").is_file():
            raise ConfigError(f"resume_from_checkpoint: {checkpoint} has no optimizer.pt, whose moments are asked for")
    return config


def read_file(path: Path, overrides: list[str]) -> dict[str, Any]:
    """The keys of a .yaml or .json file, with `key=value` overrides."""
    if not path.is_file():
        raise ConfigError(f"no such configuration file: {path}")
    bad = [o for o in overrides if "=" not in o]
    if bad:
        raise ConfigError(f"override {bad[0]!r} is not of the form key=value")
    try:
        text = path.read_text(encoding="utf-8")
        base = OmegaConf.create(json.loads(text)) if path.suffix == ".json" else OmegaConf.create(text)
        merged = OmegaConf.to_container(OmegaConf.merge(base, OmegaConf.from_dotlist(overrides)))
    except TypeError:
        raise ConfigError(f"{path} must hold keys and values") from None
    except (YAMLError, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(merged, dict):
        raise ConfigError(f"{path} must hold keys and values")
    return filled({str(k): v for k, v in at_home(merged).items()})


def _read_flags(arguments: Sequence[str]) -> dict[str, Any]:
    """`--key value`, `--key=value`, `--key a b` (a list) and `--key` (true), values typed as YAML does."""
    pairs: list[str] = []
    index = 0
    while index < len(arguments):
        word = arguments[index]
        if not word.startswith("--"):
            raise ConfigError(f"expected a .yaml, .yml or .json file or --key value, got {word!r}")
        key, equals, value = word[2:].partition("=")
        index += 1
        values = [value] if equals else []
        while not equals and index < len(arguments) and not arguments[index].startswith("--"):
            values.append(arguments[index])
            index += 1
        joined = "true" if not values else values[0] if len(values) == 1 else "[" + ",".join(values) + "]"
        pairs.append(f"{key}={joined}")
    try:
        content = OmegaConf.to_container(OmegaConf.from_dotlist(pairs))
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(" ".join(str(error).split())) from None
    assert isinstance(content, dict)
    return {str(k): v for k, v in at_home(content).items()}
