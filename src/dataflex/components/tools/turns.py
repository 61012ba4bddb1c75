"""Targets that take turns among their neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dataflex.components.tools.neighbours import nearest

if TYPE_CHECKING:
    from jaxtyping import Float32, Int, Int64


def take_turns(ranking: Int[np.ndarray, "targets K"], budget: int) -> Int64[np.ndarray, " chosen"]:
    """The first `budget` different rows, or all, when targets take turns, each with its next row.

    ranking: the rows of each target from its best on. A turn on a row that is taken already adds nothing.
    """
    turns = ranking.T.ravel()
    rows, first = np.unique(turns, return_index=True)
    return rows[np.argsort(first)][:budget].astype(np.int64)


def turns_among(
    queries: Float32[np.ndarray, "queries dims"], rows: Float32[np.ndarray, "rows dims"], budget: int
) -> Int64[np.ndarray, " budget"]:
    """`take_turns` of the queries over their nearest rows, looking only as deep as the budget needs."""
    depth = min(len(rows), 2 * -(-budget // len(queries)) + 16)
    while True:
        chosen = take_turns(nearest(queries, rows, depth)[1], budget)
        if len(chosen) == budget or depth == len(rows):
            return chosen
        depth = min(len(rows), 4 * depth)
