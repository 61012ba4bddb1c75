"""The domain of each position in a stage whose proportions are shares of tokens.

This is worst-case fair weighted fair queueing (WF2Q: J. C. R. Bennett and H. Zhang, "WF2Q: worst-case fair weighted
fair queueing", INFOCOM 1996). Domains are its flows, rows its packets, and tokens its time. With T tokens served and a
remainder c_d, domain d has been asked for a_d(T) = c_d + p_d T tokens. Its i-th row occupies [S_d(i), S_d(i + 1)) of
its own tokens. The row is admissible once a_d(T) >= S_d(i). Of the admissible rows, the row whose last token is asked
for first is next (ties: the first domain). With L the longest row, at every position

    -(1 - p_d) L <= a_d(T) - realized_d(T) <= L.

The lower bound holds by the first rule. A change of proportions can leave a domain further ahead, by at most L; it then
waits. The upper bound holds if, for every T, the rows asked for in full by T hold at most T + L tokens. If this
condition holds at the start of a stage, it holds at every position of it. A change of proportions can break it.
`honoured` finds that out by following the order, and then the remainders are shrunk. docs/proofs.md has the proofs.

All arithmetic is on integers (units of 1 / SCALE of a token).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from .quota import _MARK, HORIZON, SCALE, Quota, with_room

_READ = 512  # rows of a domain whose lengths are looked up at once
_LOOK = 64  # positions between two looks at whether the bound is safe from there on
# Two fractions with denominators up to SCALE that differ do so by at least 1 / SCALE^2: scaled by that and rounded down, they
# compare as they are.
_EXACT = 2 * (SCALE.bit_length() - 1)


class TokenQuota(Quota):
    """The domain sequence of one stage, computed forwards and kept (one int32 and one int64 per position).

    Args:
        lengths: (d, first, count) -> tokens, at least one each, of `count` rows that the stage serves of domain d, from
            row `first` on.
        begun: As that of `Quota`, with the tokens of each domain in these positions.
    """

    def __init__(
        self,
        parts: Sequence[int],
        carry: Sequence[int],
        lengths: Callable[[int, int, int], np.ndarray],
        begun: tuple[int, Sequence[int], Sequence[int]] | None = None,
    ) -> None:
        first, served, tokens = begun or (0, [0] * len(parts), [0] * len(parts))
        self._streams = [self._stream(lengths, d, n) for d, n in enumerate(served)]
        self._head = [0] * len(parts)  # tokens of the next row of each domain
        self._work = list(tokens)  # tokens served of each domain
        self._work_marks = [self._work.copy()]
        self._before = self._total = sum(tokens)  # at the first position, and by now
        self._ends = np.empty(0, dtype=np.int64)  # tokens served in all, after each position
        super().__init__(parts, carry, (first, served))

    @staticmethod
    def _stream(lengths: Callable[[int, int, int], np.ndarray], d: int, first: int) -> Iterator[int]:
        while True:
            yield from lengths(d, first, _READ).tolist()
            first += _READ

    def _announce(self, d: int) -> None:
        """Queue the next row of domain d by the tokens after which it may come, and those by which it is asked for in full."""
        self._head[d] = length = next(self._streams[d])
        owed, part = self._work[d] * SCALE - self.carry[d], self.parts[d]
        finish = (owed + length * SCALE << _EXACT) // part
        release = -(-owed // part)
        if release <= self._total:
            heapq.heappush(self._ready, (finish, d))
        else:
            heapq.heappush(self._waiting, (release, finish, d))

    def extend(self, length: int) -> None:
        if length <= self._length:
            return
        used, wanted = self._length - self._first, length - self._first
        self._sequence = with_room(self._sequence, used, wanted)
        self._ends = with_room(self._ends, used, wanted)
        waiting, ready = self._waiting, self._ready
        for index in range(used, wanted):
            while waiting and waiting[0][0] <= self._total:
                _, finish, d = heapq.heappop(waiting)
                heapq.heappush(ready, (finish, d))
            _, d = heapq.heappop(ready)
            self._total += self._head[d]
            self._work[d] += self._head[d]
            self._served[d] += 1
            self._sequence[index], self._ends[index] = d, self._total
            self._announce(d)
            if not (index + 1) % _MARK:
                self._marks.append(self._served.copy())
                self._work_marks.append(self._work.copy())
        self._length = length

    def soonest(self) -> int:
        """After how many tokens, rounded down, the first of the rows that are next is asked for in full."""
        heads = [finish for finish, _ in self._ready] + [finish for _, finish, _ in self._waiting]
        return min(heads) >> _EXACT

    def ends(self, start: int, stop: int) -> Iterable[tuple[int, int]]:
        """Of each position in [start, stop), its domain and the tokens served in all when it is."""
        domains = self.domains(start, stop).tolist()
        return zip(domains, self._ends[start - self._first : stop - self._first].tolist(), strict=True)

    def tokens(self, length: int) -> list[int]:
        """Tokens of each domain among the first `length` positions."""
        mark, since = self._since_mark(length)
        before = self._ends[since.start - 1] if since.start else self._before
        each = np.diff(self._ends[since], prepend=before)
        more = np.bincount(self._sequence[since], weights=each, minlength=len(self.parts))  # exact below 2^53
        return [n + int(m) for n, m in zip(self._work_marks[mark], more, strict=True)]

    def remainder(self, length: int) -> list[int]:
        """What each domain is owed after `length` positions (negative: was served ahead), in units of 1 / SCALE of a token."""
        served = self.tokens(length)
        total = sum(served)
        return [c + p * total - n * SCALE for c, p, n in zip(self.carry, self.parts, served, strict=True)]


def honoured(
    carry: Sequence[int], parts: Sequence[int], lengths: Callable[[int, int, int], np.ndarray], longest: int
) -> bool:
    """Whether no domain is ever owed, or ahead by, more than `longest` tokens with these remainders.

    HORIZON positions are looked at. A domain is owed the most right before it is served. At some time all next rows are
    asked for in full. If domains are then ahead by at most `longest` in sum, the condition of the module holds for all
    later rows.
    """
    bound = longest * SCALE
    if any(abs(c) > bound for c in carry):
        return False
    quota, work, total = TokenQuota(parts, carry, lengths), [0] * len(parts), 0
    for begin in range(0, HORIZON, _LOOK):
        soonest = max(quota.soonest(), 0)
        if sum(max(-c - p * soonest, 0) for c, p in zip(carry, parts, strict=True)) <= bound:
            return True
        for d, end in quota.ends(begin, begin + _LOOK):
            if carry[d] + parts[d] * total - work[d] * SCALE > bound:
                return False
            work[d] += end - total
            total = end
    return True
