"""LESS: rows whose gradients point where the target's do (Xia et al., arXiv 2402.04333)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from dataflex.components.contexts import Selection, SelectionContext, State
from dataflex.components.paper import Paper
from dataflex.components.tools.gradients import GradientSelector, best_datasets
from dataflex.components.tools.sampling import highest
from dataflex.components.tools.state import domain_key

if TYPE_CHECKING:
    from jaxtyping import Float64


@dataclass(frozen=True, kw_only=True)
class LessSelector(GradientSelector):
    """Rows whose gradients point where those of the target do: the highest influence on the subtask they help most.

        Inf(z, D_k) = mean over z' in D_k of cos(Gamma(z), grad l(z'))        (equation 7, at the current model)
        score(z)    = max over subtasks k of Inf(z, D_k)                      (section 4.2)

    Gamma is the direction of Adam's step on z (`adam`) or its gradient (`sgd`). With `accumulate`, influences of all
    updates so far are added up, each times its learning rate, as the paper adds them over the checkpoints of a warm-up run.
    The paper projects gradients to 8192 dimensions, to store them; here they are not stored, and nothing is projected
    unless `proj_dim` says so or the target's vectors would not fit.

    Departures:

    Compared with princeton-nlp/LESS. The same are sgd for the target, unit gradients, the mean over a subtask and then the
    maximum, token-mean losses and evaluation mode. What is different:

    - *Adam's step.* Theirs has eps inside the root, fixed betas and no correction of the bias; here it is the step of the
      run's own optimizer, with eps outside the root. `adam_step: authors` is theirs ([Gradients](#gradients)).
    - *The warm-up.* They train a LoRA for four epochs on 5 % of the data, and add up influences over its checkpoints, each
      times its learning rate (divided by their sum, which changes no order). Here the model is the one at hand, after
      `warmup` steps; with `accumulate` the influences of all updates so far are added up in this way.
    - *Projection.* They project gradients to 8192 values to be able to store them; here they are not stored, and not
      projected unless they have to be.
    - They select once, a share of the data, and train on it from the start. [`dataflex-cli select`](offline.md) does that.
    """

    accumulate: bool = False
    """Add up influences over updates, each times the learning rate."""

    paper: ClassVar[Paper | None] = Paper(
        authors="Xia et al.",
        title="LESS: Selecting Influential Data for Targeted Instruction Tuning",
        arxiv="2402.04333",
        venue="ICML 2024",
    )

    def select(
        self, state: State, signals: Mapping[str, np.ndarray], context: SelectionContext
    ) -> tuple[Selection, State]:
        influence = signals["target_alignment"]
        if self.accumulate:
            total, state = accumulated(state, influence, context)
            influence = total if total.any() else influence  # a learning rate of zero (warm-up) orders nothing
        score = influence.max(axis=1)
        chosen = highest(score, context.budget)
        return Selection(chosen, score, **best_datasets(influence, chosen)), state


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
