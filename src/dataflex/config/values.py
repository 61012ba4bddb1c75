"""Reading single values as the kind they must be, with one clear error that names the key."""

from __future__ import annotations

from typing import Any

from dataflex.errors import ConfigError

_TRUE, _FALSE = ("true", "1", "yes", "y", "on"), ("false", "0", "no", "n", "off", "none", "")


def number(value: Any, key: str) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError
        return float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{key} must be a number, got {value!r}") from None


def words(value: Any) -> list[str]:
    """Names, given as a list or as one string with commas."""
    return [w for w in map(str.strip, value.split(",")) if w] if isinstance(value, str) else list(value or [])


def integer(value: Any, key: str) -> int:
    result = number(value, key)
    if result != result // 1:
        raise ConfigError(f"{key} must be an integer, got {value!r}")
    return int(result)


def truth(value: Any, key: str) -> bool:
    """None counts as false."""
    word = str(value).strip().lower() if value is not None else ""
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ConfigError(f"{key} must be true or false, got {value!r}")
