"""The order in which the rows of a pool are served, where a run asks for one: a shape, laid over its epochs.

An *epoch* serves every row of a pool once. A *shape* says which rank is served at each position of an epoch; ranks count from 0,
the row that the order puts first. The last epoch may be cut off by the end of the run. The rows of an epoch that is cut off are a
uniform draw, and the whole shape is laid over them. So the curve of every epoch is the configured one, from end to end.

Rows may be ranked anew within an epoch. Rows that were served keep their place. Of the positions that are left, the one with the
k-th smallest rank in the shape gets the row with the k-th smallest new rank. So the shape stays, whatever the scores become.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .permutation import Permutation, derive_key, mix64

Shuffled = Callable[[int, int], np.ndarray]
"""(n, number) -> a permutation of range(n), int64[n]; another one for each number."""

_DRAW, _WINDOW, _SHAPE = range(3)  # what a permutation is for


@dataclass(frozen=True)
class Shape:
    """What is laid over each epoch.

    Args:
        ranks: (rows, shuffled) -> the rank at each position, a permutation of range(rows), int64[rows].
        window: Rows of a block; within blocks, positions are shuffled. 0 and 1: none are.
    """

    ranks: Callable[[int, Shuffled], np.ndarray]
    window: int = 0

    def over(self, rows: int, key: int) -> np.ndarray:
        """The rank at each of `rows` positions, int64[rows]. key: of all that is random in it."""
        found = self.ranks(rows, lambda count, number: _shuffled(count, key, _SHAPE, number))
        if self.window <= 1:
            return found
        window, whole = min(self.window, rows), rows - rows % min(self.window, rows)
        hashes = _hashes(rows, key, _WINDOW)
        within = np.argsort(hashes[:whole].reshape(-1, window), axis=1, kind="stable")
        blocks = (within + np.arange(0, whole, window)[:, None]).ravel()
        return found[np.concatenate([blocks, whole + np.argsort(hashes[whole:], kind="stable")])]


@dataclass(frozen=True, eq=False)
class Course:
    """The order of a pool of n rows, which are named by their places in the pool. Draws count from the pool's first one."""

    ranked: np.ndarray
    """The rows by rank, int64[n]."""
    begin: int = 0
    """The draw that the shape begins with."""
    since: int = 0
    """The draw from which this ranking holds."""
    end: int = 0
    """Draws until the run, or the pool, ends."""
    served: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """The rows that were served before `since` in its epoch, in their order, int64[since % n]."""

    def of_epoch(self, number: int, shape: Shape, key: int) -> np.ndarray:
        """The rows of an epoch in the order in which they are served, int64[n]. Epochs before that of `since` are not known.

        key: of all that is random in this epoch.
        """
        n = len(self.ranked)
        first = max(self.begin - number * n, 0)  # position of the epoch at which the shape begins
        served = self.served if number == self.since // n else self.served[:0]
        length = min(n, self.end - number * n)
        if length <= len(served):  # beyond the end
            length = n
        left = np.ones(n, dtype=bool)
        left[served] = False
        later = self._cut_off(left, n - length, key)
        left[later] = False
        pieces = [served, self._arranged(left, shape.over(length - first, key)[len(served) - first :])]
        if len(later):
            rest = np.zeros(n, dtype=bool)
            rest[later] = True
            pieces.append(self._arranged(rest, shape.over(len(later), key)))
        return np.concatenate(pieces)

    def _arranged(self, rows: np.ndarray, ranks: np.ndarray) -> np.ndarray:
        """rows: which of the pool, bool[n]. ranks: as many different numbers."""
        present = np.zeros(ranks.max(initial=-1) + 1, dtype=bool)
        present[ranks] = True
        return self.ranked[rows[self.ranked]][(np.cumsum(present) - 1)[ranks]]

    @staticmethod
    def _cut_off(left: np.ndarray, count: int, key: int) -> np.ndarray:
        """`count` rows of those left, int64[count]. The draw depends on the epoch alone, so it stays while the epoch goes on."""
        if not count:
            return np.empty(0, dtype=np.int64)
        rows = np.flatnonzero(left)
        return rows[np.argpartition(_hashes(len(left), key, _DRAW)[rows], len(rows) - count)[len(rows) - count :]]

    def to_json(self) -> dict[str, Any]:
        """Everything but `ranked` and `served`."""
        return {"begin": self.begin, "since": self.since, "end": self.end}

    def moved(self, ranked: np.ndarray, since: int, end: int, served: np.ndarray) -> Course:
        """The same shape with another ranking from a later draw on."""
        return replace(self, ranked=ranked, since=since, end=end, served=served)


def _hashes(count: int, *key: int) -> np.ndarray:
    """Random numbers, all different, uint64[count]."""
    return mix64(np.uint64(derive_key(*key)) ^ mix64(np.arange(count, dtype=np.uint64)))


def _shuffled(count: int, *key: int) -> np.ndarray:
    return Permutation(count, derive_key(*key))(np.arange(count)) if count else np.empty(0, dtype=np.int64)
