"""The longest rows: a baseline that reads nothing but lengths (Zhao et al., arXiv 2402.04833)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from dataflex.components.contexts import Selection, SelectionContext, State
from dataflex.components.contracts import Selector
from dataflex.components.paper import Paper
from dataflex.components.requests import Request
from dataflex.components.tools.sampling import highest


@dataclass(frozen=True, kw_only=True)
class TokenLengthSelector(Selector):
    """The longest rows, or the shortest: a baseline that reads nothing but lengths.

    It is the same choice at every update.

    Departures:

    Nowhere known, compared with the paper's text: the longest responses, in tokens of the run's own tokenizer. Their figures
    are about a thousand rows.
    """

    count: Literal["trainable", "all"] = "trainable"
    """Which tokens count: those that carry a loss, that is, the responses; or those of the prompt as well."""
    order: Literal["longest", "shortest"] = "longest"
    """Which rows come first."""

    paper: ClassVar[Paper | None] = Paper(
        authors="Zhao et al.",
        title="Long Is More for Alignment: A Simple but Tough-to-Beat Baseline for Instruction Fine-Tuning",
        arxiv="2402.04833",
        venue="ICML 2024",
    )
    example: ClassVar[Mapping[str, Any]] = {"updates": 1}

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
