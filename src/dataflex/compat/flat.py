"""The flat keys of dataflex 1.1.0 (`train_type`, `component_name`, ...) -> the nested block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, isclose, isfinite
from pathlib import Path
from typing import Any

import yaml

from dataflex.compat import orders
from dataflex.compat.behaviour import AS_THE_BLOCK, Compatibility
from dataflex.compat.pipelines import pipeline_block
from dataflex.errors import ConfigError, nearest
from dataflex.values import integer, number, truth, words
from dataflex.values.domains import data_sets, proportions
from dataflex.values.paths import at_home

FLAT_KEYS = (
    "train_type",
    "components_cfg_file",
    "component_name",
    "warmup_step",
    "update_step",
    "update_times",
    "static_mix",
    "train_step",
    "freeze_gate",
    "early_stopping_min_delta",
    "mixture_sample_rule",
    "init_mixture_proportions",
    "mixer_eval_dataset",
)
_TRAIN_TYPES = {
    "dynamic_select": "select", "dynamic_mix": "mix", "dynamic_weight": "weight", "dynamic_reorder": "order",
}  # fmt: skip
_PIPELINE = "dynamic_lego"
_BUCKETS = {
    "selectors": "select", "mixers": "mix", "weighters": "weight", "reorderers": "order", "reorders": "order",
    "pipelines": "pipeline",
}  # fmt: skip
_SAMPLE_RULES = ("mixture", "stratified", "uniform")


def read_presets(path: Any) -> dict[str, dict[str, Any]]:
    """Presets of a components file by slot. A missing path is an error only when the user named it."""
    if path is None:
        return {}
    if not isinstance(path, str):
        raise ConfigError(f"components_cfg_file must be a path, got {path!r}")
    try:
        file = Path(path)
        if not file.is_file():
            raise ConfigError(f"components_cfg_file: no such file: {path}")
        content = at_home(yaml.safe_load(file.read_text(encoding="utf-8")) or {})
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"components_cfg_file: {path} is not valid YAML: {_one_line(error)}") from None
    except (OSError, ValueError, RecursionError) as error:  # a name too long, a null byte
        raise ConfigError(f"components_cfg_file cannot be read: {_one_line(error)}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"components_cfg_file: {path} must hold the buckets {', '.join(_BUCKETS)}")
    presets: dict[str, dict[str, Any]] = {slot: {} for slot in _BUCKETS.values()}
    for bucket, slot in _BUCKETS.items():
        family = content.get(bucket) or {}
        if not isinstance(family, dict) or not all(_is_preset(preset) for preset in family.values()):
            raise ConfigError(f"components_cfg_file: {bucket} in {path} must map each preset to its name and params")
        presets[slot] |= family
    return presets


def _is_preset(preset: Any) -> bool:
    return preset is None or (isinstance(preset, dict) and isinstance(preset.get("params") or {}, dict))


@dataclass(frozen=True)
class Translation:
    """block: the nested block; empty for a static run. compat: what the block cannot say. spelled: how the user wrote a key of
    the block. presets: of the components file, by slot."""

    block: dict[str, Any] = field(default_factory=dict)
    compat: Compatibility = AS_THE_BLOCK
    spelled: dict[str, str] = field(default_factory=dict)
    presets: dict[str, dict[str, Any]] = field(default_factory=dict)


def translate(flat: dict[str, Any], llamafactory: dict[str, Any], notices: list[str]) -> Translation:
    """What the flat keys given say as a block."""
    train_type = flat.get("train_type", "static")
    allowed = ("static", *_TRAIN_TYPES, _PIPELINE)
    if train_type not in allowed:
        raise ConfigError(f"train_type: unknown value {train_type!r}{nearest(str(train_type), allowed)}")
    if train_type == "static":
        idle = [key for key in flat if key not in ("train_type", "components_cfg_file") and flat[key]]
        if idle:
            notices.append(f"{', '.join(idle)} without effect: train_type is static")
        return Translation()
    if train_type == _PIPELINE:
        return _pipeline(flat, llamafactory, notices)

    slot = _TRAIN_TYPES[train_type]
    spelled = {
        "dataflex.total_steps": "train_step",
        f"dataflex.{slot}.name": "component_name",
        f"dataflex.{slot}.warmup": "warmup_step",
        f"dataflex.{slot}.interval": "update_step",
        f"dataflex.{slot}.updates": "update_times",
        "dataflex.mix.proportions": "init_mixture_proportions",
        "dataflex.mix.initial": "mixture_sample_rule",
        "dataflex.mix.eval_dataset": "mixer_eval_dataset",
    }
    spec: dict[str, Any] = {"warmup": _integer(flat, "warmup_step", 0)}
    fixed = slot == "mix" and truth(flat.get("static_mix"), "static_mix")
    if fixed:
        spec["name"] = "static"
        if flat.get("component_name") not in (None, "static"):
            notices.append(
                f"static_mix keeps the proportions fixed, so component_name: {flat['component_name']} does not act"
            )
    elif not flat.get("component_name"):
        raise ConfigError(f"component_name is required with train_type: {train_type}")
    elif not isinstance(flat["component_name"], str):
        raise ConfigError(f"component_name must be a name, got {flat['component_name']!r}")
    else:
        spec["name"] = flat["component_name"]
        if spec["name"] == "doremi":
            notices.append("update_step counts steps of the run; doremi updates its weights at every one of them")
        elif slot in ("select", "mix") and spec["name"] != "static":
            spec["interval"] = _integer(flat, "update_step", 0)
    if slot == "select" and truth(llamafactory.get("disable_shuffling"), "disable_shuffling"):
        spec["serving_order"] = "selection"
    presets = {} if fixed else read_presets(flat.get("components_cfg_file"))  # 1.1.0 reads none with static_mix
    if slot == "order":
        spec |= _ordered(flat, spec, presets.get("order", {}).get(spec["name"]))
    if slot == "mix":
        preset = presets.get("mix", {}).get(spec["name"])
        spec = _mixture(flat, spec, preset, data_sets(llamafactory), notices)
        if flat.get("mixer_eval_dataset"):
            given, domains = words(flat["mixer_eval_dataset"]), words(llamafactory.get("dataset"))
            spec["eval_dataset"] = _assign(given, domains, "mixer_eval_dataset")

    block: dict[str, Any] = {slot: spec, "freeze_gate": truth(flat.get("freeze_gate"), "freeze_gate")}
    compat = Compatibility(
        early_stopping_min_delta=number(flat.get("early_stopping_min_delta") or 0.0, "early_stopping_min_delta"),
        epoch_rounding="down" if slot == "mix" else "up",
        held_out_key="mixer_eval_dataset" if "eval_dataset" in spec else Compatibility.held_out_key,
    )
    total = _total_steps(slot, flat, llamafactory)
    if total is not None:
        block["total_steps"] = total
    return Translation(block, compat, spelled, presets)


def _ordered(flat: dict[str, Any], spec: dict[str, Any], preset: Any) -> dict[str, Any]:
    """When rows are ordered. A static order holds from the start, also in the warmup; so does a name without a preset, which goes
    by the column `score`, as a preset does that does not say."""
    if not isinstance(preset, dict):
        return {"warmup": 0, "by": "column", "column": "score"}
    if not orders.is_old(preset):
        return {"interval": _integer(flat, "update_step", 0)}
    if not orders.is_dynamic(spec["name"], preset):
        return {"warmup": 0}
    interval = orders.every(spec["name"], preset, _integer(flat, "update_step", 0))
    return {} if interval is None else {"interval": interval}


def _pipeline(flat: dict[str, Any], llamafactory: dict[str, Any], notices: list[str]) -> Translation:
    """Several components at once."""
    name = flat.get("component_name")
    if not isinstance(name, str) or not name:
        raise ConfigError(f"component_name is required with train_type: {_PIPELINE}")
    presets = read_presets(flat.get("components_cfg_file"))
    pipelines = presets.pop("pipeline", {})
    if name not in pipelines:
        raise ConfigError(f"component_name: components_cfg_file has no pipeline {name!r}{nearest(name, pipelines)}")
    warmup, update = _integer(flat, "warmup_step", 0), _integer(flat, "update_step", 0)
    block = pipeline_block(name, pipelines[name], warmup, update, presets, notices)
    if "mix" in block and block["mix"]["name"] != "proportional":
        preset = presets["mix"].get(block["mix"]["name"])
        block["mix"] = _mixture(flat, block["mix"], preset, data_sets(llamafactory), notices)
    block["freeze_gate"] = truth(flat.get("freeze_gate"), "freeze_gate")
    least = number(flat.get("early_stopping_min_delta") or 0.0, "early_stopping_min_delta")
    total = _total_steps("select", flat, llamafactory)
    if total is not None:
        block["total_steps"] = total
    spelled = {"dataflex.total_steps": "train_step"}
    return Translation(block, Compatibility(early_stopping_min_delta=least), spelled, presets)


def _mixture(
    flat: dict[str, Any], spec: dict[str, Any], preset: Any, names: tuple[str, ...] | None, notices: list[str]
) -> dict[str, Any]:
    """spec with where the mixture starts: by `mixture_sample_rule` and `init_mixture_proportions`, which a preset does not
    overrule. Proportions of a preset are where `static` goes after its warmup, and where other mixers start for want of
    `init_mixture_proportions`."""
    rule = flat.get("mixture_sample_rule") or "mixture"
    if rule not in _SAMPLE_RULES:
        raise ConfigError(f"mixture_sample_rule: unknown value {rule!r}{nearest(str(rule), _SAMPLE_RULES)}")
    given = flat.get("init_mixture_proportions")
    if isinstance(given, str):
        given = given.strip("[] ").split(",")
    if given is not None and not isinstance(given, list | tuple):
        raise ConfigError(f"init_mixture_proportions must be a list of numbers, got {given!r}")
    params = (preset or {}).get("params") or {}
    kept = next((key for key in ("proportions", "initial_proportions") if params.get(key) is not None), None)
    whose = f"components_cfg_file: {kept} of the preset {spec['name']!r}"
    if rule != "mixture":
        if given:
            notices.append(f"init_mixture_proportions has no effect with mixture_sample_rule: {rule}")
        if kept is not None:
            notices.append(f"{whose} has no effect with mixture_sample_rule: {rule}")
        return {**spec, "proportions": None, "initial": rule}

    start = _shares(given, "init_mixture_proportions") if given else None
    spec = {**spec, "proportions": start, "initial": "uniform"}
    if preset is None:
        return spec
    later = _shares(_listed(params[kept], whose, names), whose) if kept is not None else None
    if str(preset.get("name") or spec["name"]) == "static":
        return _after_warmup(spec, later, whose, names, notices)
    if start is None and later is not None and names is not None and len(later) != len(names):
        notices.append(
            f"{whose} has no effect: {len(later)} given for {len(names)} data sets; the mixture starts uniform"
        )
    elif start is None:
        spec["proportions"] = later
    return spec


def _after_warmup(
    spec: dict[str, Any], later: list[float] | None, whose: str, names: tuple[str, ...] | None, notices: list[str]
) -> dict[str, Any]:
    """`static` without `static_mix`: the proportions of its preset (none: equal ones) from the end of the warmup on."""
    start, warmup = spec["proportions"], spec["warmup"]
    for shares, key in ((start, "init_mixture_proportions"), (later, whose)):
        if shares is not None and names is not None and len(shares) != len(names):
            raise ConfigError(f"{key}: {len(shares)} given for {len(names)} data sets ({', '.join(names)})")
    if warmup <= 0 or (start is None and later is None):
        return {**spec, "proportions": later}
    count = len(start or later or ())
    first, last = (shares or [1 / count] * count for shares in (start, later))
    if all(map(isclose, first, last)):
        return spec
    notices.append(
        f"static without static_mix: from step {warmup} on (warmup_step) the mixture is that of the preset,"
        f" {', '.join(f'{share:.4g}' for share in last)}"
    )
    return {"name": "schedule", "points": [[0, first], [warmup, last]]}


def _assign(names: list[str], domains: list[str], key: str) -> dict[str, str]:
    """{domain: data set} for names of dataflex 1.1.0: that of the domain once "_eval" is taken out of it."""
    out: dict[str, str] = {}
    for name in names:
        domain = name if name in domains else name.replace("_eval", "")
        if domain not in domains:
            raise ConfigError(f"{key}: {name!r} belongs to no data set{nearest(name, [f'{d}_eval' for d in domains])}")
        if domain in out:
            raise ConfigError(f"{key}: {out[domain]!r} and {name!r} both belong to {domain!r}")
        out[domain] = name
    return out


def _listed(given: Any, key: str, names: tuple[str, ...] | None) -> Sequence[Any]:
    """Of a preset, which may also have them as the block does."""
    return given if isinstance(given, list) else list(proportions(given, names, key))


def _shares(given: Sequence[Any], key: str) -> list[float]:
    """Normalised, as 1.1.0 does."""
    numbers = [number(share, key) for share in given]
    total = sum(numbers)
    if min(numbers, default=0) < 0 or not total > 0:
        raise ConfigError(f"{key} must be non-negative numbers, got {given}")
    return [share / total for share in numbers]


def _total_steps(slot: str, flat: dict[str, Any], llamafactory: dict[str, Any]) -> int | None:
    """The formulas of dataflex 1.1.0; None leaves the number to LLaMA-Factory's max_steps or epochs."""
    train_step = _integer(flat, "train_step", 0)
    if train_step > 0:
        return train_step
    times = _integer(flat, "update_times", 1)
    steps = _integer(flat, "warmup_step", 0) + _integer(flat, "update_step", 0) * times
    if slot in ("select", "order") and times > 0:
        epochs = number(llamafactory.get("num_train_epochs", 3.0), "num_train_epochs")
        if not isfinite(epochs):
            raise ConfigError(f"num_train_epochs must be finite, got {epochs}")
        return ceil(epochs * steps) or None
    if slot == "mix" and not truth(flat.get("static_mix"), "static_mix") and times >= 0:
        return steps or None
    return None


def _integer(flat: dict[str, Any], key: str, default: int) -> int:
    value = flat.get(key)
    return default if value is None else integer(value, key)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
