"""Lists of similar rows, and which of them can be near one another: what lets a density leave out most pairs of rows.

This is approximate: on 5,000 to 100,000 rows the distribution of TSDS is within 1e-3 (total variation) of that with all
pairs. It pays: 100,000 rows and 200 targets took 5 s, with all pairs 88 s (data of benchmarks/tsds/selection.py, 2026-11, one
core of an Intel Xeon).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float32, Int

# Rows compared with all centres at once: with 500 centres the products take 16 MB.
_ROWS_AT_ONCE = 8192
# Sampled rows compared with all others at once.
_PAIRS_AT_ONCE = 1024
# K-means: rows that it sees for each centre, and rounds. Rough centres will do, since near lists are found afterwards.
_ROWS_PER_CENTRE, _ROUNDS = 64, 8
# Rows of each list that stand for it where two lists are compared; all pairs of them are one matrix product.
_SAMPLED_ROWS = 32
# By how much an inner product of sampled rows may miss the edge of the kernel: other rows of their lists are nearer.
_MARGIN = 0.1
# Share of a list's rows that are its outermost. A row of another list that is nearer to the centre could as well be here.
_OUTERMOST = 0.05


@dataclass(frozen=True)
class Lists:
    """Rows cut into lists."""

    owner: Int[np.ndarray, " rows"]
    """List of each row."""
    near: list[Int[np.ndarray, " lists"]]
    """Of each list, the lists with rows that can be within sigma of its own, itself among them; ascending."""

    @classmethod
    def one(cls, rows: int) -> Lists:
        return cls(np.zeros(rows, dtype=np.int64), [np.zeros(1, dtype=np.int64)])

    @classmethod
    def of_similar(cls, rows: Float32[np.ndarray, "rows dims"], sigma: float) -> Lists:
        """sqrt(rows) / 2 lists, as many as the authors' index has. Rows have length one; a list may be empty."""
        centres = _centres(rows, int(sqrt(len(rows)) / 2))
        owner = np.concatenate([(part @ centres.T).argmax(dim=1).numpy() for part in _parts(rows)])
        edge_of_kernel = 1 - sigma**2 / 2
        close = _near_by_centres(rows, owner, centres)
        close |= _near_by_samples(rows, owner, len(centres), edge_of_kernel - _MARGIN)
        near = (close | close.T).fill_diagonal_(True)
        return cls(owner, [np.flatnonzero(line) for line in near.numpy()])


def _parts(rows: Float32[np.ndarray, "rows dims"]) -> Iterator[Float32[Tensor, "part dims"]]:
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        yield torch.from_numpy(rows[start : start + _ROWS_AT_ONCE])


def _centres(rows: Float32[np.ndarray, "rows dims"], count: int) -> Float32[Tensor, "lists dims"]:
    """Spherical k-means on some of the rows. That of scikit-learn is Euclidean: its centres do not have length one."""
    size = min(len(rows), _ROWS_PER_CENTRE * count)
    some = torch.from_numpy(rows[np.random.default_rng(0).choice(len(rows), size=size, replace=False)])
    centres = some[:count]
    for _ in range(_ROUNDS):
        owner = (some @ centres.T).argmax(dim=1)
        sums = torch.zeros_like(centres).index_add_(0, owner, some)
        norms = sums.norm(dim=1, keepdim=True)
        centres = torch.where(norms > 0, sums / norms, centres)
    return centres


def _near_by_centres(
    rows: Float32[np.ndarray, "rows dims"], owner: Int[np.ndarray, " rows"], centres: Float32[Tensor, "lists dims"]
) -> Bool[Tensor, "lists lists"]:
    """[a, b]: a row of list a is as near to the centre of b as the outermost rows of b are. K-means put it apart from its
    neighbours."""
    owners = torch.from_numpy(owner).split(_ROWS_AT_ONCE)
    own = torch.cat([(part * centres[of]).sum(dim=1) for part, of in zip(_parts(rows), owners)])
    outermost = torch.full((len(centres),), 2.0)  # an empty list has no row, and no inner product is 2
    for b in np.unique(owner):
        outermost[b] = torch.quantile(own[np.flatnonzero(owner == b)], _OUTERMOST)
    count = torch.zeros(len(centres), len(centres))
    for part, of in zip(_parts(rows), owners):
        count.index_add_(0, of, (part @ centres.T >= outermost).float())
    return count > 0


def _near_by_samples(
    rows: Float32[np.ndarray, "rows dims"], owner: Int[np.ndarray, " rows"], lists: int, least: float
) -> Bool[Tensor, "lists lists"]:
    """[a, b]: a sampled row of list a has an inner product of at least `least` with one of list b."""
    rng, sampled = np.random.default_rng(1), []
    for a in range(lists):
        members = np.flatnonzero(owner == a)
        sampled.append(rng.choice(members, size=min(_SAMPLED_ROWS, len(members)), replace=False))
    indices = np.concatenate(sampled)
    sample, of = torch.from_numpy(rows[indices]), torch.from_numpy(owner[indices])
    near = torch.zeros(lists, lists, dtype=torch.bool)
    for start in range(0, len(sample), _PAIRS_AT_ONCE):
        a, b = torch.nonzero(sample[start : start + _PAIRS_AT_ONCE] @ sample.T >= least).T
        near[of[a + start], of[b]] = True
    return near
