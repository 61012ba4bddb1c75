"""The keys of the block, each as the kind it has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from dataflex.config.values import shown
from dataflex.errors import ConfigError, Mistakes, nearest


def typed_keys(
    given: Mapping[str, Any], kinds: Mapping[str, Any], path: str, key: Any, mistakes: Mistakes
) -> dict[str, Any]:
    """The values that are of their kinds; null is no value."""
    out = {}
    for name, value in given.items():
        if value is not None:
            with mistakes.noting():
                out[name] = typed(value, kinds[name], key(f"{path}.{name}"))
    return out


def bounded(
    values: dict[str, Any], bounds: Mapping[str, tuple[int, int | None]], path: str, key: Any, mistakes: Mistakes
) -> None:
    """Note and take out what is below or above its bounds."""
    for name, (least, most) in bounds.items():
        if name in values and values[name] < least:
            mistakes.note(ConfigError(f"{key(f'{path}.{name}')} must be at least {least}, got {values.pop(name)}"))
        if name in values and most is not None and values[name] > most:
            mistakes.note(ConfigError(f"{key(f'{path}.{name}')} must be at most {most}, got {values.pop(name)}"))


def typed(value: Any, kind: Any, key: str) -> Any:
    if isinstance(value, bool) and kind in (int, float):
        raise ConfigError(f"{key} must be a number, got {value}")
    try:
        found = TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        detail = (first["msg"][0].lower() + first["msg"][1:]).replace("a valid tuple", "a list")
        options = first.get("ctx", {}).get("expected", "")
        if first["type"] == "literal_error":
            choices = [c.strip(" '") for c in str(options).replace(" or ", ",").split(",")]
            raise ConfigError(f"{key}: {shown(value)} is not a choice{nearest(str(value), choices)}") from None
        raise ConfigError(f"{key}: {detail}, got {shown(value)}") from None
    if isinstance(found, float) and math.isnan(found):
        raise ConfigError(f"{key} must be a number, got {shown(value)}")
    if isinstance(found, int) and abs(found) >= 1 << 63:
        raise ConfigError(f"{key} is too large a number: {shown(value)}")
    return found
