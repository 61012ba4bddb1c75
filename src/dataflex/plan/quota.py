"""The domain of each position in a stage, so that no domain is ever a whole sample from its share.

This is the chairman assignment problem (R. Tijdeman, "The chairman assignment problem", Discrete Mathematics 32, 1980):
k domains with proportions p_d, one served per position. The deviation from p_d * positions is bounded at *every*
position. We solve it as unit jobs with releases and deadlines. The i-th sample of a domain may come once the domain is
owed something. It must come before the domain is owed a whole sample. The earliest deadline is first.

Let c_d be the remainder from the stage before. Then a_d(j) = c_d + p_d * j samples are asked for in the first j
positions. The bound is |realized_d(j) - a_d(j)| < 1. An order exists if and only if, for every j,

    sum_d max(0, floor(a_d(j))) <= j

Unchanged proportions always pass. A change of many proportions at once can fail; `normalise_carry` then shrinks the
remainders until it passes. docs/proofs.md has the proofs.

All arithmetic is on integers (units of 1 / SCALE of a sample), so no position depends on rounding.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

import numpy as np

SCALE = 1 << 40  # proportions are exact multiples of 2**-40
HORIZON = 1 << 20  # positions a stage may last; p * j stays within 64 bits
_BLOCK = 256
_MARK = 4096  # positions between two that the counts are kept of


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


def normalise_carry(
    carry: Sequence[int], parts: Sequence[int], honours: Callable[[list[int]], bool] | None = None
) -> list[int]:
    """The remainders a stage can honour: as they are where possible, zero for domains it does not draw from; sum zero.

    What a domain leaves behind when it is switched off is shared by the others in proportion. honours: whether there is an
    order for given remainders (default: `feasible`, in samples).
    """
    kept = [c if p else 0 for c, p in zip(carry, parts, strict=True)]
    left_over = sum(kept)
    kept = [c - left_over * p // SCALE for c, p in zip(kept, parts, strict=True)]
    largest = max(range(len(kept)), key=lambda d: (parts[d], -d))  # takes the few units lost in divisions
    kept[largest] -= sum(kept)
    while not (feasible(kept, parts) if honours is None else honours(kept)):
        kept = [c * 3 // 4 if c > 0 else -(-c * 3 // 4) for c in kept]
        kept[largest] -= sum(kept)
    return kept


def feasible(carry: Sequence[int], parts: Sequence[int]) -> bool:
    """Whether an order exists that stays under one sample from carry + p j at each of the next HORIZON positions j."""
    c, p = np.asarray(carry, dtype=np.int64), np.asarray(parts, dtype=np.int64)
    if (np.abs(c) >= SCALE).any():
        return False
    for start in range(0, HORIZON, _BLOCK):
        j = np.arange(start + 1, start + 1 + _BLOCK, dtype=np.int64)
        asked = c + p * j[:, None]
        if (np.maximum(asked // SCALE, 0).sum(axis=1) > j).any():
            return False
        if -np.minimum(asked[-1], 0).sum() < SCALE:
            return True
    return True


class Quota:
    """The domain sequence of one stage, computed forwards and kept (one int32 per position).

    Attributes:
        parts: Integers from `quantise`, k in all.
        carry: Integers from `normalise_carry`, k in all.

    Args:
        begun: Positions served before, and the count of each domain in them. The sequence then starts there, and
            earlier positions are unknown.
    """

    def __init__(
        self, parts: Sequence[int], carry: Sequence[int], begun: tuple[int, Sequence[int]] | None = None
    ) -> None:
        self.parts, self.carry = list(parts), list(carry)
        self._first, served = begun or (0, [0] * len(self.parts))
        self._served = list(served)
        self._marks = [self._served.copy()]  # at the first position, and every _MARK positions on
        self._sequence = np.empty(0, dtype=np.int32)
        self._length = self._first
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
        self._sequence = with_room(self._sequence, self._length - self._first, length - self._first)
        waiting, ready = self._waiting, self._ready
        for index in range(self._length - self._first, length - self._first):
            while waiting and waiting[0][0] <= self._first + index + 1:
                _, deadline, d = heapq.heappop(waiting)
                heapq.heappush(ready, (deadline, d))
            _, d = heapq.heappop(ready)
            self._sequence[index] = d
            self._served[d] += 1
            self._announce(d)
            if not (index + 1) % _MARK:
                self._marks.append(self._served.copy())
        self._length = length

    def domains(self, start: int, stop: int) -> np.ndarray:
        """Domain of each position in [start, stop) of the stage, int32."""
        if start < self._first:
            raise IndexError(f"the sequence is known from position {self._first} on")
        self.extend(stop)
        return self._sequence[start - self._first : stop - self._first]

    def _since_mark(self, length: int) -> tuple[int, slice]:
        """The last mark up to `length` positions, and the indices between the two."""
        if length < self._first:
            raise IndexError(f"the sequence is known from position {self._first} on")
        self.extend(length)
        mark = (length - self._first) // _MARK
        return mark, slice(mark * _MARK, length - self._first)

    def counts(self, length: int) -> np.ndarray:
        """Samples of each domain among the first `length` positions, int64[k]."""
        mark, since = self._since_mark(length)
        return np.asarray(self._marks[mark]) + np.bincount(self._sequence[since], minlength=len(self.parts))

    def reach(self, d: int, count: int, length: int) -> int | None:
        """After how many positions domain d has been served `count` times; None if that is beyond `length`."""
        missing = count - self._marks[0][d]
        if missing < 1:
            raise IndexError(f"the sequence is known from position {self._first} on")
        indices = np.flatnonzero(self.domains(self._first, length) == d)
        return self._first + int(indices[missing - 1]) + 1 if len(indices) >= missing else None

    def remainder(self, length: int) -> list[int]:
        """What each domain is owed after `length` positions (negative: was served ahead), in units of 1 / SCALE."""
        counts = self.counts(length)
        return [c + p * length - int(n) * SCALE for c, p, n in zip(self.carry, self.parts, counts, strict=True)]


def with_room(values: np.ndarray, used: int, length: int) -> np.ndarray:
    """An array of at least `length` entries that begins with the `used` ones there are."""
    if length <= values.size:
        return values
    grown = np.empty(max(length, 2 * values.size, 1024), dtype=values.dtype)
    grown[:used] = values[:used]
    return grown
