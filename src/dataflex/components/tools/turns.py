"""Targets that take turns among their neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dataflex.components.tools.neighbours import nearest

if TYPE_CHECKING:
    from jaxtyping import Bool, Float32, Int, Int64


@dataclass(frozen=True)
class Turns:
    """Different rows, in the order in which they were taken."""

    rows: Int64[np.ndarray, " chosen"]
    turn: Int64[np.ndarray, " chosen"]
    """The turn, from 1, in which each row was taken."""
    target: Int64[np.ndarray, " chosen"]
    """The target whose turn it was."""

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, kept: Bool[np.ndarray, " chosen"], budget: int) -> Turns:
        """The first `budget` of some of the rows."""
        return Turns(self.rows[kept][:budget], self.turn[kept][:budget], self.target[kept][:budget])


def take_turns(ranking: Int[np.ndarray, "targets K"], budget: int) -> Turns:
    """The first `budget` different rows, or all, when targets take turns, each with its next row.

    ranking: the rows of each target from its best on. A turn on a row that is taken already adds nothing.
    """
    rows, first = np.unique(ranking.T.ravel(), return_index=True)
    order = np.argsort(first)[:budget]
    turn, target = np.divmod(first[order], len(ranking))
    return Turns(rows[order].astype(np.int64), turn + 1, target)


def turns_among(
    queries: Float32[np.ndarray, "queries dims"], rows: Float32[np.ndarray, "rows dims"], budget: int
) -> Turns:
    """`take_turns` of the queries over their nearest rows, looking only as deep as the budget needs."""
    depth = min(len(rows), 2 * -(-budget // len(queries)) + 16)
    while True:
        chosen = take_turns(nearest(queries, rows, depth)[1], budget)
        if len(chosen) == budget or depth == len(rows):
            return chosen
        depth = min(len(rows), 4 * depth)
