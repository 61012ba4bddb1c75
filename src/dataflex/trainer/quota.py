"""Which domain comes at each position of a stage, so that no domain is ever a whole sample from its share.

This is the chairman assignment problem (R. Tijdeman, "The chairman assignment problem", Discrete Mathematics 32, 1980):
k domains with proportions p_d, one served per position, deviation from p_d * positions bounded at *every* position. We
solve it as unit jobs with release times and deadlines, earliest deadline first: the i-th sample of domain d may come
once the domain is owed something and must come before it is owed a whole sample.

With a remainder c_d carried in from the stage before, the samples asked for in the first j positions are
a_d(j) = c_d + p_d * j, and the bound is |realized_d(j) - a_d(j)| < 1. Earliest deadline first meets it whenever a
feasible order exists, and one does as long as the positive remainders add up to at most one sample: the jobs due by j
are at most sum_d ceil(a_d(j) - 1) over some domains, below sum(c+) + j <= 1 + j, hence at most j. `normalise_carry`
enforces that condition; with up to three domains it holds by itself.

All arithmetic is on integers (units of 1 / SCALE of a sample), so no position depends on rounding.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

SCALE = 1 << 40  # proportions are exact multiples of 2**-40


def quantise(proportions: Sequence[float]) -> list[int]:
    """Proportions (non-negative, any positive sum) as integers that add up to SCALE exactly (largest remainder)."""
    p = np.asarray(proportions, dtype=np.float64)
    if p.ndim != 1 or p.size == 0 or not np.isfinite(p).all() or (p < 0).any() or p.sum() <= 0:
        raise ValueError(f"proportions must be finite, non-negative and not all zero, got {list(proportions)}")
    exact = p / p.sum() * SCALE
    parts = [int(x) for x in np.floor(exact)]
    order = sorted(range(len(parts)), key=lambda d: (parts[d] - float(exact[d]), d))
    order = [d for d in order if p[d] > 0]
    missing = SCALE - sum(parts)
    for i in range(abs(missing)):
        parts[order[i % len(order)]] += 1 if missing > 0 else -1
    return parts


def normalise_carry(carry: Sequence[int], parts: Sequence[int]) -> list[int]:
    """The remainders a stage can honour: zero for domains it does not draw from, positive ones adding up to <= one sample.

    What a domain leaves behind when it is switched off is shared by the others in proportion, so the sum stays zero.
    """
    kept = [c if p else 0 for c, p in zip(carry, parts, strict=True)]
    left_over = sum(kept)
    kept = [c - left_over * p // SCALE for c, p in zip(kept, parts, strict=True)]
    owed = sum(c for c in kept if c > 0)
    if owed > SCALE:
        kept = [int(c * SCALE // owed) if c > 0 else -int(-c * SCALE // owed) for c in kept]
    drift = sum(kept)  # a few units of 2**-40 from the divisions above
    largest = max(range(len(kept)), key=lambda d: (parts[d], -d))
    kept[largest] -= drift
    return kept


class Quota:
    """The domain sequence of one stage, computed forwards and kept (one int32 per position).

    parts: integers from `quantise`; carry: integers from `normalise_carry`, both of length k.
    """

    def __init__(self, parts: Sequence[int], carry: Sequence[int]) -> None:
        self.parts, self.carry = list(parts), list(carry)
        self._served = [0] * len(self.parts)
        self._sequence = np.empty(0, dtype=np.int32)
        self._length = 0
        self._waiting: list[tuple[int, int, int]] = []  # (release, deadline, domain)
        self._ready: list[tuple[int, int]] = []  # (deadline, domain)
        for d, part in enumerate(self.parts):
            if part:
                self._announce(d)

    def _announce(self, d: int) -> None:
        """Queue the next sample of domain d by its first and last admissible position (counted from 1)."""
        owed = self._served[d] * SCALE - self.carry[d]
        release = owed // self.parts[d] + 1  # first j with c + p j > served
        deadline = -(-(owed + SCALE) // self.parts[d])  # first j with c + p j >= served + 1
        heapq.heappush(self._waiting, (max(release, 1), deadline, d))

    def extend(self, length: int) -> None:
        """Compute the sequence up to `length` positions."""
        if length <= self._length:
            return
        if length > self._sequence.size:
            grown = np.empty(max(length, 2 * self._sequence.size, 1024), dtype=np.int32)
            grown[: self._length] = self._sequence[: self._length]
            self._sequence = grown
        waiting, ready = self._waiting, self._ready
        for j in range(self._length + 1, length + 1):
            while waiting and waiting[0][0] <= j:
                _, deadline, d = heapq.heappop(waiting)
                heapq.heappush(ready, (deadline, d))
            _, d = heapq.heappop(ready)
            self._sequence[j - 1] = d
            self._served[d] += 1
            self._announce(d)
        self._length = length

    def domains(self, start: int, stop: int) -> np.ndarray:
        """Domain of each position in [start, stop) of the stage, int32."""
        self.extend(stop)
        return self._sequence[start:stop]

    def counts(self, length: int) -> np.ndarray:
        """Samples of each domain among the first `length` positions, int64[k]."""
        self.extend(length)
        return np.bincount(self._sequence[:length], minlength=len(self.parts)).astype(np.int64)

    def remainder(self, length: int) -> list[int]:
        """What each domain is owed after `length` positions (negative: was served ahead), in units of 1 / SCALE."""
        counts = self.counts(length)
        return [c + p * length - int(n) * SCALE for c, p, n in zip(self.carry, self.parts, counts, strict=True)]
