"""Values as pydantic types them: what it refuses is one line that names the key and the nearest valid value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from dataflex.errors import ConfigError, Mistakes, nearest
from dataflex.values.single import shown

_MOST = 1 << 63
_LIMITS = {"greater_than_equal": "ge", "less_than_equal": "le", "greater_than": "gt"}


def read_keys(
    model: type, given: Mapping[str, Any], path: str, key: Any, mistakes: Mistakes, beside: Sequence[str] = ()
) -> dict[str, Any]:
    """The values of `given` that the fields of `model`, a pydantic dataclass, can have; what is wrong is noted. null is no value.

    key: how the user wrote a key, by its path. beside: other keys that may stand here."""
    names = model.__dataclass_fields__  # type: ignore[attr-defined]
    rest = {k: v for k, v in given.items() if v is not None or k not in names}
    while True:
        try:
            found = _adapter(model).validate_python(rest)
            break
        except ValidationError as error:
            wrong: dict[Any, ErrorDetails] = {}
            for detail in error.errors():
                wrong.setdefault(detail["loc"][0], detail)
        for name in [k for k in rest if k in wrong]:
            value = rest.pop(name)
            if name in names:
                mistakes.note(ConfigError(_outside(wrong[name], value, key(f"{path}.{name}"))))
            else:
                mistakes.note(
                    ConfigError(f"{key(f'{path}.{name}')}: unknown key{nearest(str(name), [*names, *beside])}")
                )
    values = {}
    for name, value in rest.items():
        with mistakes.noting():
            values[name] = _finite(getattr(found, name), value, key(f"{path}.{name}"))
    return values


def typed(value: Any, kind: Any, key: str) -> Any:
    """value as `kind`; ConfigError if it cannot be had."""
    if isinstance(value, bool) and kind in (int, float):
        raise ConfigError(f"{key} must be a number, got {value}")
    try:
        found = TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError as error:
        raise ConfigError(_line(error.errors()[0], value, key)) from None
    return _finite(found, value, key)


def _finite(found: Any, value: Any, key: str) -> Any:
    """found, which `value` was read as, unless it is no number that one can count with."""
    if isinstance(found, float) and math.isnan(found):
        raise ConfigError(f"{key} must be a number, got {shown(value)}")
    if isinstance(found, int) and abs(found) >= _MOST:
        raise ConfigError(f"{key} is too large a number: {shown(value)}")
    return found


@cache
def _adapter(model: Any) -> TypeAdapter[Any]:
    return TypeAdapter(model)


def _line(error: ErrorDetails, value: Any, key: str) -> str:
    """What pydantic refuses in the words of this package."""
    if error["type"] == "switch":
        return f"{key} must be a number, got {value}"
    if error["type"] == "literal_error":
        choices = [c.strip(" '") for c in str(error["ctx"]["expected"]).replace(" or ", ",").split(",")]
        return f"{key}: {shown(value)} is not a choice{nearest(str(value), choices)}"
    detail = (error["msg"][0].lower() + error["msg"][1:]).replace("a valid tuple", "a list")
    return f"{key}: {detail}, got {shown(value)}"


def _outside(error: ErrorDetails, value: Any, key: str) -> str:
    """As `_line`, of a number that may lie outside its range. Numbers with a fraction are shares."""
    limit = _LIMITS.get(error["type"])
    if limit is None:
        return _line(error, value, key)
    end = error["ctx"][limit]
    number = TypeAdapter(type(end)).validate_python(value)
    if math.isnan(number):
        return f"{key} must be a number, got {shown(value)}"
    if isinstance(number, float):
        return f"{key} must be in (0, 1], got {number}"
    if abs(number) >= _MOST:
        return f"{key} is too large a number: {shown(value)}"
    return f"{key} must be at {'least' if limit == 'ge' else 'most'} {end}, got {number}"
