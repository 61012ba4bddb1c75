"""LESS: rows whose gradients point where the target's do (Xia et al., arXiv 2402.04333)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dataflex.components.contexts import Selection, SelectionContext, State
from dataflex.components.tools.gradients import GradientSelector
from dataflex.components.tools.sampling import highest
from dataflex.components.tools.state import domain_key

if TYPE_CHECKING:
    from jaxtyping import Float64


@dataclass(frozen=True, kw_only=True)
class LessSelector(GradientSelector):
    """The `budget` rows with the highest influence on the subtask they help most.

        Inf(z, D_k) = mean over z' in D_k of cos(Gamma(z), grad l(z'))        (equation 7, at the current model)
        score(z)    = max over subtasks k of Inf(z, D_k)                      (section 4.2)

    Gamma is the direction of Adam's step on z (`adam`) or its gradient (`sgd`). With `accumulate`, influences of all
    updates so far are added up, each times its learning rate, as the paper adds them over the checkpoints of a warm-up run.
    The paper projects gradients to 8192 dimensions, to store them; here they are not stored, and nothing is projected
    unless `proj_dim` says so or the target's vectors would not fit.
    """

    accumulate: bool = False

    def select(
        self, state: State, signals: Mapping[str, np.ndarray], context: SelectionContext
    ) -> tuple[Selection, State]:
        influence = signals["target_alignment"]
        if self.accumulate:
            total, state = accumulated(state, influence, context)
            influence = total if total.any() else influence  # a learning rate of zero (warm-up) orders nothing
        score = influence.max(axis=1)
        return Selection(highest(score, context.budget), score), state


def accumulated(
    state: State, influence: Float64[np.ndarray, "rows subtasks"], context: SelectionContext
) -> tuple[Float64[np.ndarray, "rows subtasks"], State]:
    """Sum over updates of learning rate x influence, by sample id; a row adds nothing at an update it has no value at."""
    assert context.ids is not None
    ids_key, sums_key = domain_key(context, "ids"), domain_key(context, "sums")
    ids, sums = context.ids, context.learning_rate * influence
    old_ids, old_sums = state.get(ids_key), state.get(sums_key)
    if old_ids is not None and old_sums is not None:
        both = ids if np.array_equal(old_ids, ids) else np.union1d(old_ids, ids)
        total = np.zeros((len(both), influence.shape[1]))
        total[np.searchsorted(both, old_ids)] += old_sums
        total[np.searchsorted(both, ids)] += sums
        ids, sums = both, total
    state = {**state, ids_key: ids, sums_key: sums}
    return sums[np.searchsorted(ids, context.ids)], state
