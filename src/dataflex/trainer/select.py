"""SelectTrainer: which rows may be drawn."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from dataflex.components.contracts import SelectionContext, declared
from dataflex.components.requests import by_name
from dataflex.distributed.collectives import decide
from dataflex.errors import DataflexError
from dataflex.plan.permutation import generator
from dataflex.plan.plan import Pool, chosen_pool
from dataflex.signals.gradients.directions import has_moments, optimizer_moments
from dataflex.trainer.core import DynamicTrainer

_PURPOSE = 0x5E1EC7  # keeps this family's random numbers apart from those of the plan and of mixers
_NO_MOMENTS = (
    "no optimizer step has been taken, so Adam's moments are empty and its direction is little more than the signs of a"
    " gradient; set warmup to 10 or more, or gradient_type: sgd"
)


@dataclass
class _Group:
    """Rows one call of the selector chooses from: a domain, or all data (name None). candidates: ids of those with a finite
    value for every signal."""

    name: str | None
    candidates: np.ndarray
    context: SelectionContext
    signals: dict[str, np.ndarray]


class SelectTrainer(DynamicTrainer):
    """At each update the selector replaces the pools rows are drawn from.

    Without a mixer: exactly `budget` = interval x global batch rows of the whole data. With one: `keep_ratio` of each
    domain's rows.
    """

    _readable = False  # whether the optimizer is known to be one whose moments can be read, where they will be

    def _select(self, step: int) -> None:
        spec = self.config.select
        if not self._readable and any(r.reads_moments() for r in self.config.requests("select")):
            optimizer_moments(self.optimizer)
        self._readable = True
        if spec is None or not spec.schedule.due(step):
            return super()._select(step)
        begin = time.perf_counter()
        chosen, scores, measured = self._choose(step)
        self._open_pools(step, chosen, scores, int((~measured).sum()), time.perf_counter() - begin)
        return super()._select(step)

    def _choose(self, step: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        """What the selector takes of each group (ids), equal on every rank; the score of every row, on rank 0; and bool [N],
        whether a row has all signals."""
        spec = self.config.select
        assert spec is not None
        selector = spec.component
        wanted = by_name(selector.needs_now(self.states["select"]))
        values = {r: self.signals.measure(r) for r in wanted}
        aims = {r.name: v for r, v in values.items() if r.per == "target row"}
        signals = {r.name: v for r, v in values.items() if r.per != "target row"}
        measured = self._trainable.copy()
        for found in signals.values():
            measured &= finite(found)
        groups = self._groups(step, signals, aims, measured)
        refined = by_name(declared(selector.refines))
        if refined:
            self._refine(groups)

        scores = np.full(len(self.rows), np.nan)

        def run() -> tuple[list[np.ndarray], dict[str, Any], dict[str, str]]:
            chosen, state, remarks = [], self.states["select"], dict[str, str]()
            if any(r.reads_moments() for r in (*wanted, *refined)) and not has_moments(self.optimizer):
                remarks["moments"] = _NO_MOMENTS
            for group in groups:
                selection, state = selector.select(state, group.signals, group.context)
                remarks |= named(selection.remarks, group.name)
                picked = np.asarray(selection.chosen)
                count = len(group.candidates)
                check_choice(spec.name, picked, group.context.budget, count, declared(selector.with_replacement))
                chosen.append(group.candidates[picked])
                if selection.scores is not None:
                    scores[group.candidates] = selection.scores
            return chosen, state, remarks

        chosen, self.states["select"], remarks = decide(run)  # scores stay on rank 0, which writes them
        self.remarks.add(f"select:{spec.name}", remarks)
        return chosen, scores, measured

    def _groups(
        self, step: int, signals: dict[str, np.ndarray], aims: dict[str, np.ndarray], measured: np.ndarray
    ) -> list[_Group]:
        """DataflexError if a group has fewer candidates than its budget."""
        spec, domains = self.config.select, self.rows.domains
        assert spec is not None
        selector, offsets = spec.component, domains.offsets
        if self.config.mix is None:
            parts: list[tuple[str | None, int, int]] = [(None, 0, len(self.rows))]
        else:
            parts = [(name, int(offsets[d]), int(offsets[d + 1])) for d, name in enumerate(domains.names)]
        out = []
        for place, (name, begin, end) in enumerate(parts):
            candidates = np.flatnonzero(measured[begin:end])
            candidates += begin
            budget = self._budget(len(candidates), name is not None)
            if not len(candidates) or (budget > len(candidates) and not declared(selector.with_replacement)):
                where = f" of {name}" if name else ""
                raise DataflexError(
                    f"select: {spec.name} was asked for {budget} rows at step {step}, but only {len(candidates)} of the"
                    f" {end - begin} rows{where} have a finite {' and '.join(sorted(signals)) or 'score'}"
                )
            context = SelectionContext(
                budget=budget,
                rows=len(candidates),
                step=step,
                update=spec.schedule.turn(step),
                updates=spec.schedule.turns(self.state.max_steps),
                domain=name,
                rng=generator(self.plan.seed, _PURPOSE, selector.seed, self._key, place),
                ids=candidates,
                learning_rate=float(self._get_learning_rate()),
                target_sizes=self.target.domains.sizes if self.target is not None else (),
                raw_rows=self.rows.raw[candidates] if self.rows.raw is not None else None,
            )
            own = {n: v[candidates] for n, v in signals.items()}
            out.append(_Group(name, candidates, context, own | aims))
        return out

    @cached_property
    def _trainable(self) -> np.ndarray:
        """bool [N]: the row has a token to learn."""
        return self.rows.trainable_tokens() > 0

    @property
    def _key(self) -> int:
        """The number that the stage to be opened will have: no other pool shares it."""
        return self.plan.stages[-1].index + 1

    def _refine(self, groups: list[_Group]) -> None:
        """Measure the costly signals on each group's shortlist."""
        assert self.config.select is not None
        selector = self.config.select.component

        def run() -> tuple[list[np.ndarray], dict[str, Any]]:
            found, state = [], self.states["select"]
            for group in groups:
                places, state = selector.shortlist(state, group.signals, group.context)
                found.append(np.unique(np.asarray(places, dtype=np.int64)))
            return found, state

        shortlists, self.states["select"] = decide(run)
        ids = np.concatenate([g.candidates[s] for g, s in zip(groups, shortlists)])
        values = {r.name: self.signals.measure(r, ids) for r in by_name(declared(selector.refines))}
        ends = np.cumsum([len(s) for s in shortlists])
        for group, places, end in zip(groups, shortlists, ends):
            group.context = replace(group.context, shortlist=places)
            group.signals |= {name: v[end - len(places) : end] for name, v in values.items()}

    def _open_pools(
        self, step: int, chosen: list[np.ndarray], scores: np.ndarray, invalid: int, seconds: float
    ) -> None:
        spec = self.config.select
        assert spec is not None
        key = self._key
        as_given = spec.serving_order == "selection" and not self.plan.shuffle
        pools: list[Pool] = [chosen_pool(key, ids, as_given=as_given) for ids in chosen]
        stage = self.plan.append(self.position(step), pools, self.plan.stages[-1].proportions)
        selected = np.concatenate(chosen) if len(chosen) > 1 else chosen[0]
        looked_at = None
        if declared(spec.component.refines):  # of a shortlist, what was on it
            looked_at = np.union1d(np.flatnonzero(np.isfinite(scores)), selected)
        file = self.run_files.write_selection(step, scores, selected, looked_at)
        self._log_decision(
            step,
            f"select:{spec.name}",
            {"rows": [len(c) for c in chosen], "file": file},
            {"signals": self.config.signals("select"), "rows": len(self.rows), "without_score": invalid},
            seconds,
            stage,
        )
        self._pending_scalars |= {
            "dataflex/selection/rows": float(len(selected)),
            "dataflex/selection/without_score": float(invalid),
            "dataflex/selection/seconds": seconds,
        }
        if np.isfinite(scores).any():
            self._pending_scalars |= {
                "dataflex/selection/mean_score": float(np.nanmean(scores[selected])),
                "dataflex/selection/mean_score_of_pool": float(np.nanmean(scores)),
            }

    def _budget(self, rows: int, per_domain: bool) -> int:
        spec = self.config.select
        assert spec is not None and spec.schedule.interval is not None
        return int(np.ceil(spec.keep_ratio * rows)) if per_domain else spec.schedule.interval * self.global_batch


def named(remarks: Mapping[str, str], domain: str | None) -> dict[str, str]:
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
    taken = np.zeros(rows, dtype=bool)  # faster than sorting where a large part is chosen
    taken[chosen] = True
    if np.count_nonzero(taken) != budget:
        raise DataflexError(f"select: {name} returned a row more than once")


def finite(values: np.ndarray) -> np.ndarray:
    """bool [N]: every value of the row is finite."""
    return np.isfinite(values).reshape(len(values), -1).all(axis=1)
