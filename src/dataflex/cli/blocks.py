"""The `dataflex` block of a component, to paste: what must be said, and the parameters with their defaults as comments."""

from __future__ import annotations

from typing import Any

from dataflex.components.contracts import Component, Mixer, Order
from dataflex.components.description import Parameter, describe, example_of, unchecked
from dataflex.errors import ConfigError
from dataflex.values.as_yaml import written

DOMAINS = ("code", "docs", "math")
"""Data sets of the examples: as many as the lists in them have entries."""
TARGET = "target_rows"
_INTERVAL = 100
_BY = "loss"


def block_lines(family: str, name: str, cls: type[Component]) -> list[str]:
    """Lines of YAML to stand below `dataflex:`, without indentation. name: as a block names the component."""
    told = describe(family, name, cls)
    example = dict(example_of(cls))
    lines = [f"{family}:", f"  name: {written(name)}"]
    keys: dict[str, tuple[Any, str]] = {}
    if _acts_at_intervals(family, cls):
        keys["interval"] = (example.pop("interval", _INTERVAL), "optimizer steps between two updates")
    if issubclass(cls, Order) and not cls.unscored:
        keys["by"] = (_BY, "the score of a row; or column, file, length")
    if "updates" in example:
        keys["updates"] = (example.pop("updates"), "how many there are")
    if "target" in told.needs:
        keys["target_dataset"] = (TARGET, "rows of the kind that the model should become good at")
    if "held-out rows" in told.needs:
        held_out = {domain: f"{domain}_held_out" for domain in DOMAINS}
        keys["eval_dataset"] = (held_out, "held-out rows of each data set in `dataset`")
    lines += [_line(key, value, meaning) for key, (value, meaning) in keys.items()]
    for parameter in told.parameters:
        if parameter.name in example:
            lines.append(_line(parameter.name, example[parameter.name], parameter.meaning))
    lines += [_comment(parameter) for parameter in told.parameters if parameter.name not in example]
    return lines


def _line(key: str, value: Any, meaning: str) -> str:
    return f"  {key}: {written(value)}" + (f"  # {meaning}" if meaning else "")


def _comment(parameter: Parameter) -> str:
    return f"  # {parameter.name}: {written(parameter.default)}" + (
        f"  # {parameter.meaning}" if parameter.meaning else ""
    )


def _acts_at_intervals(family: str, cls: type[Component]) -> bool:
    """Whether the block must say how often it acts."""
    if family in ("weight", "order"):
        return False
    component = unchecked(cls)
    if not isinstance(component, Mixer):
        return True
    if component.fixed or component.default_interval is not None:
        return False
    try:
        return not component.own_plan().timed
    except ConfigError:  # what it reads of its plan is not there
        return False
