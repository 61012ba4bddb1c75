"""Several sweeps over all scores, each with its share of the rows."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dataflex.components.contracts import Order
from dataflex.components.orders.paper import ORGANIZATION

if TYPE_CHECKING:
    from jaxtyping import Int


def folded(rows: int, layers: int) -> Int[np.ndarray, " rows"]:
    """Ranks l, l + L, l + 2 L, ... for l = 0 .. L - 1, one layer after the other."""
    return np.concatenate([np.arange(layer, rows, layers) for layer in range(min(layers, rows))])


def zigzagged(rows: int, layers: int) -> Int[np.ndarray, " rows"]:
    """As `folded`, with every second layer from its end to its beginning."""
    return np.concatenate(
        [np.arange(layer, rows, layers)[:: -1 if layer % 2 else 1] for layer in range(min(layers, rows))]
    )


@dataclass(frozen=True, kw_only=True)
class LayeredOrder(Order, ABC):
    """Base of the orders that sweep over all scores several times."""

    layers: int = 3
    """How often the scores run from one end to the other."""

    paper = ORGANIZATION
    defaults_of_1_1: ClassVar[Mapping[str, Any]] = {"layers": 5}

    def check(self) -> None:
        self.require("layers", self.layers >= 1, "at least 1")

    def same_as_sorting(self) -> str | None:
        return "layers: 1" if self.layers == 1 else None


@dataclass(frozen=True, kw_only=True)
class FoldingOrder(LayeredOrder):
    """The curriculum several times over, each time with another share of the rows.

    With L layers, layer l = 0 .. L - 1 serves the ranks l, l + L, l + 2 L, ... (FO of the paper: cyclic scheduling).

    Departures:

    Nowhere known, compared with `static` of dataflex 1.1.0. Its `dynamic` orders are another matter:
    [migration.md](migration.md#orders).
    """

    def ranks(self, rows: int, shuffled: Callable[[int, int], np.ndarray]) -> Int[np.ndarray, " rows"]:
        return folded(rows, self.layers)


@dataclass(frozen=True, kw_only=True)
class ZigzagOrder(LayeredOrder):
    """The scores up and down in turns, each time with another share of the rows.

    As `folding`, but every second layer (l odd) runs backwards, so scores never jump (ZIG of the paper: curriculum continuity).

    Departures:

    Nowhere known, compared with dataflex 1.1.0.
    """

    def ranks(self, rows: int, shuffled: Callable[[int, int], np.ndarray]) -> Int[np.ndarray, " rows"]:
        return zigzagged(rows, self.layers)
