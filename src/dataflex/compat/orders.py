"""Presets of orders as dataflex 1.1.0 has them (`reorders:` of a components file) -> the keys of `dataflex.order`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataflex.errors import ConfigError, nearest
from dataflex.values import number, truth

_POLARITIES = {
    "higher_later": "higher_later", "higher_is_better": "higher_later",
    "higher_earlier": "higher_earlier", "lower_is_better": "higher_earlier",
}  # fmt: skip
_LAYERS = ("layers", "folding_layer", "zigzag_layer")
_PARAMETERS: Mapping[str, Mapping[str, str]] = {
    "shuffle": {},
    "sorting": {},
    "folding": dict.fromkeys(_LAYERS, "layers"),
    "zigzag": dict.fromkeys(_LAYERS, "layers"),
    "segment": {"x_pct": "front", "y_pct": "back", "front_is_high": "front_is_high", "back_is_high": "back_is_high"},
    "stair": {**dict.fromkeys(_LAYERS, "layers"), "num_sections": "sections", "folding_ratio": "radius"},
    "saw": {**dict.fromkeys(_LAYERS, "layers"), "num_sections": "sections", "folding_ratio": "radius"},
}
_SOURCES = ("precomputed", "model_loss", "cached_selection")
_READ = (
    "kind", "pattern", "polarity", "ascending", "window_size", "seed", "pattern_params", "score_source", "score_params",
    "apply_at", "reorder_every", "consume_once",
)  # fmt: skip


def is_old(preset: Mapping[str, Any]) -> bool:
    """Whether a preset is one of 1.1.0. One in the keys of today has none of these."""
    return any(key in _READ for key in preset.get("params") or {})


def is_dynamic(name: str, preset: Mapping[str, Any]) -> bool:
    """Whether rows are ordered anew at every interval."""
    kind = _kind(name, preset)
    if kind not in ("static", "dynamic"):
        raise ConfigError(
            f"components_cfg_file: kind of the preset {name!r}: unknown value {kind!r}; choose static or dynamic"
        )
    return kind == "dynamic"


def _kind(name: str, preset: Mapping[str, Any]) -> str:
    return str((preset.get("params") or {}).get("kind") or preset.get("name") or name)


def every(name: str, preset: Mapping[str, Any], update_step: int) -> int | None:
    """Optimizer steps between two updates; None: rows are ordered once."""
    params = preset.get("params") or {}
    if not is_dynamic(name, preset) or params.get("score_source", "model_loss") != "model_loss":
        return None
    return update_step * int(number(params.get("reorder_every", 1), f"components_cfg_file: reorder_every of {name!r}"))


def order_keys(name: str, preset: Mapping[str, Any], notices: list[str]) -> tuple[str, dict[str, Any]]:
    """The name of the order, and the keys of its block. name: of the preset."""
    params, whose = dict(preset.get("params") or {}), f"of the preset {name!r}"
    where = "components_cfg_file:"
    dynamic = is_dynamic(name, preset)
    pattern = params.get("pattern", "sorting")
    if pattern not in _PARAMETERS:
        near = nearest(str(pattern), _PARAMETERS)
        raise ConfigError(f"{where} pattern {whose}: unknown value {pattern!r}{near}")
    if not truth(params.get("consume_once", True), f"{where} consume_once {whose}"):
        raise ConfigError(
            f"{where} consume_once: false {whose} serves the same rows at every interval; leave it out, or select rows:"
            " select: {name: loss, focus: medium}"
        )
    out = {**_scores(name, params, dynamic, notices), **_shape(name, pattern, params.get("pattern_params"), notices)}
    out["polarity"] = _polarity(params, dynamic, f"{where} polarity {whose}", whose)
    window = int(number(params.get("window_size") or 0, f"{where} window_size {whose}"))
    if window > 1:
        out["window"] = window
    if params.get("seed") is not None and (pattern in ("shuffle", "segment") or window > 1):
        notices.append(f"{where} seed {whose} has no effect: the run's own seed draws")
    unknown = [key for key in params if key not in _READ]
    if unknown:
        notices.append(f"{where} {', '.join(unknown)} {whose} without effect: an order of 1.1.0 has no such parameter")
    if dynamic and pattern not in ("sorting", "shuffle"):
        notices.append(
            f"order: the shape of {name} is laid over the whole run; 1.1.0 laid it over the rows left, and served the head of it"
        )
    if pattern == "shuffle":
        out = {}
    return pattern, out


def _polarity(params: Mapping[str, Any], dynamic: bool, key: str, whose: str) -> str:
    given = params.get("polarity", "lower_is_better" if dynamic else "higher_later")
    if given not in _POLARITIES:
        raise ConfigError(f"{key}: unknown value {given!r}{nearest(str(given), _POLARITIES)}")
    found = _POLARITIES[given]
    if truth(params.get("ascending", True), f"components_cfg_file: ascending {whose}"):
        return found
    return "higher_earlier" if found == "higher_later" else "higher_later"


def _shape(name: str, pattern: str, given: Any, notices: list[str]) -> dict[str, Any]:
    """The parameters of the order."""
    whose = f"components_cfg_file: pattern_params of the preset {name!r}"
    if given is not None and not isinstance(given, Mapping):
        raise ConfigError(f"{whose} must be a block of keys, got {given!r}")
    out, idle = dict[str, Any](), list[str]()
    for key, value in (given or {}).items():
        parameter = _PARAMETERS[pattern].get(key)
        if parameter is None:
            idle.append(str(key))
        elif key in ("x_pct", "y_pct"):
            out[parameter] = number(value, f"{whose}: {key}") / 100
        else:
            out[parameter] = value
    if idle:
        notices.append(f"{whose}: {', '.join(idle)} without effect on {pattern}")
    return out


def _scores(name: str, params: Mapping[str, Any], dynamic: bool, notices: list[str]) -> dict[str, Any]:
    """What the rows are ordered by."""
    whose = f"components_cfg_file: score_source of the preset {name!r}"
    source, given = (
        params.get("score_source", "model_loss" if dynamic else "precomputed"),
        params.get("score_params") or {},
    )
    if source not in _SOURCES:
        raise ConfigError(f"{whose}: unknown value {source!r}{nearest(str(source), _SOURCES)}")
    if source == "cached_selection":
        raise ConfigError(
            f"{whose}: cached_selection reads a file of 1.1.0, in which rows that were not selected have no score; order by the"
            f" losses themselves (order: {{name: {params.get('pattern', 'sorting')}, by: loss}}), or by a file with a score for"
            " every row (by: file)"
        )
    if source == "precomputed":
        column = given.get("score_field", "score")
        if given.get("score_path"):
            path = str(given["score_path"])
            return {"by": "file", "path": path, **({} if path.endswith(".npy") else {"column": column})}
        return {"by": "column", "column": column}
    if given:
        notices.append(
            f"components_cfg_file: {', '.join(given)} of the preset {name!r} without effect: the losses of all rows are measured,"
            " in batches of dataflex.scoring_tokens"
        )
    return {"by": "loss"}
