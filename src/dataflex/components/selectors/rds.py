"""RDS+: rows whose hidden states are closest to the target's (Ivison et al., arXiv 2503.01807)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from dataflex.components.contexts import Selection, SelectionContext, State
from dataflex.components.paper import Paper
from dataflex.components.tools.embeddings import EmbeddingSelector, comparable
from dataflex.components.tools.neighbours import closeness
from dataflex.components.tools.turns import take_turns, turns_among


@dataclass(frozen=True, kw_only=True)
class RdsSelector(EmbeddingSelector):
    """Rows whose hidden states are closest to those of the target (RDS+).

    A row is represented by its last hidden states, averaged with the position as weight, and

        s(z, z') = cos(h(z), h(z')),   h = sum_i i h_i / sum_i i .

    One target data set: its rows take turns, each with its next closest row, until the budget is met. Several: a row's score
    for a task is its largest s with a row of the task, and the tasks take turns. score: the largest s with any target row.

    Departures:

    Compared with their programs (`compute_influence_cosinesim.py`, `get_top_influences.py`,
    `get_top_aggregated_influences.py`): for the same vectors the choice and its order are the same. What is different:

    - They embed once, with the model before any training, and select once. `warmup: 0` with `updates: 1` does that, and so
      does [`dataflex-cli select`](offline.md). With more updates the model of the moment is asked each time.
    - In their program padding counts as tokens, and the command they give has one row in a batch; here padding never counts.
    """

    pooling: Literal["mean", "weighted_mean", "last"] = "weighted_mean"

    paper: ClassVar[Paper | None] = Paper(
        authors="Ivison et al.",
        title="Large-Scale Data Selection for Instruction Tuning",
        arxiv="2503.01807",
    )

    def select(
        self, state: State, signals: Mapping[str, np.ndarray], context: SelectionContext
    ) -> tuple[Selection, State]:
        rows, targets, indices = comparable(signals)
        sizes = context.target_sizes or (len(signals["target_embedding"]),)
        owner = np.repeat(np.arange(len(sizes)), sizes)[indices]
        tasks = np.unique(owner, return_inverse=True)[1]
        score, closest = closeness(targets, rows, tasks)
        if score.shape[1] == 1:
            taken = turns_among(targets, rows, context.budget)
            chosen_for = taken.target
        else:
            taken = take_turns(np.argsort(-score, axis=0, kind="stable").T, context.budget)
            chosen_for = closest[taken.rows, taken.target]  # of the task whose turn it was
        score_from = closest[np.arange(len(rows)), score.argmax(axis=1)]
        selection = Selection(
            taken.rows,
            score.max(axis=1),
            turn=taken.turn,
            chosen_for=indices[chosen_for],
            score_from=indices[score_from],
        )
        return selection, state
