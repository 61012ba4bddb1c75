"""Targets that take turns among their neighbours."""

from __future__ import annotations

import numpy as np

from dataflex.components.tools.neighbours import nearest


def take_turns(ranking: np.ndarray, budget: int) -> np.ndarray:
    """The first `budget` different rows when all take turns, each with its next row: int64[<= budget].

    ranking: int [M, K], the rows of each from its best on. A turn on a row that is taken already adds nothing.
    """
    turns = ranking.T.ravel()
    rows, first = np.unique(turns, return_index=True)
    return rows[np.argsort(first)][:budget].astype(np.int64)


def turns_among(queries: np.ndarray, rows: np.ndarray, budget: int) -> np.ndarray:
    """`take_turns` of the queries over their nearest rows, looking only as deep as the budget needs: int64[budget]."""
    depth = min(len(rows), 2 * -(-budget // len(queries)) + 16)
    while True:
        chosen = take_turns(nearest(queries, rows, depth)[1], budget)
        if len(chosen) == budget or depth == len(rows):
            return chosen
        depth = min(len(rows), 4 * depth)
