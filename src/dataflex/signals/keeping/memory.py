"""Where the values of rows go while they are measured."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class SignalCache(Protocol):
    """Takes the values of rows, piece by piece; some may be there from a measurement that was cut off. Every rank calls it with
    the same values."""

    missing: np.ndarray
    """bool [N]: which rows are still to be measured."""

    def put(self, indices: np.ndarray, values: np.ndarray) -> None:
        """values: of the rows at `indices`, ascending."""

    def values(self) -> np.ndarray:
        """Of all rows, once none is missing."""


class MemoryCache:
    """Keeps values in memory.

    Args:
        count: Rows in all.
    """

    def __init__(self, count: int) -> None:
        self.missing = np.ones(count, dtype=bool)
        self._out: np.ndarray | None = None

    def put(self, indices: np.ndarray, values: np.ndarray) -> None:
        if len(indices) == len(self.missing):
            self._out = values
        else:
            if self._out is None:
                self._out = np.empty((len(self.missing), *values.shape[1:]), values.dtype)
            self._out[indices] = values
        self.missing[indices] = False

    def values(self) -> np.ndarray:
        return np.empty(0) if self._out is None else self._out
