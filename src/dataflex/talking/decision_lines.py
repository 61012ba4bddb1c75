"""A line for every decision, from its line in the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataflex.talking.wording import amount, counted, duration, fraction, listed, percent

# Proportions that moved by less are not shown.
LEAST_MOVE = 0.005

Proportions = Mapping[str, float]


class DecisionLines:
    """width: characters of a line, None: as many as it takes.

    A mixer in `held` decides so often that its decisions since the last log are shown as one, with the next log.
    """

    def __init__(self, width: int | None = None) -> None:
        self.width = width
        self.held: frozenset[str] = frozenset()
        """Slots, `mix` or none."""
        self._waiting: list[tuple[Mapping[str, Any], Proportions]] = []  # the first, and the last, with what was before
        self._in_force: Proportions = {}
        self._loss_weights: Proportions = {}

    def of(self, record: Mapping[str, Any]) -> str | None:
        """record: of the ledger."""
        slot, _, name = record["component"].partition(":")
        if slot == "select":
            return self._select(record, name)
        if slot == "mix":
            return self._mix_or_hold(record, name)
        if slot == "order":
            return self._order(record, name)
        if slot == "exhausted":
            lines = (self.waiting(), self._exhausted(record))  # what was decided before comes first
            return "\n".join(line for line in lines if line)
        if slot == "start":
            self._in_force = record["decided"].get("proportions", {})
        if slot.startswith("weight"):
            rows = counted(record["decided"]["target_rows"], "row")
            return self._line(record["step"], f"{slot} {name}: measured a target of {rows}", [], "", [_took(record)])
        return None

    def waiting(self) -> str | None:
        """The line of the decisions that were held back."""
        if not self._waiting:
            return None
        (first, before), (last, _) = self._waiting[0], self._waiting[-1]
        self._waiting = []
        name, since = last["component"].partition(":")[2], first["step"]
        return self._mix(last, name, before, _before(first), since=since)

    def evaluation(self, step: int, measures: Mapping[str, float], seconds: float) -> str | None:
        """measures: what the Trainer reports, by name. None where there is no loss among them."""
        domains = losses_by_domain(measures)
        sets = {
            name.removeprefix("eval_").removesuffix("loss").strip("_") or "loss": value
            for name, value in measures.items()
            if name.startswith("eval_") and name.endswith("loss") and "/" not in name
        }
        if not sets and not domains:
            return None
        parts = [[f"{name} {value:.4g}" for name, value in some.items()] for some in (sets, domains) if some]
        head = f"evaluate: {listed(parts[0])}"
        return self._line(step, head, parts[1] if len(parts) > 1 else [], " ", [duration(seconds)])

    # -- one kind each -----------------------------------------------------------------------------------------------

    def _select(self, record: Mapping[str, Any], name: str) -> str:
        decided = record["decided"]
        count, domains = sum(decided["rows"]), decided["domains"]
        ordered = sorted(domains.items(), key=lambda item: -item[1])
        items = [f"{domain} {percent(rows / count)}" for domain, rows in ordered if rows]
        tail = [] if decided["overlap"] is None else [f"{percent(decided['overlap'])} as last time"]
        head = f"select {name}: {count:,} of {counted(record['from']['rows'], 'row')}"
        return self._line(record["step"], head, items, " ", [*tail, _took(record)])

    def _order(self, record: Mapping[str, Any], name: str) -> str:
        decided, source = record["decided"], record["from"]
        by = f" by {source['by']}" if source["by"] else ""
        head = (
            f"order {name}{by}: {counted(sum(decided['rows']), 'row')}, over {counted(sum(decided['draws']), 'draw')}"
        )
        items = [f"{counted(source['without_score'], 'row')} without a score"] if source["without_score"] else []
        return self._line(record["step"], head, items, " ", [_took(record)])

    def _mix_or_hold(self, record: Mapping[str, Any], name: str) -> str | None:
        before = self._loss_weights
        self._loss_weights = record["decided"].get("loss_weights", before)
        self._in_force = _proportions(record) or self._in_force
        if "mix" not in self.held:
            return self._mix(record, name, before, _before(record))
        self._waiting = [*self._waiting[:1], (record, before)]
        return None

    def _mix(
        self,
        record: Mapping[str, Any],
        name: str,
        weights_before: Proportions,
        before: Proportions,
        since: int | None = None,
    ) -> str:
        """since: the step of the first of several decisions."""
        step = record["step"]
        when = step if since in (None, step) else f"{since} to {step}"
        now, weights = _proportions(record), record["decided"].get("loss_weights")
        head, items = f"mix {name}:", [] if now is None else moves(before, now)
        if weights is not None:
            items += moves(weights_before, weights)
            head += " loss weights" if now is None else ""
        if not items:
            return self._line(when, f"{head} no domain moved by {fraction(LEAST_MOVE, 3)}", [], "", [])
        return self._line(when, head, items, "  ", [])

    def _exhausted(self, record: Mapping[str, Any]) -> str:
        decided = record["decided"]
        before, self._in_force = self._in_force, decided["proportions"]
        head = f"{decided['domain']} is exhausted ({amount(record['from']['rows'])} rows):"
        return self._line(record["step"], head, moves(before, decided["proportions"]), "  ", [])

    def _line(self, step: int | str, head: str, items: list[str], apart: str, tail: list[str]) -> str:
        """Items are left out at the end until the line fits. step: optimizer steps that were done when it was decided."""
        begin, end = (
            f"step{'s' if isinstance(step, str) else ''} {step}  {head}",
            "".join(f" | {part}" for part in tail),
        )
        if not items:
            return begin + end
        begin += " " if head.endswith((":", "weights")) else " | "
        room = None if self.width is None else self.width - len(begin) - len(end)
        return begin + listed(items, apart=apart, room=room) + end


def moves(before: Proportions, now: Proportions) -> list[str]:
    """`c4 .20 > .24` of each domain that moved, the farthest first; of one that had no value before, what it has now."""
    found = [(name, before.get(name), value) for name, value in now.items()]
    moved = [(n, b, v) for n, b, v in found if b is None or abs(v - b) >= LEAST_MOVE - 1e-12]
    moved.sort(key=lambda item: -round(abs(item[2] - (item[1] or 0.0)), 6))
    return [_move(*item) for item in moved]


def losses_by_domain(measures: Mapping[str, float]) -> dict[str, float]:
    """Of held-out rows."""
    prefix = "eval_dataflex/loss/"
    return {name.removeprefix(prefix): value for name, value in measures.items() if name.startswith(prefix)}


def _move(name: str, before: float | None, now: float) -> str:
    if before is None:
        return f"{name} {fraction(now)}"
    digits = 2 if fraction(before) != fraction(now) else 3
    return f"{name} {fraction(before, digits)} > {fraction(now, digits)}"


def _proportions(record: Mapping[str, Any]) -> Proportions | None:
    """In force from the decision on."""
    decided = record["decided"]
    return decided.get("in_force", decided.get("proportions"))  # type: ignore[no-any-return]


def _before(record: Mapping[str, Any]) -> Proportions:
    """In force before the decision."""
    names = _proportions(record)
    return {} if names is None else dict(zip(names, map(float, record["from"]["requested"]), strict=True))


def _took(record: Mapping[str, Any]) -> str:
    return duration(record["seconds"])
