"""In which order the rows of a pool are served: at its updates an order ranks the rows of the pools by their scores."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dataflex import events
from dataflex.config.schema import OrderConfig
from dataflex.deciding.serving import PlannedServing
from dataflex.distributed.collectives import decide
from dataflex.plan.course import Course
from dataflex.plan.stages import Pool
from dataflex.record.order_file import OrderRecord
from dataflex.record.recorder import Recorder


class Ordering:
    """Gives the pools of a stage a course: the rows by rank, and the draws that the shape is laid over.

    Args:
        score: Gives the score of every row, float64[N]; NaN: none. Called on every rank.
        stored: The number of each row in its data set, and its data set, as `OrderRecord` has them.
        most_rows: Gives how many draws the pool of each domain has at most in all; None: no limit.
    """

    def __init__(
        self,
        spec: OrderConfig,
        score: Callable[[], np.ndarray],
        serving: PlannedServing,
        recorder: Recorder,
        stored: tuple[Any, Any] = (None, None),
        most_rows: Callable[[], Sequence[int | None]] | None = None,
    ) -> None:
        self.spec, self.score, self.serving, self.recorder = spec, score, serving, recorder
        self.stored, self.most_rows = stored, most_rows
        self.schedule = spec.schedule
        self.scores: np.ndarray | None = None
        """As last measured."""

    def act(self, step: int, end: int) -> None:
        """Called on every rank before a step at which an order may be due.

        end: the step up to which the pools are drawn from, as far as is known: that of the next selection, or the end of the run.
        """
        pools, due = self.serving.plan.stages[-1].pools, self.schedule.due(step)
        new = step >= self.schedule.warmup and any(pool.course is None and len(pool) for pool in pools)
        if due or new:
            with events.timing("ordering"):
                self._order(step, end, measure=due)

    def _order(self, step: int, end: int, *, measure: bool) -> None:
        begin, plan, position = time.perf_counter(), self.serving.plan, self.serving.position(step)
        if measure or self.scores is None:
            self.scores = np.asarray(self.score(), dtype=np.float64)
        scores, last = self.scores, plan.stages[-1]
        draws, ends = plan.served(position), self._ends(position, self.serving.position(end))
        ranked: list[np.ndarray] = decide(lambda: [self._ranked(pool, scores) for pool in last.pools])
        pools = [
            self._with_course(d, pool, *found) if len(pool) else pool
            for d, (pool, found) in enumerate(zip(last.pools, zip(ranked, draws, ends, strict=True), strict=True))
        ]
        if all(a is b for a, b in zip(pools, last.pools, strict=True)):
            return
        stage = plan.append(position, pools, last.proportions)
        scored = int(np.isfinite(scores).sum())
        decided = {
            "rows": [len(pool) for pool in pools],
            "draws": [max(end - drawn, 0) for end, drawn in zip(ends, draws, strict=True)],
            "file": self.recorder.files.write_order(step, OrderRecord(plan.domains, pools, scores, *self.stored)),
        }
        source = {"by": self.spec.by, "rows": len(scores), "without_score": len(scores) - scored}
        seconds = time.perf_counter() - begin
        self.recorder.decision(step, position, f"order:{self.spec.name}", decided, source, seconds, stage)
        self.recorder.scalars |= {"dataflex/order/without_score": float(len(scores) - scored)}

    def _with_course(self, d: int, pool: Pool, ranked: np.ndarray, drawn: int, end: int) -> Pool:
        """The pool as it is served from its draw `drawn` on; the pool itself where nothing changes."""
        course = pool.course
        if course is not None and course.end == end and np.array_equal(course.ranked, ranked):
            return pool
        begin = drawn if course is None else course.begin
        served = self.serving.plan.epoch_under_way(self.serving.plan.stages[-1], d, drawn)
        return replace(pool, course=Course(ranked=ranked, begin=begin, since=drawn, end=end, served=served))

    def _ranked(self, pool: Pool, scores: np.ndarray) -> np.ndarray:
        """The rows of a pool by rank, as places in it, int64[n]. Rows without a score have the median one of the pool."""
        ids = pool.rows(np.arange(len(pool)))
        own = scores[ids]
        scored = np.isfinite(own)
        if not scored.all():
            own = np.where(scored, own, np.median(own[scored]) if scored.any() else 0.0)
        return np.lexsort((ids, own if self.spec.polarity == "higher_later" else -own))

    def _ends(self, position: int, end: int) -> list[int]:
        """The draws of each pool in all once `end` is reached, with the proportions in force; at most one too many."""
        plan = self.serving.plan
        ends = plan.expected_draws(position, end)
        if self.most_rows is not None:
            limits = self.most_rows()
            ends = [found if most is None else min(found, most) for found, most in zip(ends, limits, strict=True)]
        return ends

    def state_dict(self) -> dict[str, Any]:
        """Losses alone: all other scores are read from the data again."""
        return {"scores": self.scores} if self.spec.by == "loss" and self.scores is not None else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.scores = state.get("scores")
