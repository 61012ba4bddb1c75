"""GREATS: the batch that lowers the loss on the target most, chosen greedily (Wang et al., NeurIPS 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar, Literal

import numpy as np

from dataflex.components.contexts import Selection, SelectionContext, State
from dataflex.components.paper import Paper
from dataflex.components.requests import Interaction, Request
from dataflex.components.tools.gradients import GradientSelector
from dataflex.errors import DataflexError


@dataclass(frozen=True, kw_only=True)
class GreatsSelector(GradientSelector):
    """The batch that lowers the loss on the target most, chosen greedily.

    Meant for `interval: 1`. Of `candidates` x budget rows drawn at random, the budget is filled one row at a time with

        argmax over z of  eta <g(z), g_val>  -  eta^2 sum over z' chosen so far of <g(z), g(z')>,

    the second-order Taylor expansion of what a gradient step on the batch takes off the target's loss, with the identity for
    the Hessian: alignment minus redundancy. eta is the step that one row makes in the batch's mean, learning rate / budget,
    unless `step_size` says otherwise; the larger it is, the more redundancy counts. With gradient_type `adam`, g(z) is the
    step that Adam would take.

    Departures:

    Compared with their `gctrainer.py`: for one step size the greedy choice is the same. What is different:

    - *The step.* eta is learning rate / `budget` here, since a row moves the parameters by that much in the mean of a batch;
      theirs is the learning rate itself, as if gradients were added up. Redundancy therefore counts `budget` times as much
      there. `step_size` set to the learning rate is theirs. With a learning rate of 0.02 and 8 of 16 rows it changed one row
      in eight.
    - *The target rows.* They take 2 at a time (`val_batchsize`); here it is 32.
    - `gradient_type: adam` is not theirs.
    """

    candidates: float = 2.0
    """Rows drawn to choose from, as a multiple of the budget."""
    step_size: float | None = None
    """eta: the larger, the more redundancy counts; null: learning rate / budget."""
    target_rows: int | None = 32
    """Rows of the target used, drawn afresh at every update; null: all."""
    gradient_type: Literal["adam", "sgd"] = "sgd"
    """Direction of the candidates: the step that Adam would take on a row, or its gradient."""

    paper: ClassVar[Paper | None] = Paper(
        authors="Wang et al.",
        title="GREATS: Online Selection of High-Quality Data for LLM Training in Every Iteration",
        venue="NeurIPS 2024",
    )
    example: ClassVar[Mapping[str, Any]] = {"interval": 1}
    per_domain: ClassVar[bool] = False
    retired: ClassVar[Mapping[str, str]] = {}

    def check(self) -> None:
        super().check()
        self.require("candidates", 1 <= self.candidates < inf, "at least 1 and finite")
        self.require("step_size", self.step_size is None or 0 < self.step_size < inf, "positive and finite")
        self.require("target_rows", self.target_rows is None or self.target_rows >= 1, "at least 1")

    def request(self) -> Interaction:
        return Interaction(**self.taken, target_rows=self.target_rows)

    def needs(self) -> frozenset[Request]:
        return frozenset()

    def refines(self) -> frozenset[Request]:
        return frozenset({self.request()})

    def shortlist(
        self, state: State, signals: Mapping[str, np.ndarray], context: SelectionContext
    ) -> tuple[np.ndarray, State]:
        count = min(context.rows, int(np.ceil(self.candidates * context.budget)))
        return context.rng.choice(context.rows, size=count, replace=False), state

    def select(
        self, state: State, signals: Mapping[str, np.ndarray], context: SelectionContext
    ) -> tuple[Selection, State]:
        assert context.shortlist is not None
        alignment, gram = signals["interaction"][:, 0], signals["interaction"][:, 1:]
        usable = int(np.isfinite(alignment).sum())
        if usable < context.budget:
            raise DataflexError(
                f"select: greats was asked for {context.budget} rows, but only {usable} of its {len(alignment)} candidates"
                " have a gradient; set candidates higher"
            )
        eta = self.step_size or context.learning_rate / context.budget
        picked, gains = greedy(alignment, gram, eta, context.budget)
        scores = np.full(context.rows, np.nan)
        scores[context.shortlist] = eta * alignment
        scores[context.shortlist[picked]] = gains
        return Selection(context.shortlist[picked], scores), state


def greedy(alignment: np.ndarray, gram: np.ndarray, eta: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` rows chosen one after the other, and the gain of each when it was chosen; NaN is never chosen."""
    scale = eta or 1.0  # a learning rate of zero (warm-up): order by alignment alone
    gain = np.where(np.isfinite(alignment), scale * alignment, -np.inf)
    picked, gains = np.empty(count, dtype=np.int64), np.empty(count)
    for turn in range(count):
        best = int(gain.argmax())
        picked[turn], gains[turn] = best, gain[best]
        gain = gain - eta**2 * np.nan_to_num(gram[:, best])
        gain[best] = -np.inf
    return picked, gains
