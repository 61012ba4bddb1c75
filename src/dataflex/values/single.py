"""Reading single values as the kind they must be, with one clear error that names the key."""

from __future__ import annotations

from typing import Any

from dataflex.errors import ConfigError

_TRUE, _FALSE = ("true", "1", "yes", "y", "on"), ("false", "0", "no", "n", "off", "none", "")


def shown(value: Any) -> str:
    """A value as an error quotes it: in one line, and not too long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def number(value: Any, key: str) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError
        return float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{key} must be a number, got {shown(value)}") from None
    except OverflowError:
        raise ConfigError(f"{key} is too large a number: {shown(value)}") from None


def words(value: Any) -> list[str]:
    """Names, given as a list or as one string with commas; none where it is neither, which its own check says."""
    if isinstance(value, str):
        return [w for w in map(str.strip, value.split(",")) if w]
    return [w for w in value if isinstance(w, str)] if isinstance(value, list | tuple) else []


def dataset_names(given: Any) -> list[str]:
    """As LLaMA-Factory splits the names of data sets: one may be empty, and is then not defined."""
    if isinstance(given, str) and given:
        return [name.strip() for name in given.split(",")]
    return list(given or [])


def integer(value: Any, key: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    result = number(value, key)
    if result != result // 1:
        raise ConfigError(f"{key} must be an integer, got {shown(value)}")
    return int(value) if isinstance(value, str) and value.strip().lstrip("+-").isdecimal() else int(result)


def truth(value: Any, key: str) -> bool:
    """None counts as false."""
    word = str(value).strip().lower() if value is not None else ""
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ConfigError(f"{key} must be true or false, got {shown(value)}")
