"""ICONS: rows that many tasks find useful (Wu et al., arXiv 2501.00654)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dataflex.components.contexts import Selection, SelectionContext, State
from dataflex.components.paper import Paper
from dataflex.components.requests import TargetAlignment
from dataflex.components.tools.gradients import GradientSelector
from dataflex.components.tools.sampling import highest


@dataclass(frozen=True, kw_only=True)
class IconsSelector(GradientSelector):
    """Rows that many tasks of the target find useful.

    Each task votes for its `budget` most influential rows; the rows with the most votes are selected.

        vote_k(z) = 1 if Inf(z, D_k) is at least the (1 - budget / rows) quantile of task k, else 0
        score(z)  = sum over tasks k of vote_k(z)

    Inf is the influence of LESS. Rows with equally many votes are ordered by the mean over tasks of their rank within the
    task, so that one task, or a tie, is no reason to fall back on chance.

    Departures:

    Compared with their `generalist.py`: the votes are the same. What is different:

    - Rows with equally many votes: there the order of a sort decides; here the mean rank does.
    - Their default gradient is that of sgd; here it is adam, as in LESS.
    - Their tasks are those of a multimodal benchmark; here each data set of the target is one, or what `task_boundaries`
      cuts.
    """

    task_boundaries: tuple[int, ...] | None = None
    """Numbers of rows that cut the target, in order, into tasks; they add up to its rows; null: a data set is a task."""

    paper: ClassVar[Paper | None] = Paper(
        authors="Wu et al.",
        title="ICONS: Influence Consensus for Vision-Language Data Selection",
        arxiv="2501.00654",
    )

    def check(self) -> None:
        super().check()
        self.require(
            "task_boundaries", all(n >= 1 for n in self.task_boundaries or ()), "numbers of rows, each at least 1"
        )
        self.require("task_boundaries", self.task_boundaries != (), "None or a list of numbers")

    def request(self) -> TargetAlignment:
        return TargetAlignment(**self.taken, boundaries=self.task_boundaries)

    def select(
        self, state: State, signals: Mapping[str, np.ndarray], context: SelectionContext
    ) -> tuple[Selection, State]:
        influence = signals["target_alignment"]
        rows = len(influence)
        ranks = np.empty(influence.shape)  # 0: the least influential row of the task
        for k in range(influence.shape[1]):
            ranks[np.argsort(influence[:, k], kind="stable"), k] = np.arange(rows)
        threshold = np.sort(influence, axis=0)[max(rows - context.budget, 0)]
        votes = (influence >= threshold).sum(axis=1)
        score = votes + ranks.mean(axis=1) / rows  # the rank part is below one vote
        return Selection(highest(score, context.budget), score), state
