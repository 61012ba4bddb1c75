"""A weight that the data set itself gives every row or message."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dataflex.components.contexts import State, WeightContext
from dataflex.components.contracts import Weighter
from dataflex.components.requests import Request

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class ColumnWeighter(Weighter):
    """A row or a message weighs what the data set itself says.

    w_i is the number in `column` of row i; with `per: message`, a token weighs what `column` of its message says.

    Numbers are non-negative; only ratios matter. A row without the column is an error; a message without it weighs one.

    Departures:

    Nowhere known, compared with the written-out loss. It has no authors.
    """

    column: str = "weight"
    """Name of the column, or with `per: message` of the key beside a message's role and content."""
    per: Literal["row", "message"] = "row"
    """Whose weight it is."""

    def check(self) -> None:
        self.require("column", bool(self.column), "the name of a column")

    def needs(self) -> frozenset[Request]:
        return frozenset({"given_weight"})

    def level(self) -> Literal["row", "token"]:
        return "token" if self.per == "message" else "row"

    def weights(self, state: State, losses: torch.Tensor, context: WeightContext) -> torch.Tensor:
        return context.signals["given_weight"].to(losses)
