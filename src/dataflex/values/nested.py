"""Nested keys of a configuration as paths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """By path, such as `dataflex.mix.interval`. An empty block is a value of its own."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            out |= flat(value, f"{before}{key}.")
        else:
            out[f"{before}{key}"] = value
    return out
