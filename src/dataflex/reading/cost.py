"""What a run cost: seconds by what they were spent on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dataflex.reading.log import Log

KINDS = {
    "select": "selecting", "mix": "mixing", "weight": "weighing", "order": "ordering", "evaluate": "evaluating",
}  # fmt: skip
ALL_KINDS = ("training", "loading", *KINDS.values(), "saving")
"""Kinds of time, in the order in which they are shown."""


@dataclass(frozen=True)
class Spent:
    """What one component, or the evaluation by domain, has taken."""

    decisions: int
    seconds: float


@dataclass(frozen=True)
class Cost:
    total: float
    """Seconds up to the last log of a loss, with all that happened in them, and those of the evaluations after it."""
    kinds: dict[str, float]
    """Seconds by kind, `training` last: what is left of the total. Loading and saving are known of newer runs alone."""
    components: dict[str, Spent]
    """By the name that the ledger gives them."""

    def share(self, kind: str) -> float:
        return self.kinds[kind] / self.total if self.total else 0.0


def seconds_of(measures: Mapping[str, Any]) -> float:
    """What an evaluation took, as LLaMA-Factory reports it: `eval_runtime`, or one of each data set."""
    return sum(
        float(value)
        for name, value in measures.items()
        if name.startswith("eval_") and name.endswith("_runtime") and "/" not in name
    )


def cost_of(
    ledger: Sequence[Mapping[str, Any]], log: Log, evaluations: Sequence[tuple[int, float]] = (), final: float = 0.0
) -> Cost:
    """evaluations: step and seconds of each one in training. final: seconds of that after it."""
    components: dict[str, Spent] = {}
    kinds = dict.fromkeys(KINDS.values(), 0.0)
    for line in ledger:
        name, seconds = str(line["component"]), float(line.get("seconds", 0.0))
        kind = KINDS.get(name.partition(":")[0].partition("[")[0])
        if kind is None:
            continue
        before = components.get(name, Spent(0, 0.0))
        components[name] = Spent(before.decisions + 1, before.seconds + seconds)
        kinds[kind] += seconds
    last = log.last_loss
    in_training, after = sum(s for _, s in evaluations), sum(s for step, s in evaluations if step >= last)
    timed = {name: log.accumulated(f"dataflex/seconds/{name}") for name in ("total", "loading", *kinds, "saving")}
    kinds |= {name: seconds for name, seconds in timed.items() if name != "total" and seconds is not None}
    if timed["evaluating"] is None:  # of a run without a block, or of an older version
        kinds["evaluating"] = max(kinds["evaluating"], in_training)
    else:
        kinds["evaluating"] += after
    kinds["evaluating"] += final
    total = max((timed["total"] or 0.0) + after + final, log.seconds + final, sum(kinds.values()))
    return Cost(total, {**kinds, "training": total - sum(kinds.values())}, components)
