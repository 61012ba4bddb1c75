"""Proportions given by the names of the domains, in the configuration or in a file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dataflex.errors import ConfigError, nearest


def read_proportions(parameter: str, path: str) -> Mapping[str, Any]:
    """The mapping that a JSON or YAML file holds; ConfigError that begins with `parameter` if it holds none."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{parameter} must be a file, and {path} does not exist") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{parameter}: {path} cannot be read: {error}") from None
    try:
        content = json.loads(text)
    except ValueError:
        try:
            content = yaml.safe_load(text)
        except yaml.YAMLError:
            content = None
    if not isinstance(content, Mapping):
        raise ConfigError(f"{parameter}: {path} must hold a proportion for each data set, as JSON or YAML")
    return content


def in_order(parameter: str, given: Mapping[str, Any], names: Sequence[str]) -> tuple[float, ...]:
    """One proportion per name, in the order of `names`; ConfigError that begins with `parameter` unless each is named once
    and nothing else, and they are non-negative and add up to one."""
    check_names(parameter, given, names)
    missing = [n for n in names if n not in given]
    if missing:
        raise ConfigError(f"{parameter} must name every data set of dataset, and {missing[0]!r} is missing")
    return checked(parameter, [given[n] for n in names])


def check_names(parameter: str, given: Mapping[Any, Any], names: Sequence[str]) -> None:
    """ConfigError that begins with `parameter` if something is named that is no data set."""
    unknown = [n for n in given if n not in names]
    if unknown:
        raise ConfigError(f"{parameter}: {unknown[0]!r} is not in dataset{nearest(str(unknown[0]), names)}")


def checked(parameter: str, values: Sequence[Any]) -> tuple[float, ...]:
    """ConfigError that begins with `parameter` unless the values are non-negative numbers that add up to one (to 1e-6)."""
    numbers = [_number(v) for v in values]
    if not numbers or not all(0 <= v < math.inf for v in numbers):
        shown = list(values) if any(map(math.isnan, numbers)) else numbers
        raise ConfigError(f"{parameter} must be non-negative numbers, got {shown}")
    if abs(sum(numbers) - 1) > 1e-6:
        raise ConfigError(f"{parameter} must add up to 1, got {numbers} (sum {sum(numbers):g})")
    return tuple(numbers)


def _number(value: Any) -> float:
    """NaN for what is none. YAML reads 1e-3 as text."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return math.nan
