"""A curriculum in sections, with rows of both sides around each border."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dataflex.components.contracts import Order
from dataflex.components.orders.layers import folded, zigzagged
from dataflex.components.orders.paper import ORGANIZATION

if TYPE_CHECKING:
    from jaxtyping import Int


def in_sections(
    rows: int, sections: int, radius: float, within: Callable[[int], np.ndarray]
) -> Int[np.ndarray, " rows"]:
    """Ascending ranks, but for the regions around the borders between sections.

    With S sections, border j = 1 .. S - 1 is at rank c_j = round(N j / S). Its region is [c_j - r, c_j + r) with
    r = round(radius N). within: rows of a region -> their order.
    """
    found, half = np.arange(rows), round(radius * rows)
    for section in range(1, sections):
        border = round(rows * section / sections)
        begin, end = max(border - half, 0), min(border + half, rows)
        if end > begin:
            found[begin:end] = begin + within(end - begin)
    return found


@dataclass(frozen=True, kw_only=True)
class SectionedOrder(Order, ABC):
    """Base of the orders whose ranks ascend but around the borders between sections."""

    sections: int = 2
    """Sections of the curriculum."""
    radius: float = 0.225
    """Rows on each side of a border that its region has, as a share of all."""
    layers: int = 3
    """How often the scores of a region run from one end to the other."""

    paper = ORGANIZATION

    def check(self) -> None:
        self.require("sections", self.sections >= 1, "at least 1")
        self.require("radius", self.radius >= 0 and 2 * self.radius * self.sections < 1, "in [0, 1 / (2 sections))")
        self.require("layers", self.layers >= 1, "at least 1")

    def same_as_sorting(self) -> str | None:
        """The parameter that makes the shape that of `sorting`, with its value."""
        found = {"sections: 1": self.sections == 1, "radius: 0": self.radius == 0, "layers: 1": self.layers == 1}
        return next((why for why, holds in found.items() if holds), None)


@dataclass(frozen=True, kw_only=True)
class StairOrder(SectionedOrder):
    """A curriculum whose middle part goes over its scores several times.

    The ranks ascend. Around each border between sections, the ranks of a region are served as `folding` would serve them. With
    N rows and S sections, border j = 1 .. S - 1 is at c_j = round(N j / S), and its region is [c_j - r, c_j + r) with
    r = round(radius N). (STR of the paper.)

    Departures:

    Nowhere known, compared with dataflex 1.1.0. The defaults are those of its preset. In its code `radius` is 0, which is
    `sorting`.
    """

    defaults_of_1_1: ClassVar[Mapping[str, Any]] = {"radius": 0.0, "layers": 2}

    def ranks(self, rows: int, shuffled: Callable[[int, int], np.ndarray]) -> Int[np.ndarray, " rows"]:
        return in_sections(rows, self.sections, self.radius, lambda count: folded(count, self.layers))


@dataclass(frozen=True, kw_only=True)
class SawOrder(SectionedOrder):
    """A curriculum that goes back and forth a little at the borders between its sections.

    As `stair`, but regions are served as `zigzag` would serve them. (SAW of the paper.)

    Departures:

    Nowhere known, compared with `static` of dataflex 1.1.0. The defaults are those of its preset. In its code `sections` is 2 and
    `radius` is 0, which is `sorting`.
    """

    sections: int = 3
    radius: float = 0.075
    layers: int = 2

    defaults_of_1_1: ClassVar[Mapping[str, Any]] = {"sections": 2, "radius": 0.0}

    def ranks(self, rows: int, shuffled: Callable[[int, int], np.ndarray]) -> Int[np.ndarray, " rows"]:
        return in_sections(rows, self.sections, self.radius, lambda count: zigzagged(count, self.layers))
