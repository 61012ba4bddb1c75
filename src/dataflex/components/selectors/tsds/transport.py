"""The transport problem of TSDS (Liu et al., arXiv 2410.11303) and its solution by the algorithm KNN-KDE.

Target row j sends its mass 1/M to candidates i, gamma_ji to each, over the distance d_ji. Wanted is the gamma that minimises

    alpha/C  sum_ji gamma_ji d_ji  +  (1 - alpha) G_KDE(gamma)      with   sum_i gamma_ji = 1/M  for every j,
    G_KDE(gamma) = M max_ji rho_i gamma_ji      but for a constant.

rho_i is the density of candidates around i. So near-duplicates, whose rho is large, together get what one row would get.

**One unknown.** Write s for 1 / G_KDE. Then candidate i may get at most 1 / (M s rho_i) of a target row. For a given s it is
best to fill candidates from the nearest on. The larger s, the farther mass must travel, and the more evenly it lies.

**Where s stops.** Let k = 0, 1, .. count the candidates of j from the nearest on. At

    s = full_at[j, k] = sum_{l <= k} 1 / rho_jl

candidates 0 .. k of j are full, and its mass begins to go to k + 1. From there on, M s^2 times the derivative by s of the
distance that the mass of j travels is

    rate[j, k] = d[j, k + 1] full_at[j, k] - sum_{l <= k} d[j, l] / rho_jl .

It grows with k. So the objective is smallest at the first s at which  alpha/C sum_j rate_j  reaches  (1 - alpha) M.

The authors' program pops these events from a heap. Here the events of all target rows are sorted at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, Float64, Int, Int64

# Candidates of a target row whose rho is asked for at first. Mass seldom goes farther, and rho is what costs time.
_FIRST_DEPTH = 64


@dataclass(frozen=True)
class Transported:
    """What gamma comes to."""

    probabilities: Float64[np.ndarray, " rows"]
    """Mass of each candidate from all target rows; adds up to one."""
    stopped: bool
    """Whether s stopped by itself. Otherwise every candidate but the last of each target row is full."""
    at_the_end: float
    """Share of all mass that lies on the last, the farthest, candidates."""
    sender: Int64[np.ndarray, " rows"]
    """The target row that sends each candidate the most; -1: none sends it any. Among equals the first."""


def stop(
    d: Float64[np.ndarray, "M K"],
    inverse_rho: Float64[np.ndarray, "M depth"],
    full_at: Float64[np.ndarray, "M depth"],
    known: Int[np.ndarray, " M"],
    *,
    alpha: float,
    C: float,
) -> tuple[Int[np.ndarray, " M"], float]:
    """Candidates that each target row has filled when s stops, and s; inf if it never stops.

    known: candidates of each target row whose rho is known. Only their events are looked at.
    """
    M, K = d.shape
    depth = min(full_at.shape[1], K - 1)  # the last candidate of all has no next
    event = np.arange(depth) < np.minimum(known, K - 1)[:, None]
    if not event.any():
        return np.zeros(M, dtype=np.int64), np.inf
    with np.errstate(invalid="ignore"):
        travelled = np.cumsum(np.where(event, d[:, :depth] * inverse_rho[:, :depth], 0.0), axis=1)
        rate = np.where(event, d[:, 1 : depth + 1] * full_at[:, :depth] - travelled, 0.0)
    growth = np.diff(rate, axis=1, prepend=0.0)
    at = np.flatnonzero(event.T)  # by k, then by j: the order of events at the same s
    k, j = np.divmod(at, M)
    s = full_at[j, k]
    by_s = np.argsort(s, kind="stable")
    j, k = j[by_s], k[by_s]
    reached = alpha / C * np.cumsum(growth[j, k]) >= (1 - alpha) * M
    first = int(np.argmax(reached)) if reached.any() else len(reached)
    filled = np.bincount(j[:first], minlength=M)
    return filled, float(s[by_s[first]]) if reached.any() else np.inf


def transport(
    distances: Float[np.ndarray, "M K"],
    indices: Int[np.ndarray, "M K"],
    rows: int,
    density: Callable[[Int[np.ndarray, " some"]], Float64[np.ndarray, " some"]],
    *,
    alpha: float,
    C: float,
) -> Transported:
    """Solve the problem for M target rows with K candidates each.

    distances, indices: of the candidates of each target row, nearest first. rows: number of all candidates. density: rho,
    positive, at some candidates; asked only where mass can reach.
    """
    M, K = indices.shape
    d, rho = distances.astype(np.float64, copy=False), np.full(rows, np.nan)
    known = np.full(M, min(_FIRST_DEPTH, K))
    while True:
        within = np.arange(known.max()) < known[:, None]
        i = indices[:, : known.max()]
        wanted = np.zeros(rows, dtype=bool)
        wanted[i[within]] = True
        new = np.flatnonzero(wanted & np.isnan(rho))
        rho[new] = density(new)
        inverse_rho = np.where(within, 1 / rho[i], np.inf)
        full_at = np.cumsum(inverse_rho, axis=1)
        filled, s = stop(d, inverse_rho, full_at, known, alpha=alpha, C=C)
        short = (known < K) & (full_at[np.arange(M), known - 1] < s)
        if not short.any():
            break
        known[short] = np.minimum(2 * known[short], K)
    stopped = bool(np.isfinite(s))
    if not stopped:
        s = float(full_at[:, max(K - 2, 0)].max())
    gamma = inverse_rho[:, : filled.max() + 1] / (M * s)
    left, at_the_end = np.zeros(M), 0.0
    for j, n in enumerate(filled):  # the n nearest candidates are full, the next one takes what is left
        left[j] = max(1 / M - gamma[j, :n].sum(), 0.0)
        at_the_end += left[j] if n == K - 1 else 0.0
    gamma = np.pad(gamma, ((0, 0), (0, max(filled.max() + 1 - gamma.shape[1], 0))))
    gamma[np.arange(M), filled] = left
    senders, k = np.nonzero(np.arange(gamma.shape[1]) <= filled[:, None])
    i, sent = indices[senders, k], gamma[senders, k]
    probabilities = np.bincount(i, weights=sent, minlength=rows)
    most, sender = np.zeros(rows), np.full(rows, -1)
    np.maximum.at(most, i, sent)
    is_most = np.flatnonzero((sent == most[i]) & (sent > 0))[::-1]  # so that the first of equals is written last
    sender[i[is_most]] = senders[is_most]
    return Transported(probabilities / probabilities.sum(), stopped, at_the_end, sender)
