"""How many rows lie around a row: a kernel density with bounded support, on the unit sphere."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt

import numpy as np
import torch

# Up to so many rows all pairs are looked at; rows of one matrix product, with rows and with centres.
_ALL_PAIRS = 2048
_ROWS, _PART = 1024, 8192
# Rows sampled from each list to see whether two lists have neighbours in one another, and how near (as an inner product)
# the nearest of the sampled pairs must come to the edge of the kernel.
_SAMPLE, _MARGIN = 32, 0.1
# Rounds of k-means; the share of a list's rows that are farther from its centre than what counts as near it.
_ROUNDS, _EDGE = 8, 0.05


class Density:
    """rho(x) = sum over the `most` nearest rows y of x, itself among them, of max(0, 1 - |x - y|^2 / sigma^2).

    rows: float32 [R, d] of length one. The kernel ends at sigma, so only where more than `most` rows are nearer than that
    need the nearest be told from the others, and rows that are far apart need not be compared: beyond a few thousand rows
    they are cut into lists of similar ones, and lists whose samples are well apart are not compared (`exact`: all are).
    """

    def __init__(self, rows: np.ndarray, sigma: float, most: int, *, exact: bool = False) -> None:
        self.sigma, self.most = sigma, most
        if exact or len(rows) <= _ALL_PAIRS:
            owner, self.near = np.zeros(len(rows), dtype=np.int64), [np.zeros(1, dtype=np.int64)]
        else:
            owner, centres = _lists(rows)
            self.near = _near_lists(rows, owner, centres, 1 - sigma**2 / 2 - _MARGIN)
        order = np.argsort(owner, kind="stable")
        self.rows = torch.from_numpy(np.ascontiguousarray(rows[order]))
        self.place = np.empty_like(order)
        self.place[order] = np.arange(len(order))
        self.ends = np.cumsum(np.bincount(owner, minlength=len(self.near)))

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """rho of rows[places], float64."""
        out, where = np.empty(len(places)), self.place[places]
        owner = np.searchsorted(self.ends, where, side="right")
        for a in np.unique(owner):
            mine = np.flatnonzero(owner == a)
            others = self._rows_of(self.near[a])
            for start in range(0, len(mine), _ROWS):
                part = mine[start : start + _ROWS]
                out[part] = self._sums(self.rows[where[part]], others)
        return out

    def _rows_of(self, lists: np.ndarray) -> torch.Tensor:
        starts = np.concatenate([[0], self.ends])
        if lists[-1] - lists[0] + 1 == len(lists):  # they lie side by side
            return self.rows[starts[lists[0]] : starts[lists[-1] + 1]]
        return torch.cat([self.rows[starts[b] : starts[b + 1]] for b in lists])

    def _sums(self, x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
        kernel = (x @ y.T).mul_(2 / self.sigma**2).add_(1 - 2 / self.sigma**2).clamp_(min=0)
        sums = kernel.sum(dim=1)
        if self.most < len(y):
            crowded = kernel.sign().sum(dim=1) > self.most
            if crowded.any():
                sums[crowded] = torch.topk(kernel[crowded], self.most, dim=1, sorted=False).values.sum(dim=1)
        return sums.double().numpy()


def _lists(rows: np.ndarray) -> tuple[np.ndarray, torch.Tensor]:
    """List of each row, int64 [R], and centre of each list, float32 [L, d]: spherical k-means on some of the rows, sqrt(R) / 2
    lists; an empty one may occur."""
    count = int(sqrt(len(rows)) / 2)
    some = torch.from_numpy(
        rows[np.random.default_rng(0).choice(len(rows), size=min(len(rows), 64 * count), replace=False)]
    )
    centres = some[:count]
    for _ in range(_ROUNDS):
        owner = (some @ centres.T).argmax(dim=1)
        sums = torch.zeros_like(centres).index_add_(0, owner, some)
        norms = sums.norm(dim=1, keepdim=True)
        centres = torch.where(norms > 0, sums / norms, centres)
    return torch.cat([(part @ centres.T).argmax(dim=1) for part in _parts(rows)]).numpy(), centres


def _parts(rows: np.ndarray) -> Iterator[torch.Tensor]:
    for start in range(0, len(rows), _PART):
        yield torch.from_numpy(rows[start : start + _PART])


def _near_lists(rows: np.ndarray, owner: np.ndarray, centres: torch.Tensor, least: float) -> list[np.ndarray]:
    """For each list the lists it is compared with: those with a sampled pair whose inner product is at least `least`, and
    those whose centre is as near to a row of it as to a few of their own (a row that k-means put apart from its neighbours).
    """
    count, lists = len(centres), torch.from_numpy(owner)
    rng, sampled, of = np.random.default_rng(1), [], []
    own = torch.cat(
        [(part * centres[lists[i * _PART :][: len(part)]]).sum(dim=1) for i, part in enumerate(_parts(rows))]
    )
    edge = torch.full((count,), 2.0)
    for a in range(count):
        members = np.flatnonzero(owner == a)
        if len(members):
            edge[a] = torch.quantile(own[members], _EDGE)
        sampled.append(rng.choice(members, size=min(_SAMPLE, len(members)), replace=False))
        of.append(np.full(len(sampled[-1]), a))
    close = torch.zeros(count, count)
    for i, part in enumerate(_parts(rows)):
        close.index_add_(0, lists[i * _PART :][: len(part)], (part @ centres.T >= edge).float())
    sample, kinds = torch.from_numpy(rows[np.concatenate(sampled)]), torch.from_numpy(np.concatenate(of))
    for start in range(0, len(sample), _ROWS):
        pairs = torch.nonzero(sample[start : start + _ROWS] @ sample.T >= least)
        close[kinds[pairs[:, 0] + start], kinds[pairs[:, 1]]] = 1.0
    near = (close + close.T > 0).fill_diagonal_(True)
    return [np.flatnonzero(line) for line in near.numpy()]
