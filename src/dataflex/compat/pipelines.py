"""Pipelines of dataflex 1.1.0 (`train_type: dynamic_lego`) -> a block with several components.

A pipeline is a list of stages. Its index stages (selector, mixer, reorder) fire at boundaries: before step `warmup_step`, then
every `update_step`. So a component of the block begins at the first boundary that its stage accepts. Its interval is `every`,
rounded up to whole boundaries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dataflex.compat import orders
from dataflex.errors import ConfigError, nearest
from dataflex.values import integer, truth

FAMILIES = {"selector": "select", "mixer": "mix", "reorder": "order", "weighter": "weight"}
_INDEX = ("select", "mix", "order")
_KEYS = ("family", "component", "warmup_step", "every", "enabled", "score_max_age")
_OWN_KEYS = {"select": ("mode", "keep_ratio"), "mix": ("allow_replacement",)}
_PRESET = ("stages", "cache_dir", "score_batch_size", "score_num_workers", "seed", "save_plans")


@dataclass(frozen=True)
class _Stage:
    slot: str
    name: str
    """The preset or component."""
    warmup: int
    every: int
    given: Mapping[str, Any]
    called: str
    """How a message begins."""


def pipeline_block(
    name: str,
    preset: Mapping[str, Any] | None,
    warmup: int,
    update: int,
    presets: Mapping[str, Any],
    notices: list[str],
) -> dict[str, Any]:
    """The block of a pipeline. ConfigError for one that no block says.

    Args:
        name: Of the preset.
        warmup, update: `warmup_step` and `update_step`.
        presets: By slot, of the components file.
    """
    where = f"components_cfg_file: the pipeline {name!r}"
    params = (preset or {}).get("params") or {}
    if not isinstance(params.get("stages"), list) or not params["stages"]:
        raise ConfigError(f"{where} has no list of stages")
    idle = [key for key in params if key != "stages" and params[key] not in (None, False)]
    unknown = [key for key in idle if key not in _PRESET]
    if unknown:
        raise ConfigError(f"{where}: no such key: {unknown[0]!r}{nearest(str(unknown[0]), _PRESET)}")
    if idle:
        notices.append(
            f"{where}: {', '.join(idle)} without effect: signals are measured once for each step, and kept by the run"
        )
    read = [_read(index, stage, f"{where}, stage {index + 1}", notices) for index, stage in enumerate(params["stages"])]
    stages = [stage for stage in read if stage is not None]
    if not stages:
        raise ConfigError(f"{where} has no stage that is enabled")
    by_slot = {slot: [stage for stage in stages if stage.slot == slot] for slot in FAMILIES.values()}
    for slot in _INDEX:
        if len(by_slot[slot]) > 1:
            family = next(f for f, s in FAMILIES.items() if s == slot)
            raise ConfigError(f"{by_slot[slot][1].called}: a second {family}; a block has one `{slot}`")
    found = [stage.slot for stage in stages if stage.slot in _INDEX]
    if found != sorted(found, key=_INDEX.index):
        notices.append(f"{where}: stages act in the order select, mix, order, as in 1.1.0")
    if found and update < 1:
        raise ConfigError(f"update_step must be at least 1, got {update}")
    block: dict[str, Any] = {}
    for slot in found:
        (stage,) = by_slot[slot]
        block[slot] = {"name": stage.name, **_schedule(stage, warmup, update, presets, notices)}
    _settle_selector(block, by_slot, where, notices)
    weights = [{"name": stage.name, "warmup": stage.warmup} for stage in by_slot["weight"]]
    if weights:
        block["weight"] = weights if len(weights) > 1 else weights[0]
    return block


def _read(index: int, given: Any, called: str, notices: list[str]) -> _Stage | None:
    """None: it is not enabled."""
    if not isinstance(given, Mapping):
        raise ConfigError(f"{called} must be a block of keys, got {given!r}")
    family, component = given.get("family"), given.get("component")
    if family not in FAMILIES:
        raise ConfigError(f"{called}: family: unknown value {family!r}{nearest(str(family), FAMILIES)}")
    slot = FAMILIES[family]
    if not isinstance(component, str) or not component:
        raise ConfigError(f"{called}: component must name a {family}, got {component!r}")
    known = (*_KEYS, *_OWN_KEYS.get(slot, ()))
    for key in given:
        if key not in known:
            raise ConfigError(f"{called}: no such key: {key!r}{nearest(str(key), known)}")
    if not truth(given.get("enabled", True), f"{called}: enabled"):
        return None
    for key in ("score_max_age", "allow_replacement"):
        if given.get(key):
            why = (
                "losses are as old as the step they decide"
                if key == "score_max_age"
                else "rows come again once all were served"
            )
            notices.append(f"{called}: {key} without effect: {why}")
    warmup, every = (
        integer(given.get(key, default), f"{called}: {key}") for key, default in (("warmup_step", 0), ("every", 1))
    )
    return _Stage(slot, component, warmup, max(every, 1), given, called)


def _schedule(
    stage: _Stage, warmup: int, update: int, presets: Mapping[str, Any], notices: list[str]
) -> dict[str, int]:
    """When a component acts: at boundaries."""
    first = warmup + -(-max(stage.warmup - warmup, 0) // update) * update
    interval = -(-stage.every // update) * update
    if interval != stage.every and stage.every > 1:
        notices.append(
            f"{stage.called}: every: {stage.every} means every {interval} steps: a stage acts at boundaries of update_step"
        )
    if stage.slot != "order":
        return {"warmup": first, "interval": interval}
    preset = (presets.get("order") or {}).get(stage.name) or {}
    if orders.is_old(preset) and orders.every(stage.name, preset, interval) is None:
        return {"warmup": first}
    return {"warmup": first, "interval": interval}


def _settle_selector(
    block: dict[str, Any], by_slot: Mapping[str, list[_Stage]], where: str, notices: list[str]
) -> None:
    """How much a selector keeps. A filter keeps a share of the rows, which takes a mixture."""
    if "select" not in block:
        return
    (stage,) = by_slot["select"]
    mode = stage.given.get("mode", "filter")
    if mode not in ("filter", "draw"):
        raise ConfigError(f"{stage.called}: mode: unknown value {mode!r}{nearest(str(mode), ('filter', 'draw'))}")
    if mode == "draw" and "mix" in block:
        raise ConfigError(
            f"{stage.called}: mode: draw settles which rows are served, and no mixer can follow; use mode: filter, or a block:"
            f" select: {{name: {stage.name}, keep_ratio: 0.5}} beside mix"
        )
    if mode == "draw":
        return
    block["select"]["keep_ratio"] = stage.given.get("keep_ratio", 0.5)
    if "mix" not in block:
        block["mix"] = {"name": "proportional"}
        notices.append(
            f"{where}: keep_ratio is taken of each data set by itself, which mix: proportional then serves by its size"
        )
