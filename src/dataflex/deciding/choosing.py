"""Asks a selector which rows to take, whether a run trains on them or they are only written down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from dataflex.components.contexts import Selection, SelectionContext, State
from dataflex.components.contracts import declared
from dataflex.components.requests import as_requests, by_name
from dataflex.components.signal_request import SignalRequest
from dataflex.config.schema import SelectConfig
from dataflex.distributed.collectives import decide
from dataflex.errors import DataflexError
from dataflex.record.reasons import Reasons, Target
from dataflex.signals.gradients.directions import has_moments, optimizer_moments

_NO_MOMENTS = (
    "no optimizer step has been taken, so Adam's moments are empty and its direction is little more than the signs of a"
    " gradient; set warmup to 10 or more, or gradient_type: sgd"
)
Measure = Callable[..., np.ndarray]
"""(request, ids or none for all rows) -> values, equal on every rank."""


@dataclass(frozen=True)
class DecisionPoint:
    """The time at which a selector decides."""

    step: int = 0
    """Optimizer steps done."""
    update: int = 0
    """Updates made before."""
    updates: int = 1
    """Updates of the whole run."""
    number: int = 1
    """Number of the stage that will be opened; no other decision has it."""
    learning_rate: float = 0.0
    """Learning rate of the next step."""


@dataclass(frozen=True)
class Group:
    """Rows that one call of the selector chooses from: ids [begin, end)."""

    name: str | None
    """The domain; None: all data."""
    begin: int
    end: int


@dataclass(frozen=True)
class Available:
    """The rows that a selector chooses from."""

    groups: list[Group]
    """Groups of rows, each chosen from by itself."""
    usable: Callable[[], np.ndarray]
    """Gives the rows that may be chosen whatever their signals are, bool [N]."""
    raw: np.ndarray | None = None
    """The number of each row among the stored rows, int64 [N]."""
    target: Target | None = None
    """The rows of the target; None: there is none, or its vectors come from a file."""
    stored: np.ndarray | None = None
    """The number of each row in its data set as it is stored, int64 [N]."""
    data_sets: tuple[np.ndarray, tuple[str, ...]] | None = None
    """The data set of each row, as an index into names, int32 [N], and these names; None: its domain."""
    tokens: Callable[[], np.ndarray | None] = lambda: None
    """Tokens of each row that are learned, int32 [N]; None: not known."""

    @property
    def count(self) -> int:
        return self.groups[-1].end


@dataclass(frozen=True)
class Chosen:
    """The decision of a selector."""

    ids: list[np.ndarray]
    """The rows taken of each group, in the order of the selector, int64; equal on every rank."""
    scores: np.ndarray
    """float64 [N], NaN: none. On rank 0."""
    measured: np.ndarray
    """bool [N]: whether a row has all signals."""
    remarks: Mapping[str, str] = field(default_factory=dict)
    reasons: Reasons | None = None
    """Why rows were taken; None: the selector does not say. On rank 0."""


@dataclass
class _Candidates:
    group: Group
    ids: np.ndarray
    """Rows with a finite value for every signal."""
    context: SelectionContext
    signals: dict[str, np.ndarray]


class Chooser:
    """Asks a selector for rows.

    Args:
        budget: (candidates, group) -> rows to take.
        rng: (number of the decision, index of the group) -> its generator.
        lacking: (budget, candidates, group, step, names of signals) -> the message where there are too few candidates.
    """

    def __init__(
        self,
        spec: SelectConfig,
        available: Available,
        measure: Measure,
        *,
        budget: Callable[[int, Group], int],
        rng: Callable[[int, int], np.random.Generator],
        lacking: Callable[[int, int, Group, int, list[str]], str] | None = None,
    ) -> None:
        self.spec, self.available, self.measure = spec, available, measure
        self._budget, self._rng, self._lacking = budget, rng, lacking or self._too_few
        self._optimizer_is_known = False
        self.component_state: State = {}

    def init(self) -> None:
        self.component_state = self.spec.component.init()

    def check_optimizer(self, optimizer: Any) -> None:
        """Once: DataflexError where moments will be read and the optimizer has none that can be."""
        selector = self.spec.component
        asked = as_requests(declared(selector.needs) | declared(selector.refines))
        if not self._optimizer_is_known and any(r.reads_moments() for r in asked):
            optimizer_moments(optimizer)
        self._optimizer_is_known = True

    def choose(self, point: DecisionPoint, optimizer: Any = None) -> Chosen:
        """Called on every rank."""
        selector = self.spec.component
        wanted, refined = by_name(selector.needs_now(self.component_state)), by_name(declared(selector.refines))
        values: dict[SignalRequest, np.ndarray] = {r: self.measure(r) for r in wanted}
        target = {r.name: v for r, v in values.items() if r.per == "target row"}
        signals = {r.name: v for r, v in values.items() if r.per != "target row"}
        measured = self._usable.copy()
        for found in signals.values():
            measured &= finite(found)
        parts = [
            self._candidates(point, group_index, group, signals, target, measured)
            for group_index, group in enumerate(self.available.groups)
        ]
        if refined:
            self._refine(parts, refined)
        scores = np.full(self.available.count, np.nan)
        selections: list[Selection] = []

        def run() -> tuple[list[np.ndarray], State, dict[str, str]]:
            chosen, state, remarks = [], self.component_state, dict[str, str]()
            if any(r.reads_moments() for r in (*wanted, *refined)) and not has_moments(optimizer):
                remarks["moments"] = _NO_MOMENTS
            for part in parts:
                selection, state = selector.select(state, part.signals, part.context)
                remarks |= of_domain(selection.remarks, part.group.name)
                picked, count = np.asarray(selection.chosen), len(part.ids)
                check_choice(self.spec.name, picked, part.context.budget, count, declared(selector.with_replacement))
                chosen.append(part.ids[picked])
                if selection.scores is not None:
                    scores[part.ids] = selection.scores
                check_reasons(self.spec.name, selection, part.context, self._target_count(selection))
                selections.append(selection)
            return chosen, state, remarks

        chosen, self.component_state, remarks = decide(run)  # scores and reasons stay on rank 0, which writes them
        return Chosen(chosen, scores, measured, remarks, self._reasons(selections, parts, scores))

    @cached_property
    def _target(self) -> Target | None:
        """Rows that the selector aims at: it may be that weighters alone do."""
        aims = any(
            r.aim == "target"
            for r in as_requests(declared(self.spec.component.needs) | declared(self.spec.component.refines))
        )
        return self.available.target if aims else None

    def _target_count(self, selection: Selection) -> int | None:
        """What the reasons of a selection may number; None: not known."""
        if self._target is None:
            return None
        domains = self._target.domains
        return len(domains) if selection.for_datasets else domains.total

    def _reasons(self, selections: list[Selection], parts: list[_Candidates], scores: np.ndarray) -> Reasons | None:
        """scores: float64 [N]; a row without one has no row of the target that it comes from."""
        given = [(s.turn, s.chosen_for, s.score_from) for s in selections]
        if all(values is None for each in given for values in each):
            return None

        def of_chosen(name: str) -> np.ndarray | None:
            found = [getattr(s, name) for s in selections]
            if all(values is None for values in found):
                return None
            none = (np.full(len(s.chosen), -1) for s in selections)
            return np.concatenate([b if v is None else np.asarray(v) for v, b in zip(found, none)]).astype(np.int64)

        score_from = None
        if any(s.score_from is not None for s in selections):
            score_from = np.full(len(scores), -1)
            for selection, part in zip(selections, parts):
                if selection.score_from is not None:
                    score_from[part.ids] = selection.score_from
            score_from[~np.isfinite(scores)] = -1
        by_dataset = any(s.for_datasets for s in selections)
        return Reasons(self._target, of_chosen("turn"), of_chosen("chosen_for"), score_from, by_dataset)

    @cached_property
    def _usable(self) -> np.ndarray:
        return self.available.usable()

    def _candidates(
        self,
        point: DecisionPoint,
        group_index: int,
        group: Group,
        signals: dict[str, np.ndarray],
        target: dict[str, np.ndarray],
        measured: np.ndarray,
    ) -> _Candidates:
        """Of a group; DataflexError if they are fewer than its budget. measured: bool [N]."""
        selector, available = self.spec.component, self.available
        ids = np.flatnonzero(measured[group.begin : group.end])
        ids += group.begin
        budget = self._budget(len(ids), group)
        if not len(ids) or (budget > len(ids) and not declared(selector.with_replacement)):
            raise DataflexError(self._lacking(budget, len(ids), group, point.step, sorted(signals)))
        context = SelectionContext(
            budget=budget,
            rows=len(ids),
            step=point.step,
            update=point.update,
            updates=point.updates,
            domain=group.name,
            rng=self._rng(point.number, group_index),
            ids=ids,
            learning_rate=point.learning_rate,
            target_sizes=available.target.domains.sizes if available.target is not None else (),
            raw_rows=available.raw[ids] if available.raw is not None else None,
        )
        own = {name: taken(values, ids) for name, values in signals.items()}
        return _Candidates(group, ids, context, own | target)

    def _too_few(self, budget: int, count: int, group: Group, step: int, signals: list[str]) -> str:
        where = f" of {group.name}" if group.name else ""
        return (
            f"select: {self.spec.name} was asked for {budget} rows at step {step}, but only {count} of the"
            f" {group.end - group.begin} rows{where} have a finite {' and '.join(signals) or 'score'}"
        )

    def _refine(self, parts: list[_Candidates], refined: list[SignalRequest]) -> None:
        """Measure the costly signals on the shortlist of each group."""
        selector = self.spec.component

        def run() -> tuple[list[np.ndarray], State]:
            found, state = [], self.component_state
            for part in parts:
                indices, state = selector.shortlist(state, part.signals, part.context)
                found.append(np.unique(np.asarray(indices, dtype=np.int64)))
            return found, state

        shortlists, self.component_state = decide(run)
        ids = np.concatenate([part.ids[s] for part, s in zip(parts, shortlists)])
        values = {r.name: self.measure(r, ids) for r in refined}
        ends = np.cumsum([len(s) for s in shortlists])
        for part, indices, end in zip(parts, shortlists, ends):
            part.context = replace(part.context, shortlist=indices)
            part.signals |= {name: v[end - len(indices) : end] for name, v in values.items()}


def taken(values: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The values of rows `ids`, ascending. Of a file that is mapped into memory nothing is copied where they are all its rows."""
    return values if isinstance(values, np.memmap) and len(ids) == len(values) else values[ids]


