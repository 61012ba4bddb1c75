"""rho of TSDS: how many rows lie around a row, as a kernel density with bounded support on the unit sphere.

`kernel_sums` is the formula. `Density` says which rows go into it: all of them, or where these are many, those of the lists
that can be near (`lists.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dataflex.components.selectors.tsds.lists import Lists

if TYPE_CHECKING:
    from jaxtyping import Float32, Float64, Int

# Up to so many rows all pairs are compared: to make lists takes as long.
_ALL_PAIRS = 2048
# Rows of one matrix product: with 100,000 others its values take 400 MB.
_ROWS_AT_ONCE = 1024


def kernel_sums(
    x: Float32[Tensor, "some dims"], rows: Float32[Tensor, "rows dims"], sigma: float, kde_K: int
) -> Float64[np.ndarray, " some"]:
    """rho(x) = sum over the kde_K rows y nearest to x of  max(0, 1 - |x - y|^2 / sigma^2).

    Vectors have length one, so |x - y|^2 = 2 - 2 x.y. A row beyond sigma adds nothing: the nearest have to be told from the
    others only where more than kde_K are within sigma.
    """
    kernel = (x @ rows.T).mul_(2 / sigma**2).add_(1 - 2 / sigma**2).clamp_(min=0)
    sums = kernel.sum(dim=1)
    if kde_K < len(rows):
        crowded = kernel.sign().sum(dim=1) > kde_K
        if crowded.any():
            sums[crowded] = torch.topk(kernel[crowded], kde_K, dim=1, sorted=False).values.sum(dim=1)
    return sums.double().numpy()


class Density:
    """rho of some rows among all of them.

    Beyond a few thousand rows, lists of similar rows are made, and pairs of lists that are well apart are left out. exact:
    no pair is.
    """

    def __init__(
        self, rows: Float32[np.ndarray, "rows dims"], sigma: float, kde_K: int, *, exact: bool = False
    ) -> None:
        self.sigma, self.kde_K = sigma, kde_K
        self.lists = Lists.one(len(rows)) if exact or len(rows) <= _ALL_PAIRS else Lists.of_similar(rows, sigma)
        by_list = np.argsort(self.lists.owner, kind="stable")
        self.rows = torch.from_numpy(np.ascontiguousarray(rows[by_list]))
        self.position = np.empty_like(by_list)  # of each row in self.rows
        self.position[by_list] = np.arange(len(by_list))
        self.starts = np.searchsorted(self.lists.owner[by_list], np.arange(len(self.lists.near) + 1))

    def __call__(self, indices: Int[np.ndarray, " some"]) -> Float64[np.ndarray, " some"]:
        """rho of rows[indices]."""
        rho, owner = np.empty(len(indices)), self.lists.owner[indices]
        for a in np.unique(owner):
            mine = np.flatnonzero(owner == a)
            others = self._rows_of(self.lists.near[a])
            for start in range(0, len(mine), _ROWS_AT_ONCE):
                some = mine[start : start + _ROWS_AT_ONCE]
                rho[some] = kernel_sums(self.rows[self.position[indices[some]]], others, self.sigma, self.kde_K)
        return rho

    def _rows_of(self, lists: Int[np.ndarray, " lists"]) -> Float32[Tensor, "rows dims"]:
        if lists[-1] - lists[0] + 1 == len(lists):  # they lie side by side
            return self.rows[self.starts[lists[0]] : self.starts[lists[-1] + 1]]
        return torch.cat([self.rows[self.starts[b] : self.starts[b + 1]] for b in lists])
