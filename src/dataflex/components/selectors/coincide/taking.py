"""How many rows of each cluster are taken, and which (section 3.4, eq. 7 and 8)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dataflex.components.selectors.coincide.clusters import kernel

if TYPE_CHECKING:
    from jaxtyping import Float, Float64, Int64


def counts_in_turn(
    score: Float64[np.ndarray, " clusters"], size: Int64[np.ndarray, " clusters"], budget: int
) -> Int64[np.ndarray, " clusters"]:
    """As in the authors' code: from the highest score down, a cluster takes round(what is left x its share of exp(score)
    among those not yet asked), at most all its rows. What is left after the last one is shared out the same way."""
    taken = np.zeros(len(score), dtype=np.int64)
    while (left := budget - int(taken.sum())) > 0:
        order = [i for i in np.argsort(-score, kind="stable") if taken[i] < size[i]]
        following = np.logaddexp.accumulate(score[order][::-1])[::-1]
        for i, share in zip(order, np.exp(score[order] - following), strict=True):
            more = min(round(left * float(share)), int(size[i] - taken[i]))
            taken[i] += more
            left -= more
    return taken


def counts_at_once(
    score: Float64[np.ndarray, " clusters"], size: Int64[np.ndarray, " clusters"], budget: int
) -> Int64[np.ndarray, " clusters"]:
    """As in the paper: in proportion to exp(score), by the largest remainders, at most all rows of a cluster. What the full
    ones leave is shared out the same way."""
    taken = np.zeros(len(score), dtype=np.int64)
    while (left := budget - int(taken.sum())) > 0:
        room = size - taken
        share = np.where(room > 0, np.exp(score - score[room > 0].max()), 0.0)
        asked = left * share / share.sum()
        more = np.minimum(np.floor(asked).astype(np.int64), room)
        rest = np.where(room > more, asked - np.floor(asked), -1.0)
        last = np.argsort(-rest, kind="stable")[: left - int(more.sum())]
        more[last[rest[last] >= 0]] += 1
        taken += more
    return taken


def representatives(rows: Float[np.ndarray, "rows dims"], count: int, scale: float) -> Int64[np.ndarray, " count"]:
    """Indices of the rows that are taken one after another, each so that MMD^2 between all rows and those taken is least.

    MMD^2(C, C') = A(C, C) + A(C', C') - 2 A(C, C'), A the mean kernel over all pairs, those of a row with itself too.
    """
    if count >= len(rows):
        return np.arange(len(rows))
    to_all = np.concatenate([kernel(rows[k : k + 1024], rows, scale).sum(axis=1) for k in range(0, len(rows), 1024)])
    to_taken, within, across = np.zeros(len(rows)), 0.0, 0.0
    free, taken = np.ones(len(rows), dtype=bool), np.empty(count, dtype=np.int64)
    for t in range(1, count + 1):
        distance = (within + 2 * to_taken + 1) / t**2 - 2 * (across + to_all) / (len(rows) * t)
        best = int(np.where(free, distance, np.inf).argmin())
        taken[t - 1], free[best] = best, False
        within += 2 * to_taken[best] + 1
        across += to_all[best]
        to_taken += kernel(rows, rows[best : best + 1], scale)[:, 0]
    return taken
