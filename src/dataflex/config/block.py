"""The nested `dataflex:` block -> DataflexConfig. Every message names the key as the user wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from typing import Any, get_type_hints

from dataflex.compat.orders import is_old, order_keys
from dataflex.components.contracts import Component, Mixer, Weighter, declared
from dataflex.components.registry import names, resolve
from dataflex.components.requests import name_of, offered_to
from dataflex.config import mixture
from dataflex.config.domains import names_of, read_domains
from dataflex.config.offline import read_offline
from dataflex.config.order import read_order
from dataflex.config.refusals import loaded as refused
from dataflex.config.schema import (
    SLOT_KEYS,
    BlockKeys,
    DataflexConfig,
    DomainsKeys,
    MixConfig,
    Schedule,
    SelectConfig,
    WeightConfig,
    WeightPart,
    own_keys,
)
from dataflex.config.schema.keys import ScheduleKeys, WeightKeys
from dataflex.errors import ConfigError, Mistakes, nearest
from dataflex.values import shown, words
from dataflex.values.domains import Names, proportions, repetition
from dataflex.values.validated import read_keys, typed


def parse_block(
    block: Mapping[str, Any],
    presets: Mapping[str, Mapping[str, Any]],
    spelled: Mapping[str, str],
    notices: list[str],
    data_sets: tuple[str, ...] | None,
    mistakes: Mistakes,
) -> DataflexConfig | None:
    """What is wrong is noted in `mistakes`, and what can be read without it stands for the rest; None where nothing can.

    block: nested keys. presets: {slot: {preset name: {"name": class name, "params": {...}}}} of a components file.

    spelled: how the user wrote a key, where it differs from its path ("dataflex.select.interval" -> "update_step").
    data_sets: those in `dataset`.
    """
    if not isinstance(block, Mapping):
        mistakes.note(ConfigError(f"dataflex must be a block of keys, got {shown(block)}"))
        return None

    def key(path: str) -> str:
        return spelled.get(path, path)

    blocks = (*SLOT_KEYS, "domains", "offline")
    top = read_keys(BlockKeys, {k: v for k, v in block.items() if k not in blocks}, "dataflex", key, mistakes, blocks)
    split = read_domains(block["domains"], mistakes) if block.get("domains") is not None else DomainsKeys()
    domains = names_of(split, data_sets)
    slots: dict[str, Any] = {}
    for slot in ("select", "mix", "order"):
        if block.get(slot) is not None:
            with mistakes.noting():
                slots[slot] = _slot(
                    slot, block[slot], presets.get(slot, {}), key, notices, bool(spelled), domains, mistakes
                )
    if block.get("weight") is not None:
        with mistakes.noting():
            slots["weight"] = _weights(
                block["weight"], presets.get("weight", {}), key, notices, bool(spelled), domains, mistakes
            )
    offline = None
    if block.get("offline") is not None:
        offline = read_offline(block["offline"], mistakes)
    asked = [slot for slot in SLOT_KEYS if block.get(slot) is not None]
    if any(slots.get(slot) is None for slot in asked):
        return None
    return DataflexConfig(**top, **slots, domains=split, offline=offline)


def _weights(
    given: Any,
    presets: Mapping[str, Any],
    key: Any,
    notices: list[str],
    flat: bool,
    domains: Names,
    mistakes: Mistakes,
) -> WeightConfig | None:
    """One block, or a list of them whose weights multiply."""
    blocks = given if isinstance(given, list) else [given]
    if not blocks:
        raise refused.NO_WEIGHTER.error(key=key("dataflex.weight"))
    parts, shared = [], dict[str, Any]()
    for index, block in enumerate(blocks):
        path = "dataflex.weight" if not isinstance(given, list) else f"dataflex.weight[{index}]"
        with mistakes.noting():
            found = _slot("weight", block, presets, key, notices, flat, domains, mistakes, path)
            if found is None:
                continue
            part, common = found
            parts.append(part)
            for name, value in common.items():
                if shared.setdefault(name, value) != value:
                    raise refused.OTHER_SHARED.error(key=f"{path}.{name}", given=value, shared=shared[name])
    return WeightConfig(parts=tuple(parts), **shared) if len(parts) == len(blocks) else None


def _part(name: str, component: Weighter, own: dict[str, Any], path: str, key: Any, mistakes: Mistakes) -> WeightPart:
    if "fade" in own and "until" not in own:
        mistakes.note(refused.NO_UNTIL.error(key=key(f"{path}.fade")), once=True)
    if "until" in own and own["until"] <= own.get("warmup", 0):
        found = {"warmup": own.get("warmup", 0), "until": own["until"]}
        mistakes.note(refused.EARLY_UNTIL.error(key=key(f"{path}.until"), **found))
    return WeightPart(name=name, component=component, **own)


def _slot(
    slot: str,
    given: Any,
    presets: Mapping[str, Any],
    key: Any,
    notices: list[str],
    flat: bool,
    domains: Names,
    mistakes: Mistakes,
    path: str = "",
) -> Any:
    """What one block of a component says; None where it cannot be read. ConfigError, or noted in `mistakes`: what is wrong."""
    path = path or f"dataflex.{slot}"
    if isinstance(given, str):
        given = {"name": given}
    if not isinstance(given, Mapping):
        raise ConfigError(f"{key(path)} must be a block with a name, got {shown(given)}")
    given = dict(given)
    name = given.pop("name", None)
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{key(path + '.name')} is required; choose from {', '.join(names(slot))}, or module:Class")

    class_name, params = name, {}
    if name in presets:
        preset = presets[name] or {}
        class_name = str(preset.get("name") or name)
        params = dict(preset.get("params") or {})
        if slot == "order" and is_old(preset):
            class_name, params = order_keys(name, preset, notices)
    params = {**params, **given}
    if slot == "mix" and "initial_proportions" in params:  # the spelling of the odm preset of 1.1.0
        params.setdefault("proportions", params.pop("initial_proportions"))
        params.pop("initial_proportions", None)

    if class_name == "custom":
        cls = _own_class(slot, name, params.pop("class", None), key(f"{path}.class"))
    else:
        cls = resolve(slot, class_name, key(f"{path}.name"))
    keys = own_keys(*SLOT_KEYS[slot])
    own = {k: v for k, v in params.items() if k in keys}
    rest = {k: v for k, v in params.items() if k not in keys}
    if slot == "select" and "cache_dir" in rest and "cache_dir" not in given and not _has(cls, "cache_dir"):
        del rest["cache_dir"]  # every selector of 1.1.0 took one, and so has every preset
        notices.append(f"components_cfg_file: cache_dir of the preset {name!r} has no effect: nothing is cached there")
    if flat or name in presets:  # written for dataflex 1.1.0
        rest = {**cls.defaults_of_1_1, **rest}
    for given_names in ("target_dataset", "eval_dataset"):
        if isinstance(own.get(given_names), str):
            own[given_names] = words(own[given_names])
            if not own[given_names]:
                mistakes.note(ConfigError(f"{key(f'{path}.{given_names}')} names no data set"))
    timed = own.get("interval") is not None
    given_keys, own = own, {}
    for model in SLOT_KEYS[slot]:
        of_model = {k: v for k, v in given_keys.items() if k in own_keys(model)}
        own |= read_keys(model, of_model, path, key, mistakes)
    strangers = set(rest) - {f.name for f in fields(cls)} - set(cls.retired)
    if slot in ("select", "mix") and (timed or strangers):
        own.setdefault("interval", 1)  # in the place of one that is noted, or misspelt
    component = _component(cls, rest, name, path, slot, key, notices, mistakes)
    if component is None:
        return None
    if warmup := declared(component.default_warmup):
        own.setdefault("warmup", warmup)
    for signal in sorted(map(name_of, declared(component.needs))):
        if signal not in (offered := offered_to(slot)):
            raise ConfigError(
                f"{key(f'{path}.name')}: {name} needs the signal {signal!r}, which {slot} does not offer; choose from"
                f" {', '.join(offered)}"
            )
    if slot == "weight":
        with mistakes.noting():
            mixture.check_domains(component, domains, key(path))  # type: ignore[arg-type]
        shared = {k: own.pop(k) for k in own_keys(WeightKeys) if k in own}
        return _part(name, component, own, path, key, mistakes), shared  # type: ignore[arg-type]

    schedule = Schedule(**{k: own.pop(k) for k in own_keys(ScheduleKeys) if k in own})
    if slot == "mix":
        return _mix(name, component, schedule, own, key, [] if flat else notices, domains, mistakes)  # type: ignore[arg-type]
    if slot == "order":
        return read_order(name, component, schedule, own, key, notices, mistakes, "by" in given_keys)  # type: ignore[arg-type]
    if schedule.interval is None:
        mistakes.note(ConfigError(_interval_missing(name, path, key)))
    return SelectConfig(name=name, component=component, schedule=schedule, **own)  # type: ignore[arg-type]


def _mix(
    name: str,
    component: Mixer,
    schedule: Schedule,
    own: dict[str, Any],
    key: Any,
    notices: list[str],
    domains: Names,
    mistakes: Mistakes,
) -> MixConfig:
    limited = own.get("max_repetition") is not None
    for parameter, read in (("proportions", proportions), ("max_repetition", repetition)):
        if parameter in own:
            given = own.pop(parameter)
            with mistakes.noting():
                own[parameter] = read(given, domains, key(f"dataflex.mix.{parameter}"))
    by_name = {k: own.pop(k) for k in ("proportions", "max_repetition") if isinstance(own.get(k), Mapping)}
    if not limited and own.pop("when_exhausted", None) is not None:
        notices.append("dataflex.mix.when_exhausted has no effect without max_repetition")
    if own.get("proportions") is None and "proportions" not in by_name:
        own.setdefault("initial", component.default_initial)
    mixture.check_mixer(component, own, name, domains, key, mistakes, limited)
    if component.fixed or component.own_plan().timed:
        schedule = mixture.schedule_of(component, schedule, name, notices)
    elif schedule.interval is None:
        schedule = replace(schedule, interval=component.default_interval)
        if schedule.interval is None:
            raise ConfigError(_interval_missing(name, "dataflex.mix", key))
    return MixConfig(name=name, component=component, schedule=schedule, by_name=by_name, **own)


def _interval_missing(name: str, path: str, key: Any) -> str:
    return f"{key(f'{path}.interval')} is required: optimizer steps between two updates of {name}"


def _own_class(slot: str, name: str, given: Any, where: str) -> type[Component]:
    if not isinstance(given, str) or ":" not in given:
        raise ConfigError(f"{where} must name the class of {name}, as module:Class, got {given!r}")
    return resolve(slot, given, where)


def _has(cls: type[Component], param: str) -> bool:
    return param in cls.retired or any(f.name == param for f in fields(cls) if f.init)


def _component(
    cls: type[Component],
    params: Mapping[str, Any],
    name: str,
    path: str,
    slot: str,
    key: Any,
    notices: list[str],
    mistakes: Mistakes,
) -> Component | None:
    try:
        hints = get_type_hints(cls)
    except Exception as error:  # whatever the annotations of a user's class do
        raise ConfigError(f"{key(f'{path}.name')}: the types of {name} cannot be read: {_cause(error)}") from error
    known = {f.name: f for f in fields(cls) if f.init}
    values: dict[str, Any] = {}
    for param, value in params.items():
        where = key(f"{path}.{param}")
        if param in cls.retired and param not in known:
            notices.append(f"{where} has no effect: {cls.retired[param]}")
        elif param not in known:
            near = nearest(str(param), [*known, *own_keys(*SLOT_KEYS[slot])])
            mistakes.note(ConfigError(f"{where}: {name} has no such parameter{near}"))
        else:
            with mistakes.noting():
                values[param] = typed(value, hints[param], where)
    required = [p for p, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    for param in required:
        if param not in params and not set(params) - set(known) - set(cls.retired):
            mistakes.note(ConfigError(f"{key(f'{path}.{param}')} is required by {name}"))
    while all(param in values for param in required):
        try:
            return cls(**values)
        except ConfigError as error:  # a range check of the component, which knows its parameter but not the path
            parameter, _, message = str(error).partition(" ")
            mistakes.note(ConfigError(f"{key(f'{path}.{parameter}')} {message}"))
            if values.pop(parameter.rstrip(":"), None) is None:
                return None
        except Exception as error:  # whatever a user's class does
            raise ConfigError(f"{key(f'{path}.name')}: {name} cannot be made: {_cause(error)}") from error
    return None


def _cause(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
