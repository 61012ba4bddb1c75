"""What the block `dataflex.order` says beside the parameters of its order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dataflex.components.contracts import Order
from dataflex.config.schema import OrderConfig, Schedule
from dataflex.errors import Mistakes
from dataflex.values.paths import is_file

BY = ("column", "file", "length", "loss")
FILES = (".parquet", ".jsonl", ".csv", ".npy")
_BELONGS = {"column": ("column", "file"), "path": ("file",)}


def read_order(
    name: str,
    component: Order,
    schedule: Schedule,
    own: Mapping[str, Any],
    key: Callable[[str], str],
    notices: list[str],
    mistakes: Mistakes,
    asked: bool,
) -> OrderConfig:
    """The typed block; what is wrong is noted. own: the keys of `OrderKeys` that can be read. key: how the user
    spelled a path. asked: whether `by` is given, though it may be misspelt."""
    if own.get("by") is not None or not asked:
        mistakes.gather(_refused(name, component, own, key))
    by = own.get("by")
    plain = component.same_as_sorting()
    if plain is not None:
        notices.append(f"dataflex.order: with {plain}, {name} serves rows as sorting does")
    if component.unscored:
        idle = [k for k in ("by", "column", "path", "polarity", "window") if own.get(k)]
        if idle:
            notices.append(f"dataflex.order: without effect: {', '.join(idle)}; {name} goes by no scores")
        own, by = {}, None
    if schedule.interval is None:
        if schedule.updates is not None:
            notices.append("dataflex.order.updates has no effect without interval: rows are ordered once")
        schedule = Schedule(warmup=schedule.warmup, at=(schedule.warmup,))
    return OrderConfig(name=name, component=component, schedule=schedule, **{**own, "by": by})


def _refused(name: str, component: Order, own: Mapping[str, Any], key: Callable[[str], str]) -> Iterator[str]:
    by, path = own.get("by"), own.get("path")
    if component.unscored:
        return
    if by is None:
        yield f"{key('dataflex.order.by')} is required: what {name} orders rows by; choose from {', '.join(BY)}"
        return
    for given, belongs in _BELONGS.items():
        if own.get(given) is not None and by not in belongs:
            owners = " and ".join(f"by: {one}" for one in belongs)
            yield f"{key(f'dataflex.order.{given}')} has no effect with by: {by}; it belongs to {owners}"
    for needed, given in (("column", "column"), ("file", "path")):
        if by == needed and not own.get(given):
            yield f"{key(f'dataflex.order.{given}')} is required with by: {by}"
    if by == "file" and path and not is_file(path):
        yield f"{key('dataflex.order.path')}: no such file: {path}"
    elif by == "file" and path and not path.endswith(FILES):
        yield f"{key('dataflex.order.path')} must be a file of the kinds {', '.join(FILES)}, got {path}"
    elif by == "file" and path and path.endswith(".npy") and own.get("column"):
        yield f"{key('dataflex.order.column')} has no effect with a .npy file, which has no columns"


def idle_interval(order: OrderConfig, mixed: bool) -> str | None:
    """A line for an interval that changes nothing. mixed: whether a mixer moves how much of each pool is served."""
    if order.schedule.interval is None or order.by == "loss" or mixed:
        return None
    return (
        "dataflex.order.interval has no effect: scores that are not losses stay, and without mix so does what is served"
    )
