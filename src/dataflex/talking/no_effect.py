"""Decisions that cannot matter, said once as soon as that is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dataflex.components.contracts import declared
from dataflex.config.schema import DataflexConfig


def at_the_start(
    config: DataflexConfig, schedules: Mapping[str, Any], steps: int, domains: int, *, known: bool
) -> Iterator[str]:
    """schedules: the `Schedule` of `select`, `mix` and `order`, where they act. steps: optimizer steps of the run. domains: how
    many are mixed; 0: not known. known: what never acts was said before."""
    for slot, component in config.components.items():
        reason = declared(component.without_effect)
        if reason is not None:
            yield f"{slot} {_name(config, slot)} changes nothing: {reason}"
    for slot in () if known else ("select", "mix", "order"):
        schedule = schedules.get(slot)
        if schedule is not None and schedule.next_due(0) is not None and not schedule.turns(steps):
            yield f"{slot} {_name(config, slot)} never acts: it would before step {schedule.next_due(0)}, and the run has {steps}"
    if config.weight is not None and not known:
        for slot, part in config.weight.slots().items():
            end = steps if part.until is None else min(steps, part.until + part.fade)
            if not any(part.strength(step) > 0 for step in {part.warmup, part.warmup + 1, end - 1} if step < steps):
                yield f"{slot} {part.name} never acts: its warmup is {part.warmup} steps, and the run has {steps}"
    if config.mix is not None and domains == 1:
        yield f"mix {config.mix.name} changes nothing: there is one {'domain' if config.splits else 'data set'}"
        return
    for slot, schedule in schedules.items():
        if slot == "mix" and not domains:
            continue
        turns = schedule.turns(steps) if schedule.next_due(0) is not None else 0
        blind = config.components[slot].unobserving_updates(domains)
        if 0 < turns <= blind:
            first = "its first decision does" if blind == 1 else f"its first {blind} decisions do"
            of = f"with {domains} {'domains' if config.splits else 'data sets'} " if slot == "mix" else ""
            yield (
                f"{slot} {_name(config, slot)} learns nothing in this run: {of}{first} not depend on what is"
                f" measured, and the run has {turns}; shorten interval or warmup, or train longer"
            )


def of_decision(record: Mapping[str, Any]) -> str | None:
    """record: of the ledger."""
    slot, _, name = record["component"].partition(":")
    if slot == "select" and sum(record["decided"]["rows"]) == record["from"]["rows"]:
        return f"select {name} takes every row, so it changes only their order"
    if slot == "select" and record["decided"]["overlap"] == 1.0:
        return f"select {name}: these are the rows of the selection before; a longer interval would choose the same"
    return None


def _name(config: DataflexConfig, slot: str) -> str:
    specs: dict[str, Any] = {"select": config.select, "mix": config.mix, "order": config.order}
    if config.weight is not None:
        specs |= config.weight.slots()
    return str(specs[slot].name)
