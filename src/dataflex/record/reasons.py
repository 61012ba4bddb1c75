"""Why a selector took a row: in which turn, and for which row of its target, as columns beside the scores.

turn             the turn, from 1, in which the row was taken
chosen_for       the data set of the target that it was taken for
chosen_for_row   the row of that data set, as it is stored
score_from       the data set of the target that the score of the row comes from
score_from_row   the row of that data set

Columns that the selector does not fill are left out. The first three are null for rows left out, all of them where there is none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from dataflex.plan.plan import Domains

if TYPE_CHECKING:
    from dataflex.data.texts import RowText  # which needs torch


@dataclass(frozen=True)
class Target:
    """The rows that a selector aims at. M: their number."""

    domains: Domains
    """Their data sets."""
    stored: np.ndarray | None = None
    """The number of each row in its data set as it is stored, int64[M]; None: not known."""
    texts: Callable[[list[int]], list[RowText]] | None = None
    """Indices of rows -> what they say; None: not known."""


@dataclass(frozen=True)
class TargetText:
    """A row of the target, for people. A data set as a whole has no row and no text."""

    dataset: str | None
    row: int | None
    text: RowText | None


@dataclass(frozen=True)
class Reasons:
    """Of one decision. n: rows taken, repeats included. N: rows of the data. Every index is -1 where there is none."""

    target: Target | None
    """None: the target is a file of vectors or of neighbours, whose rows have a number and no name."""
    turn: np.ndarray | None = None
    """Of each row taken, from 1, int64[n]; 0: none."""
    chosen_for: np.ndarray | None = None
    """Of each row taken, int64[n]."""
    score_from: np.ndarray | None = None
    """Of each row of the data, int64[N]."""
    for_datasets: bool = False
    """Whether indices are those of data sets of the target, not of its rows."""

    def columns(self, ids: np.ndarray, draws: np.ndarray) -> dict[str, pa.Array]:
        """Columns about rows `ids`, int64[k]. draws: for each of them its index among the rows taken, int64[k]; -1: left out."""
        found: dict[str, pa.Array] = {}
        if self.turn is not None:
            turn = _drawn(self.turn, draws)
            found["turn"] = pa.array(turn, mask=turn < 1)
        if self.chosen_for is not None:
            found |= self._named("chosen_for", _drawn(self.chosen_for, draws))
        if self.score_from is not None:
            found |= self._named("score_from", self.score_from[ids])
        return found

    def _named(self, name: str, index: np.ndarray) -> dict[str, pa.Array]:
        none = index < 0
        if self.target is None:
            return {f"{name}_row": pa.array(index, mask=none)}
        dataset = index if self.for_datasets else self.target.domains.of(index)
        names = pa.array(self.target.domains.names)
        found = {name: pa.DictionaryArray.from_arrays(pa.array(dataset.astype(np.int32), mask=none), names)}
        if self.target.stored is not None and not self.for_datasets:
            found[f"{name}_row"] = pa.array(self.target.stored[index], mask=none)
        return found

    def texts(self, ids: np.ndarray, draws: np.ndarray) -> list[TargetText | None]:
        """For each row `ids` the row of the target that it was taken for, or of a row left out that its score comes from."""
        index = np.full(len(ids), -1)
        if self.score_from is not None:
            index = np.where(draws < 0, self.score_from[ids], index)
        if self.chosen_for is not None:
            index = np.where(draws < 0, index, _drawn(self.chosen_for, draws))
        return [None if i < 0 else self._text(i) for i in index.tolist()]

    def _text(self, index: int) -> TargetText:
        if self.target is None:
            return TargetText(None, index, None)
        target = self.target
        if self.for_datasets:
            return TargetText(target.domains.names[index], None, None)
        (dataset,) = target.domains.of(np.array([index]))
        row = None if target.stored is None else int(target.stored[index])
        text = None if target.texts is None else target.texts([index])[0]
        return TargetText(target.domains.names[dataset], row, text)


def _drawn(values: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """The values of rows taken, by their indices among these; -1 for a row left out."""
    out = np.full(len(draws), -1)
    out[draws >= 0] = values[draws[draws >= 0]]
    return out
