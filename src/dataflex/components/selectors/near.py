"""NEAR: the nearest neighbours of the target, nearest first (the selector of that name of dataflex 1.1.0; no paper)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from dataflex.components.contexts import Selection, SelectionContext, State
from dataflex.components.tools.embeddings import EmbeddingSelector, comparable
from dataflex.components.tools.files import NeighbourFile
from dataflex.components.tools.neighbours import closeness
from dataflex.components.tools.turns import take_turns, turns_among
from dataflex.errors import DataflexError

if TYPE_CHECKING:
    from jaxtyping import Int


@dataclass(frozen=True, kw_only=True)
class NearSelector(EmbeddingSelector):
    """The nearest neighbours of the target, nearest first.

    The nearest neighbour of every target row comes first, then the second nearest of every one, until the budget is met.
    Neighbours are either

    - measured: by the cosine of the mean hidden states, with the model of the moment; the score of a row is its cosine
      with the closest target row; or
    - found before: read from the file `indices_path` (`NeighbourFile`). It does not change while training, so every
      update selects the same rows. There are no scores.

    Departures:

    Compared with the selector of dataflex 1.1.0, since there is no paper. What is different:

    - Without a file, embeddings are those of the model being trained, so updates differ.
    - A file is about stored rows, where 1.1.0 took its numbers for processed rows, which are others as soon as one was
      dropped.
    - -1 is accepted in a file, and neighbours are exact.
    """

    indices_path: str | None = None
    """Neighbours found before: an .npy file of int[M, K], for each of M target rows its K nearest rows as stored; -1:
    none; null: they are found by embeddings."""

    retired: ClassVar[Mapping[str, str]] = {"cache_dir": "nothing is cached outside the checkpoints"}

    def check(self) -> None:
        super().check()
        self.check_found_before()

    def found_before(self) -> NeighbourFile | None:
        return None if self.indices_path is None else NeighbourFile("indices_path", self.indices_path)

    def select(
        self, state: State, signals: Mapping[str, np.ndarray], context: SelectionContext
    ) -> tuple[Selection, State]:
        file = self.found_before()
        return (by_embeddings(signals, context) if file is None else from_file(file, context)), state


def by_embeddings(signals: Mapping[str, np.ndarray], context: SelectionContext) -> Selection:
    rows, targets, indices = comparable(signals)
    one_task = np.zeros(len(targets), dtype=np.int64)
    score, closest = closeness(targets, rows, one_task)
    taken = turns_among(targets, rows, context.budget)
    return Selection(
        taken.rows,
        score[:, 0],
        turn=taken.turn,
        chosen_for=indices[taken.target],
        score_from=indices[closest[:, 0]],
    )


def from_file(file: NeighbourFile, context: SelectionContext) -> Selection:
    """DataflexError if the file names fewer candidates than the budget asks for."""
    assert context.raw_rows is not None
    ranking = among_candidates(file.neighbours(), context.raw_rows)
    turns = take_turns(ranking, ranking.size)
    taken = turns.where(turns.rows >= 0, context.budget)
    if len(taken) < context.budget:
        raise DataflexError(
            f"select: near was asked for {context.budget} rows, but {file.path} names only {len(taken)} of the"
            f" {context.rows} that can be chosen; make it with more neighbours, or leave indices_path out"
        )
    return Selection(taken.rows, turn=taken.turn, chosen_for=taken.target)


def among_candidates(
    neighbours: Int[np.ndarray, "targets neighbours"], raw_rows: Int[np.ndarray, " rows"]
) -> Int[np.ndarray, "targets neighbours"]:
    """Positions of the neighbours among the candidates; -1 for a stored row that is no candidate, and for none.

    raw_rows: the number that each candidate has among the stored rows.
    """
    position = np.full(max(int(neighbours.max()), int(raw_rows.max())) + 1, -1, dtype=np.int64)
    position[raw_rows] = np.arange(len(raw_rows))
    return np.where(neighbours >= 0, position[np.maximum(neighbours, 0)], -1)
