"""The longest rows: a baseline that reads nothing but lengths (Zhao et al., arXiv 2402.04833)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dataflex.components.contexts import Selection, SelectionContext, State
from dataflex.components.contracts import Selector
from dataflex.components.requests import Request
from dataflex.components.tools.sampling import highest


@dataclass(frozen=True, kw_only=True)
class TokenLengthSelector(Selector):
    """The `budget` rows with the most tokens to learn, or with the fewest. It is the same choice at every update.

    count: `trainable`, the tokens that carry a loss (the responses), or `all`. order: `longest` or `shortest` first.
    """

    count: Literal["trainable", "all"] = "trainable"
    order: Literal["longest", "shortest"] = "longest"

    def needs(self) -> frozenset[Request]:
        return frozenset({self._signal})

    @property
    def _signal(self) -> str:
        return "trainable_tokens" if self.count == "trainable" else "tokens"

    def select(
        self, state: State, signals: Mapping[str, np.ndarray], context: SelectionContext
    ) -> tuple[Selection, State]:
        tokens = signals[self._signal]
        return Selection(highest(tokens if self.order == "longest" else -tokens, context.budget), tokens), state