def of_domain(remarks: Mapping[str, str], domain: str | None) -> dict[str, str]:
    """Remarks on the rows of a domain, told apart from those on other domains; None: as they are."""
    if domain is None:
        return dict(remarks)
    return {f"{domain}.{name}": f"{domain}: {line}" for name, line in remarks.items()}


def check_choice(name: str, chosen: np.ndarray, budget: int, rows: int, repeats: bool) -> None:
    """Raise DataflexError unless `chosen` holds exactly `budget` candidates, each once unless repeats are allowed."""
    if chosen.shape != (budget,) or not np.issubdtype(chosen.dtype, np.integer):
        raise DataflexError(
            f"select: {name} must return {budget} integer positions, got {chosen.dtype}{list(chosen.shape)}"
        )
    if budget and (chosen.min() < 0 or chosen.max() >= rows):
        raise DataflexError(f"select: {name} returned positions outside its {rows} candidates")
    if repeats:
        return
    seen = np.zeros(rows, dtype=bool)  # faster than sorting where a large part is chosen
    seen[chosen] = True
    if np.count_nonzero(seen) != budget:
        raise DataflexError(f"select: {name} returned a row more than once")


def check_reasons(name: str, selection: Selection, context: SelectionContext, targets: int | None) -> None:
    """Raise DataflexError unless turns and indices of the target have the shapes and values that they must have.

    targets: rows, or data sets, of the target; None: not known.
    """
    most = np.iinfo(np.int64).max if targets is None else targets - 1
    expected = {
        "turn": (context.budget, 1, np.iinfo(np.int64).max),
        "chosen_for": (context.budget, -1, most),
        "score_from": (context.rows, -1, most),
    }
    for field_name, (count, least, limit) in expected.items():
        if (given := getattr(selection, field_name)) is None:
            continue
        values = np.asarray(given)
        if values.shape != (count,) or not np.issubdtype(values.dtype, np.integer):
            raise DataflexError(
                f"select: {field_name} of {name} must hold {count} integers, got {values.dtype}{list(values.shape)}"
            )
        if count and (values.min() < least or values.max() > limit):
            wrong = values.min() if values.min() < least else values.max()
            raise DataflexError(f"select: {field_name} of {name} must lie between {least} and {limit}, got {wrong}")


def finite(values: np.ndarray) -> np.ndarray:
    """bool [N]: every value of the row is finite."""
    return np.isfinite(values).reshape(len(values), -1).all(axis=1)
