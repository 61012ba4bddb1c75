"""The selection problem of TSDS: close to the target, yet spread over rows that are no duplicates (Liu et al.,
arXiv 2410.11303, KNN-KDE).

Each of M target rows has mass 1/M and sends it to its nearest candidates in order, at most 1 / (M s rho_k) to candidate k,
where rho_k is the density of candidates around k: near-duplicates together get what one row would get. The larger s, the
farther mass must travel; s grows until alpha / C x the distance travelled outweighs (1 - alpha) x the evenness gained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# Neighbours of a target row that are looked at first; twice as many each time they do not suffice.
_DEPTH = 64


@dataclass(frozen=True)
class Transported:
    """probabilities: of each candidate, float64 [rows], adding up to one. stopped: whether s stopped growing by itself; where
    it did not, every candidate but the last of each target row is full, and alpha and C have no say. at_the_end: share of all
    mass that lies on the last candidates, the farthest."""

    probabilities: np.ndarray
    stopped: bool
    at_the_end: float


def transport(
    distances: np.ndarray,
    places: np.ndarray,
    rows: int,
    density: Callable[[np.ndarray], np.ndarray],
    *,
    alpha: float,
    C: float,
) -> Transported:
    """Solve the problem for M target rows with K candidates each.

    distances, places: float and int [M, K], the K nearest candidates of each target row, nearest first. density: places ->
    rho, float64, positive; asked only of candidates that mass can reach.
    """
    M, K = places.shape
    d, rho = distances.astype(np.float64), np.full(rows, np.nan)
    depth = np.full(M, min(_DEPTH, K))
    while True:
        seen = np.arange(depth.max()) < depth[:, None]
        here = places[:, : depth.max()]
        new = np.unique(here[seen])
        new = new[np.isnan(rho[new])]
        rho[new] = density(new)
        share = np.where(seen, 1 / rho[here], np.inf)  # what a candidate takes of s
        count = np.cumsum(share, axis=1)
        stop, s = _stop(d, share, count, depth, alpha / C, (1 - alpha) * M)
        short = (depth < K) & (count[np.arange(M), depth - 1] < s)
        if not short.any():
            break
        depth[short] = np.minimum(2 * depth[short], K)
    stopped = bool(np.isfinite(s))
    if not stopped:  # all but the last candidate of each are full
        s = float(count[:, max(K - 2, 0)].max())
    probabilities, at_the_end = np.zeros(rows), 0.0
    for j in range(M):  # the candidates before stop are full, that at stop takes what is left
        full = share[j, : stop[j]] / (M * s) if stop[j] else np.empty(0)
        np.add.at(probabilities, here[j, : stop[j]], full)
        left = max(1 / M - full.sum(), 0.0)
        probabilities[places[j, stop[j]]] += left
        at_the_end += left if stop[j] == K - 1 else 0.0
    return Transported(probabilities / probabilities.sum(), stopped, at_the_end)


def _stop(
    d: np.ndarray, share: np.ndarray, count: np.ndarray, depth: np.ndarray, price: float, gain: float
) -> tuple[np.ndarray, float]:
    """How many candidates each target row has filled when s stops growing, int[M], and s; inf if it never stops.

    s minimises  alpha / C x (distance travelled) + (1 - alpha) / s.  At s = count[j, k] candidates 0..k of j are full and its
    mass starts to go to k + 1; M s^2 times the derivative of the distance that it travels is then

        rate[j, k] = d[j, k + 1] count[j, k] - sum_{l <= k} d[j, l] share[j, l] ,

    and s stops where  alpha / C x sum_j rate_j  reaches  (1 - alpha) M.
    """
    M, K = d.shape
    width = min(share.shape[1], K - 1)  # the last of all has no next
    known = np.arange(width) < np.minimum(depth, K - 1)[:, None]
    if not known.any():
        return np.zeros(M, dtype=np.int64), np.inf
    with np.errstate(invalid="ignore"):
        travelled = np.cumsum(np.where(known, d[:, :width] * share[:, :width], 0.0), axis=1)
        rate = np.where(known, d[:, 1 : width + 1] * count[:, :width] - travelled, 0.0)
    steps = np.diff(rate, axis=1, prepend=0.0)
    j, k = np.nonzero(known)
    order = np.lexsort((j, k, count[j, k]))
    j, k = j[order], k[order]
    over = price * np.cumsum(steps[j, k]) >= gain
    events = int(np.argmax(over)) if over.any() else len(order)
    filled = np.bincount(j[:events], minlength=M)
    return filled, float(count[j[events], k[events]]) if over.any() else np.inf
