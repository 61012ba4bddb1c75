"""JSON schema of LLaMA-Factory's and transformers' keys, as `read_typed` reads them."""

from __future__ import annotations

import typing
from dataclasses import Field
from enum import Enum
from types import NoneType
from typing import Any

from dataflex.config.llamafactory import typed
from dataflex.config.llamafactory.ranges import RANGES

Json = dict[str, Any]
# YAML reads 1e-4, without a dot, as text.
_NUMBER = {"anyOf": [{"type": "number"}, {"type": "string", "pattern": r"^[+-]?[0-9.]+([eE][+-]?[0-9]+)?$"}]}
_PLAIN: dict[Any, Json] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: _NUMBER,
    dict: {"type": "object"},
}


def key_schema(field: Field[Any], hint: Any) -> Json:
    """The schema of one key: types, range, choices, default, and the help of LLaMA-Factory."""
    kinds = typed.members(hint)
    enums = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Enum)]
    if enums:  # a text beside them is one of them
        kinds = [kind for kind in kinds if kind is not str]
    more = [typed.MORE[field.name]] if field.name in typed.MORE else []
    options = [option for kind in [*kinds, *more] for option in _options(field.name, kind)]
    if NoneType in kinds or field.name in typed.NULL:
        options.append({"type": "null"})
    options = [option for place, option in enumerate(options) if option not in options[:place]]
    schema: Json = {} if {} in options or not options else options[0] if len(options) == 1 else {"anyOf": options}
    if isinstance(field.default, bool | int | float | str):
        default = field.default
        schema = {**schema, "default": default.value if isinstance(default, Enum) else default}
    said = " ".join(str(field.metadata.get("help") or "").split())
    return {**schema, "description": said} if said else schema


def _options(key: str, kind: Any) -> list[Json]:
    """What a value of the key may be, if it is of `kind`."""
    origin = typing.get_origin(kind) or kind
    if kind is NoneType:
        return []
    if origin is typing.Literal:
        return _choices(list(typing.get_args(kind)))
    if isinstance(origin, type) and issubclass(origin, Enum):
        return _choices([str(member.value) for member in origin])
    if kind is str:
        lists = [{"type": "array"}] if key in typed.LISTS else []
        return [{"type": "string"}, *([] if key in typed.NAMES else [{"type": "number"}]), *lists]
    if kind in (int, float):
        return [_within(key, kind)]
    if origin is list:
        return [{"type": "array"}, {"type": "string"}]
    return [_PLAIN.get(origin, {})]


def _choices(choices: list[Any]) -> list[Json]:
    """YAML reads a bare `no` as a switch."""
    return [{"enum": [*choices, *([False] if "no" in choices else [])]}]


def _within(key: str, kind: Any) -> Json:
    """A number in the range of its key."""
    limits = RANGES.get(key)
    if limits is None:
        return _PLAIN[kind]
    low = {"exclusiveMinimum" if limits.above else "minimum": limits.least}
    high = {"exclusiveMaximum" if limits.below else "maximum": limits.most}
    bounds = {**low, **high}  # of numbers alone: they say nothing of text
    return {**_PLAIN[kind], **bounds}
