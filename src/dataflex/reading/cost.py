"""What a run cost: seconds by what they were spent on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dataflex.reading.log import Log

KINDS = {"select": "selecting", "mix": "mixing", "weight": "weighing", "evaluate": "evaluating"}


@dataclass(frozen=True)
class Spent:
    """What one component, or the evaluation by domain, has taken."""

    decisions: int
    seconds: float


@dataclass(frozen=True)
class Cost:
    total: float
    """Seconds up to the last log of a loss, with all that happened in them."""
    kinds: dict[str, float]
    """Seconds by kind, `training` last: what is left of the total. Loading and saving are known of newer runs alone."""
    components: dict[str, Spent]
    """By the name that the ledger gives them."""

    def share(self, kind: str) -> float:
        return self.kinds[kind] / self.total if self.total else 0.0


def cost_of(ledger: Sequence[Mapping[str, Any]], log: Log) -> Cost:
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
    timed = {name: log.accumulated(f"dataflex/seconds/{name}") for name in ("total", "loading", *kinds, "saving")}
    kinds |= {name: seconds for name, seconds in timed.items() if name != "total" and seconds is not None}
    total = max(timed["total"] or 0.0, log.seconds, sum(kinds.values()))
    return Cost(total, {**kinds, "training": total - sum(kinds.values())}, components)
