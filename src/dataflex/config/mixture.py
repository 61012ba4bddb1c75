"""What a mixer, and a weighter, asks of the names of the domains and of the other keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataflex.components.contracts import Mixer, Weighter
from dataflex.config.refusals import loaded as refused
from dataflex.config.schema import Schedule
from dataflex.errors import ConfigError, Mistakes
from dataflex.values.domains import Names


def check_mixer(
    component: Mixer, own: Mapping[str, Any], name: str, names: Names, key: Any, mistakes: Mistakes, limited: bool
) -> None:
    """What a mixer asks of the names of the domains and of the other keys. limited: whether max_repetition is given."""
    with mistakes.noting():
        check_domains(component, names, key("dataflex.mix"))
    unit, plan = own.get("unit", "samples"), component.own_plan()
    if plan.unit not in (None, unit):
        mistakes.note(refused.OTHER_UNIT.error(name=name, own=plan.unit, unit=unit))
    if plan.limited and not limited:
        mistakes.note(refused.NO_LIMIT.error(name=name))


def check_domains(component: Mixer | Weighter, names: Names, key: str) -> None:
    """Raise ConfigError if parameters of a component do not fit the data sets."""
    if isinstance(names, tuple):
        try:
            component.check_domains(names)
        except ConfigError as error:
            raise ConfigError(f"{key}.{error}") from None


def schedule_of(component: Mixer, given: Schedule, name: str, notices: list[str]) -> Schedule:
    """When a mixer acts that brings its own steps, or never does."""
    plan = component.own_plan()
    if given != Schedule():
        why = f"{name} brings its own steps" if plan.timed else "with fixed proportions"
        notices.append(f"dataflex.mix: warmup, interval and updates have no effect{':' if plan.timed else ''} {why}")
    return Schedule(at=plan.steps or ()) if plan.timed else Schedule()
