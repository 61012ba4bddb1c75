"""Counter-based randomness: every number is a function of its key, none of a hidden state.

Permutations do not depend on a library's own random streams, so an order written today is the order read by any later
version. `generator`, for decisions made once and then stored, is numpy's.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31 = np.uint64(30), np.uint64(27), np.uint64(31)

# Below this many rows a permutation is the argsort of hashes (better mixed than a very small Feistel network, and
# cheap); above it, a Feistel network needs no memory at all.
_SORTED_LIMIT = 1 << 16
_ROUNDS = 8


def mix64(x: np.ndarray | int) -> np.ndarray:
    """The splitmix64 finaliser (Steele et al., 2014): a bijection on uint64 that scatters every input bit."""
    with np.errstate(over="ignore"):  # of numbers; arrays wrap around without a word
        return _mixed(np.asarray(x, dtype=np.uint64))


def _mixed(x: np.ndarray) -> np.ndarray:
    """`mix64` of an array uint64."""
    z = x + _GOLDEN
    z ^= z >> _S30
    z *= _M1
    z ^= z >> _S27
    z *= _M2
    z ^= z >> _S31
    return z


def derive_key(*parts: int) -> int:
    """One 64-bit key from a sequence of integers; the order of the parts counts."""
    key: np.ndarray = np.asarray(0, dtype=np.uint64)
    for part in parts:
        key = mix64(key ^ mix64(part & 0xFFFFFFFFFFFFFFFF))
    return int(key)


class Purpose(IntEnum):
    """What random numbers are for. As a part of their key it keeps the numbers of one purpose apart from all others. The plan's
    own permutations have none. The values never change: runs in progress were begun with them."""

    STREAM_ORDER = 0x57E4
    """The order of samples in a block of a stream."""
    MIXING = 0x3173
    """Decisions of mixers."""
    SELECTING = 0x5E1EC7
    """Decisions of selectors while a run trains, or before it with the model."""
    SELECTING_TEXTS = 0x0FF11E
    """Decisions of selectors without a model."""
    ORDERING = 0x0DDE12
    """Orders of pools: draws of rows, and shuffled parts of a shape."""
    MEASURED_ROWS = 0x7A46E7
    """Which rows a signal is measured on."""


def generator(*parts: int) -> np.random.Generator:
    """A fresh Philox generator for one decision, keyed by `parts`."""
    return np.random.Generator(np.random.Philox(key=derive_key(*parts)))


class Permutation:
    """A pseudo-random permutation of range(n) that is evaluated point by point.

    A balanced Feistel network over the smallest even number of bits that covers n, with cycle walking: values outside
    range(n) pass through again. At most four times n values are covered. So a point costs under four walks on average,
    and no memory. n <= 65536 uses a table of n entries.
    """

    def __init__(self, n: int, key: int) -> None:
        if n < 1:
            raise ValueError(f"a permutation needs at least one element, got {n}")
        self.n = n
        self._table: np.ndarray | None = None
        if n <= _SORTED_LIMIT:
            hashes = mix64(np.uint64(key) ^ mix64(np.arange(n, dtype=np.uint64)))
            self._table = np.argsort(hashes, kind="stable").astype(np.int64)
            return
        half = -(-int(n - 1).bit_length() // 2)
        self._half = np.uint64(half)
        self._mask = np.uint64((1 << half) - 1)
        self._round_keys = [np.uint64(derive_key(key, r)) for r in range(_ROUNDS)]

    def _feistel(self, x: np.ndarray) -> np.ndarray:
        left, right = x >> self._half, x & self._mask
        for round_key in self._round_keys:
            left, right = right, left ^ (_mixed(right ^ round_key) & self._mask)
        return (left << self._half) | right

    def __call__(self, index: np.ndarray) -> np.ndarray:
        """Map positions (int array, each in [0, n)) to elements (int64 array of the same shape)."""
        index = np.asarray(index, dtype=np.int64)
        if self._table is not None:
            return self._table[index]
        value = self._feistel(index.ravel().astype(np.uint64))
        outside = np.flatnonzero(value >= self.n)
        while outside.size:
            value[outside] = self._feistel(value[outside])
            outside = outside[value[outside] >= self.n]
        return value.astype(np.int64).reshape(index.shape)
