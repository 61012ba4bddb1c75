"""Which rows may be drawn: at its updates a selector replaces the pools of the plan."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from dataflex import events
from dataflex.components.contexts import State
from dataflex.components.contracts import declared
from dataflex.deciding.choosing import Chooser, Chosen, DecisionPoint
from dataflex.deciding.overlap import overlap, rows_by_domain
from dataflex.deciding.serving import Serving
from dataflex.distributed.trainer_view import TrainerView
from dataflex.plan.stages import Pool, chosen_pool
from dataflex.record.recorder import Recorder
from dataflex.record.selection_file import SelectionRecord


class Selecting:
    """The pools of a selector.

    Args:
        signals: Names of the selector's signals, for the ledger.
    """

    def __init__(self, chooser: Chooser, serving: Serving, recorder: Recorder, signals: list[str]) -> None:
        self.chooser, self.serving, self.recorder, self.signals = chooser, serving, recorder, signals
        self.spec = chooser.spec
        self.schedule = self.spec.schedule

    def init(self) -> None:
        self.chooser.init()

    @property
    def component_state(self) -> State:
        return self.chooser.component_state

    @component_state.setter
    def component_state(self, state: State) -> None:
        self.chooser.component_state = state

    def act(self, step: int, view: TrainerView) -> None:
        """Called on every rank before a step at which a component may be due."""
        self.chooser.check_optimizer(view.optimizer)
        if self.schedule.due(step):
            with events.timing("selecting"):
                self._select(step, view)

    def _select(self, step: int, view: TrainerView) -> None:
        begin, plan = time.perf_counter(), self.serving.plan
        point = DecisionPoint(
            step=step,
            update=self.schedule.turn(step),
            updates=self.schedule.turns(view.max_steps),
            number=plan.stages[-1].index + 1,
            learning_rate=view.learning_rate,
        )
        chosen = self.chooser.choose(point, view.optimizer)
        self.recorder.remarks.add(f"select:{self.spec.name}", chosen.remarks)
        self._open_pools(point, chosen, begin)

    def _open_pools(self, point: DecisionPoint, chosen: Chosen, begin: float) -> None:
        seconds = time.perf_counter() - begin
        step, scores, without_score = point.step, chosen.scores, int((~chosen.measured).sum())
        plan, position = self.serving.plan, self.serving.position(step)
        as_given = self.spec.serving_order == "selection" and not plan.shuffle
        pools: list[Pool] = [chosen_pool(point.number, ids, as_given=as_given) for ids in chosen.ids]
        selected = np.concatenate(chosen.ids) if len(chosen.ids) > 1 else chosen.ids[0]
        same = overlap(selected, plan.stages[-1].pools, plan.domains.total)
        stage = plan.append(position, pools, plan.stages[-1].proportions)
        looked_at = None
        if declared(self.spec.component.refines):  # of a shortlist, what was on it
            looked_at = np.union1d(np.flatnonzero(np.isfinite(scores)), selected)
        available = self.chooser.available
        record = SelectionRecord(
            plan.domains,
            chosen.ids,
            scores,
            looked_at,
            stored=available.stored,
            tokens=available.tokens(),
            data_sets=available.data_sets,
            reasons=chosen.reasons,
        )
        decided: dict[str, Any] = {
            "rows": [len(ids) for ids in chosen.ids],
            "domains": rows_by_domain(selected, plan.domains),
            "overlap": same,
            "file": self.recorder.files.write_selection(step, record),
        }
        source = {"signals": self.signals, "rows": len(scores), "without_score": without_score}
        self.recorder.decision(step, position, f"select:{self.spec.name}", decided, source, seconds, stage)
        scalars = {
            "dataflex/selection/rows": float(len(selected)),
            "dataflex/selection/without_score": float(without_score),
            "dataflex/selection/seconds": seconds,
        }
        if np.isfinite(scores).any():
            scalars["dataflex/selection/mean_score"] = float(np.nanmean(scores[selected]))
            scalars["dataflex/selection/mean_score_of_pool"] = float(np.nanmean(scores))
        self.recorder.scalars |= scalars
