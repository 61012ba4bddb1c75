"""Parts as a user writes them: a reward, and a selector against the public names of the package alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dataflex import Selection, Selector


def digits(prompts: list[str], responses: list[str], references: list[str]) -> list[float]:
    """A reward: the share of characters that are digits."""
    return [sum(c.isdigit() for c in r) / max(1, len(r)) for r in responses]


@dataclass(frozen=True, kw_only=True)
class Easiest(Selector):
    """The rows of the lowest loss after the first `skip`; it remembers how often it was asked."""

    skip: int = 0
    needs: ClassVar[frozenset[Any]] = frozenset({"loss"})

    def init(self) -> dict[str, Any]:
        return {"asked": 0, "last": np.zeros(0)}

    def select(self, state: Any, signals: Any, context: Any) -> Any:
        losses = np.asarray(signals["loss"])
        order = np.argsort(losses, kind="stable")[self.skip : self.skip + context.budget]
        return Selection(order, -losses), {"asked": state["asked"] + 1, "last": losses[order]}
