"""The nested `dataflex:` block -> DataflexConfig. Every message names the key as the user wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from typing import Any, Literal, get_type_hints

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from dataflex.components.contracts import Component, Mixer, Weighter
from dataflex.components.files import read_array
from dataflex.components.registry import FAMILIES, names, resolve
from dataflex.components.requests import HELD_OUT, names_of
from dataflex.config import mixture
from dataflex.config.schema import (
    DataflexConfig,
    MixConfig,
    OfflineConfig,
    Schedule,
    SelectConfig,
    WeightConfig,
    WeightPart,
)
from dataflex.config.values import words
from dataflex.errors import ConfigError, nearest

_TOP = {"total_steps": int, "scoring_tokens": int, "freeze_gate": bool, "evaluate_domains": bool}
_SCHEDULE = {"warmup": int, "interval": int, "updates": int}
_OFFLINE: dict[str, Any] = {
    "budget": int, "keep_ratio": float, "store": str, "embeddings": str, "target_embeddings": str, "examples": int,
}  # fmt: skip
_SLOT_KEYS: dict[str, dict[str, Any]] = {
    "select": {
        **{**_SCHEDULE, "keep_ratio": float, "target_dataset": tuple[str, ...]},
        **{"serving_order": Literal["rows", "selection"]},
    },
    "mix": {
        **_SCHEDULE,
        **{"proportions": Any, "max_repetition": Any, "initial": Literal["uniform", "stratified"]},
        **{"unit": Literal["samples", "tokens"], "when_exhausted": Literal["renormalise", "repeat", "stop"]},
        **{"eval_dataset": tuple[str, ...] | dict[str, str], "stream_block": int},
    },
    "weight": {
        **{"warmup": int, "ramp": int, "until": int, "fade": int, "scope": Literal["running", "global"]},
        **{"target_dataset": tuple[str, ...], "fix_scaling": bool},
    },
}


# Signals a component of each slot may need (see components.requests); weighters are given their losses beside them.
_SIGNALS = {
    "select": {
        *("loss", "tokens", "trainable_tokens", "embedding", "target_embedding"),
        *("target_alignment", "interaction", "features"),
    },
    "mix": {"loss", "train_loss", "excess_loss", *HELD_OUT, "domain_gradients", "router_load"},
    "weight": {"embedding", "target_embedding", "reference_loss", "given_weight"},
}
# Keys of a weighter that are about all of them.
_SHARED = ("scope", "target_dataset", "fix_scaling")


def parse_block(
    block: Mapping[str, Any],
    presets: Mapping[str, Mapping[str, Any]],
    spelled: Mapping[str, str],
    notices: list[str],
    domains: mixture.Names = None,
) -> DataflexConfig:
    """block: nested keys. presets: {slot: {preset name: {"name": class name, "params": {...}}}} of a components file.

    spelled: how the user wrote a key, where it differs from its path ("dataflex.select.interval" -> "update_step"). domains:
    names of the data sets in `dataset`.
    """
    if not isinstance(block, Mapping):
        raise ConfigError(f"dataflex must be a block of keys, got {block!r}")

    def key(path: str) -> str:
        return spelled.get(path, path)

    allowed = (*_TOP, *_SLOT_KEYS, "offline")
    unknown = [k for k in block if k not in allowed]
    if unknown:
        raise ConfigError(f"dataflex.{unknown[0]}: unknown key{nearest(str(unknown[0]), allowed)}")
    top = {k: _typed(block[k], kind, key(f"dataflex.{k}")) for k, kind in _TOP.items() if block.get(k) is not None}
    for name in ("total_steps", "scoring_tokens"):
        if name in top and top[name] < 1:
            raise ConfigError(f"{key(f'dataflex.{name}')} must be at least 1, got {top[name]}")
    slots = {
        slot: _slot(slot, block[slot], presets.get(slot, {}), key, notices, bool(spelled), domains)
        for slot in ("select", "mix")
        if block.get(slot) is not None
    }
    if block.get("weight") is not None:
        slots["weight"] = _weights(block["weight"], presets.get("weight", {}), key, notices, bool(spelled), domains)
    offline = None if block.get("offline") is None else _offline(block["offline"])
    return DataflexConfig(**top, **slots, offline=offline)


def _offline(given: Any) -> OfflineConfig:
    if not isinstance(given, Mapping):
        raise ConfigError(f"dataflex.offline must be a block of keys, got {given!r}")
    unknown = [k for k in given if k not in _OFFLINE]
    if unknown:
        raise ConfigError(f"dataflex.offline.{unknown[0]}: unknown key{nearest(str(unknown[0]), _OFFLINE)}")
    values = {k: _typed(v, _OFFLINE[k], f"dataflex.offline.{k}") for k, v in given.items() if v is not None}
    if ("budget" in values) == ("keep_ratio" in values):
        raise ConfigError("dataflex.offline needs either budget, the rows to select, or keep_ratio, their share")
    if values.get("budget", 1) < 1:
        raise ConfigError(f"dataflex.offline.budget must be at least 1, got {values['budget']}")
    if not 0 < values.get("keep_ratio", 1) <= 1:
        raise ConfigError(f"dataflex.offline.keep_ratio must be in (0, 1], got {values['keep_ratio']}")
    if values.get("examples", 0) < 0:
        raise ConfigError(f"dataflex.offline.examples must be at least 0, got {values['examples']}")
    for name in ("embeddings", "target_embeddings"):
        if name in values:
            _check_file(name, values[name])
    return OfflineConfig(**values)


def _check_file(name: str, path: str) -> None:
    try:
        found = read_array(name, path, dimensions=2)
        if not np.issubdtype(found.dtype, np.floating) or not found.size:
            raise ConfigError(f"{name} must hold numbers, and {path} holds {found.dtype}{list(found.shape)}")
    except ConfigError as error:
        raise ConfigError(f"dataflex.offline.{error}") from None


def _weights(
    given: Any, presets: Mapping[str, Any], key: Any, notices: list[str], flat: bool, domains: mixture.Names
) -> WeightConfig:
    """One block, or a list of them whose weights multiply."""
    blocks = given if isinstance(given, list) else [given]
    if not blocks:
        raise ConfigError(f"{key('dataflex.weight')} is an empty list; name a weighter, or leave it out")
    parts, shared = [], dict[str, Any]()
    for place, block in enumerate(blocks):
        path = "dataflex.weight" if not isinstance(given, list) else f"dataflex.weight[{place}]"
        part, common = _slot("weight", block, presets, key, notices, flat, domains, path)
        for name, value in common.items():
            if shared.setdefault(name, value) != value:
                raise ConfigError(
                    f"{path}.{name} is {value!r}, but it is about all weighters, and another one says {shared[name]!r}"
                )
        parts.append(part)
    return WeightConfig(parts=tuple(parts), **shared)


def _part(name: str, component: Weighter, own: dict[str, Any], path: str, key: Any) -> WeightPart:
    for number in ("ramp", "until", "fade"):
        if own.get(number, 0) < 0:
            raise ConfigError(f"{key(f'{path}.{number}')} must be at least 0, got {own[number]}")
    if "fade" in own and "until" not in own:
        raise ConfigError(f"{key(f'{path}.fade')} needs until, the step from which the weights fall")
    if "until" in own and own["until"] <= own.get("warmup", 0):
        raise ConfigError(
            f"{key(f'{path}.until')} must be above warmup ({own.get('warmup', 0)}), got {own['until']}: nothing would be weighed"
        )
    return WeightPart(name=name, component=component, **own)


def _slot(
    slot: str,
    given: Any,
    presets: Mapping[str, Any],
    key: Any,
    notices: list[str],
    flat: bool,
    domains: mixture.Names,
    path: str = "",
) -> Any:
    path = path or f"dataflex.{slot}"
    if isinstance(given, str):
        given = {"name": given}
    if not isinstance(given, Mapping):
        raise ConfigError(f"{key(path)} must be a block with a name, got {given!r}")
    given = dict(given)
    name = given.pop("name", None)
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{key(path + '.name')} is required; choose from {', '.join(names(slot))}, or module:Class")

    class_name, params = name, {}
    if name in presets:
        preset = presets[name] or {}
        class_name = str(preset.get("name") or name)
        params = dict(preset.get("params") or {})
    params = {**params, **given}
    if slot == "mix" and "initial_proportions" in params:  # the spelling of the odm preset of 1.1.0
        params.setdefault("proportions", params.pop("initial_proportions"))
        params.pop("initial_proportions", None)

    if class_name == "custom":
        cls = _own_class(slot, name, params.pop("class", None), key(f"{path}.class"))
    else:
        cls = resolve(slot, class_name, key(f"{path}.name"))
    own = {k: v for k, v in params.items() if k in _SLOT_KEYS[slot]}
    rest = {k: v for k, v in params.items() if k not in _SLOT_KEYS[slot]}
    if slot == "select" and "cache_dir" in rest and "cache_dir" not in given and not _has(cls, "cache_dir"):
        del rest["cache_dir"]  # every selector of 1.1.0 took one, and so has every preset
        notices.append(f"components_cfg_file: cache_dir of the preset {name!r} has no effect: nothing is cached there")
    if flat or name in presets:  # written for dataflex 1.1.0
        rest = {**cls.defaults_of_1_1, **rest}
    component = _component(cls, rest, name, path, slot, key, notices)
    for signal in names_of(component.needs):
        if signal not in _SIGNALS[slot]:
            offered = f"; choose from {', '.join(sorted(_SIGNALS[slot]))}" if _SIGNALS[slot] else ""
            raise ConfigError(
                f"{key(f'{path}.name')}: {name} needs the signal {signal!r}, which {slot} does not offer{offered}"
            )
    for given_names in ("target_dataset", "eval_dataset"):
        if isinstance(own.get(given_names), str):
            own[given_names] = words(own[given_names])
            if not own[given_names]:
                raise ConfigError(f"{key(f'{path}.{given_names}')} names no data set")
    own = {k: _typed(v, _SLOT_KEYS[slot][k], key(f"{path}.{k}")) for k, v in own.items() if v is not None}
    if component.default_warmup:
        own.setdefault("warmup", component.default_warmup)

    for number, least in (("warmup", 0), ("interval", 1), ("updates", 1), ("stream_block", 1)):
        if number in own and own[number] < least:
            raise ConfigError(f"{key(f'{path}.{number}')} must be at least {least}, got {own[number]}")
    if slot == "weight":
        mixture.check_domains(component, domains, key(path))  # type: ignore[arg-type]
        shared = {k: own.pop(k) for k in _SHARED if k in own}
        return _part(name, component, own, path, key), shared  # type: ignore[arg-type]

    schedule = Schedule(**{k: own.pop(k) for k in _SCHEDULE if k in own})
    if slot == "mix":
        return _mix(name, component, schedule, own, key, [] if flat else notices, domains)  # type: ignore[arg-type]
    if schedule.interval is None:
        raise ConfigError(_interval_missing(name, path, key))
    if "keep_ratio" in own and not 0 < own["keep_ratio"] <= 1:
        raise ConfigError(f"{key(f'{path}.keep_ratio')} must be in (0, 1], got {own['keep_ratio']}")
    return SelectConfig(name=name, component=component, schedule=schedule, **own)  # type: ignore[arg-type]


def _mix(
    name: str,
    component: Mixer,
    schedule: Schedule,
    own: dict[str, Any],
    key: Any,
    notices: list[str],
    domains: mixture.Names,
) -> MixConfig:
    for parameter, read in (("proportions", mixture.proportions), ("max_repetition", mixture.repetition)):
        if parameter in own:
            own[parameter] = read(own[parameter], domains, key(f"dataflex.mix.{parameter}"))
    if own.get("max_repetition") is None and own.pop("when_exhausted", None) is not None:
        notices.append("dataflex.mix.when_exhausted has no effect without max_repetition")
    if own.get("proportions") is None:
        own.setdefault("initial", component.default_initial)
    mixture.check_mixer(component, own, name, domains, key)
    if component.fixed or component.steps is not None or component.positions is not None:
        schedule = mixture.schedule_of(component, schedule, name, notices)
    elif schedule.interval is None:
        schedule = replace(schedule, interval=component.default_interval)
        if schedule.interval is None:
            raise ConfigError(_interval_missing(name, "dataflex.mix", key))
    return MixConfig(name=name, component=component, schedule=schedule, **own)


def _interval_missing(name: str, path: str, key: Any) -> str:
    return f"{key(f'{path}.interval')} is required: optimizer steps between two updates of {name}"


def _own_class(slot: str, name: str, given: Any, where: str) -> type[Component]:
    if not isinstance(given, str) or ":" not in given:
        raise ConfigError(f"{where} must name the class of {name}, as module:Class, got {given!r}")
    return resolve(slot, given, where)


def _has(cls: type[Component], param: str) -> bool:
    return param in cls.retired or any(f.name == param for f in fields(cls) if f.init)


def _component(
    cls: type[Component], params: Mapping[str, Any], name: str, path: str, slot: str, key: Any, notices: list[str]
) -> Component:
    hints = get_type_hints(cls)
    known = {f.name: f for f in fields(cls) if f.init}
    values: dict[str, Any] = {}
    for param, value in params.items():
        where = key(f"{path}.{param}")
        if param in cls.retired and param not in known:
            notices.append(f"{where} has no effect: {cls.retired[param]}")
        elif param not in known:
            raise ConfigError(
                f"{where}: {name} has no such parameter{nearest(str(param), [*known, *_SLOT_KEYS[slot]])}"
            )
        else:
            values[param] = _typed(value, hints[param], where)
    for param, spec in known.items():
        if param not in values and spec.default is MISSING and spec.default_factory is MISSING:
            raise ConfigError(f"{key(f'{path}.{param}')} is required by {name}")
    try:
        return cls(**values)
    except ConfigError as error:  # a range check of the component, which knows its parameter but not the path
        parameter, _, message = str(error).partition(" ")
        raise ConfigError(f"{key(f'{path}.{parameter}')} {message}") from None


def _typed(value: Any, kind: Any, key: str) -> Any:
    if isinstance(value, bool) and kind in (int, float):
        raise ConfigError(f"{key} must be a number, got {value}")
    try:
        return TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        detail = (first["msg"][0].lower() + first["msg"][1:]).replace("a valid tuple", "a list")
        options = first.get("ctx", {}).get("expected", "")
        if first["type"] == "literal_error":
            choices = [c.strip(" '") for c in str(options).replace(" or ", ",").split(",")]
            raise ConfigError(f"{key}: {value!r} is not a choice{nearest(str(value), choices)}") from None
        raise ConfigError(f"{key}: {detail}, got {value!r}") from None


assert set(_SLOT_KEYS) == set(FAMILIES)
