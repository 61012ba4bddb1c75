"""Selection by what training has changed: rows whose loss fell most first, later those whose loss fell less."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from dataflex.components.contexts import Selection, SelectionContext, State
from dataflex.components.contracts import Selector
from dataflex.components.requests import Request
from dataflex.components.tools.sampling import draw
from dataflex.components.tools.state import domain_key

if TYPE_CHECKING:
    from jaxtyping import Float, Int

# Weight of a row outside the window, against 1 inside.
_OUTSIDE = 0.025


@dataclass(frozen=True, kw_only=True)
class DeltaLossSelector(Selector):
    """Rows whose loss fell most first, later those whose loss fell less.

    With the loss l_0 of a row at the first update and l now, rows are ordered by how much they have gained,

        delta = l_0 - l ,   largest first,

    and drawn without replacement, forty times as likely inside a window of `window_size` x rows as outside. The window
    starts at sigmoid(10 (u - 1/2)) (1 - window_size) of the order, where u = update / (updates - 1) goes from 0 to 1: from
    what is learned fast to what is learned slowly. Rows whose loss has grown are not in it; where it would reach them it
    stays before them. The first update only measures l_0 and draws at random.

    Departures:

    Compared with the selector of dataflex 1.1.0, since there is no paper: the first update, which measures l_0 and draws at
    random, is the same. What is different:

    - The window of 1.1.0 moved otherwise, see [migration.md](migration.md#what-differs-and-why).
    """

    window_size: float = 0.2
    """Length of the window, as a share of the rows."""

    before_training: ClassVar[bool] = False
    retired: ClassVar[Mapping[str, str]] = {
        "cache_dir": "scores are written to <output_dir>/dataflex/selections",
        "score_batch_size": "scoring batches are built by token budget (scoring_tokens)",
        "score_num_workers": "scoring follows dataloader_num_workers",
    }

    def check(self) -> None:
        self.require("window_size", 0 < self.window_size <= 1, "in (0, 1]")

    def unobserving_updates(self, domains: int) -> int:
        """The first update has nothing to compare losses with."""
        return 1

    def needs(self) -> frozenset[Request]:
        return frozenset({"loss"})

    def select(
        self, state: State, signals: Mapping[str, np.ndarray], context: SelectionContext
    ) -> tuple[Selection, State]:
        assert context.ids is not None
        losses, ids_key, losses_key = signals["loss"], domain_key(context, "ids"), domain_key(context, "losses")
        if ids_key not in state:
            state = {**state, ids_key: context.ids, losses_key: losses}
            chosen = draw(np.ones(context.rows), context.budget, context.rng, replacement=False)
            return Selection(chosen, np.zeros(context.rows)), state
        delta = _before(state[ids_key], state[losses_key], context.ids) - losses
        start, stop = self.window(delta, context)
        order = np.argsort(-delta, kind="stable")  # a row without l_0 comes last
        weights = np.full(context.rows, _OUTSIDE)
        weights[order[start:stop]] = 1.0
        return Selection(draw(weights, context.budget, context.rng, replacement=False), delta), state

    def window(self, delta: Float[np.ndarray, " rows"], context: SelectionContext) -> tuple[int, int]:
        """The window in the order: its first index, and the index after its last."""
        progress = context.update / max(context.updates - 1, 1)
        share = 1 / (1 + exp(-10 * (progress - 0.5)))
        width = max(1, round(self.window_size * context.rows))
        end = int(np.sum(delta >= 0))
        start = min(int(share * (1 - self.window_size) * context.rows), max(end - width, 0))
        return start, min(start + width, end)


def _before(
    ids: Int[np.ndarray, " measured"], losses: Float[np.ndarray, " measured"], wanted: Int[np.ndarray, " rows"]
) -> Float[np.ndarray, " rows"]:
    """l_0 of the rows `wanted`, NaN where it was not measured. ids: ascending."""
    index = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    return np.where(ids[index] == wanted, losses[index], np.nan)
