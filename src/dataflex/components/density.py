"""How many rows lie around a row: a kernel density with bounded support, on the unit sphere."""

from __future__ import annotations

from math import sqrt

import numpy as np
import torch

# Up to so many rows all pairs are looked at; and rows of one matrix product.
_ALL_PAIRS = 8192
_ROWS = 1024
# Rows sampled from each list to see whether two lists have neighbours in one another, and how near (as an inner product)
# the nearest of the sampled pairs must come to the edge of the kernel.
_SAMPLE, _MARGIN = 32, 0.1


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
            owner = _lists(rows)
            self.near = _near_lists(rows, owner, 1 - sigma**2 / 2 - _MARGIN)
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
        if len(lists) == len(self.ends):
            return self.rows
        return torch.cat([self.rows[starts[b] : starts[b + 1]] for b in lists])

    def _sums(self, x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
        kernel = (x @ y.T).mul_(2 / self.sigma**2).add_(1 - 2 / self.sigma**2).clamp_(min=0)
        sums = kernel.sum(dim=1)
        if self.most < len(y):
            crowded = kernel.sign().sum(dim=1) > self.most
            if crowded.any():
                sums[crowded] = torch.topk(kernel[crowded], self.most, dim=1, sorted=False).values.sum(dim=1)
        return sums.double().numpy()


def _lists(rows: np.ndarray) -> np.ndarray:
    """List of each row, int64 [R]: k-means on some of them, sqrt(R) / 2 lists."""
    from sklearn.cluster import KMeans

    count = int(sqrt(len(rows)) / 2)
    some = np.random.default_rng(0).choice(len(rows), size=min(len(rows), 64 * count), replace=False)
    means = KMeans(n_clusters=count, init="random", n_init=1, max_iter=8, random_state=0).fit(rows[some])
    centres = torch.from_numpy(means.cluster_centers_.astype(np.float32))
    half = (centres * centres).sum(dim=1) / 2
    parts = [torch.from_numpy(rows[s : s + _ALL_PAIRS]) for s in range(0, len(rows), _ALL_PAIRS)]
    return torch.cat([(part @ centres.T - half).argmax(dim=1) for part in parts]).numpy()


def _near_lists(rows: np.ndarray, owner: np.ndarray, least: float) -> list[np.ndarray]:
    """For each list the lists it is compared with: those with a sampled pair whose inner product is at least `least`."""
    count = int(owner.max()) + 1
    rng, sampled, of = np.random.default_rng(1), [], []
    for a in range(count):
        own = np.flatnonzero(owner == a)
        sampled.append(rng.choice(own, size=min(_SAMPLE, len(own)), replace=False))
        of.append(np.full(len(sampled[-1]), a))
    sample, lists = torch.from_numpy(rows[np.concatenate(sampled)]), torch.from_numpy(np.concatenate(of))
    close = torch.zeros(count, count, dtype=torch.bool)
    for start in range(0, len(sample), _ROWS):
        pairs = torch.nonzero(sample[start : start + _ROWS] @ sample.T >= least)
        close[lists[pairs[:, 0] + start], lists[pairs[:, 1]]] = True
    close.fill_diagonal_(True)
    return [np.flatnonzero(line) for line in close.numpy()]
