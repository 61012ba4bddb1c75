"""NEAR: the nearest neighbours of the target, nearest first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dataflex.components.contexts import Selection, SelectionContext, State
from dataflex.components.tools.embeddings import EmbeddingSelector, comparable
from dataflex.components.tools.files import read_array
from dataflex.components.tools.neighbours import closeness
from dataflex.components.tools.turns import take_turns, turns_among
from dataflex.errors import ConfigError, DataflexError


@dataclass(frozen=True, kw_only=True)
class NearSelector(EmbeddingSelector):
    """The nearest neighbours of the target, nearest first.

    The nearest neighbour of every target row comes first, then the second nearest of every one, and so on until the budget is
    met. Distances are between mean hidden states of length one, by the model of the moment; score: the cosine with the
    closest target row. With `indices_path` a file says the neighbours, by numbers of rows counted from 0 over the data sets
    as they are stored. It does not change while training, so every update selects the same rows.

    Departures:

    Compared with the selector of dataflex 1.1.0, since there is no paper. What is different:

    - Without a file, embeddings are those of the model being trained, so updates differ.
    - A file is about stored rows, where 1.1.0 took its numbers for processed rows, which are others as soon as one was
      dropped.
    - -1 is accepted in a file, and neighbours are exact.
    """

    indices_path: str | None = None
    """Neighbours found before: an .npy file of int[M, K], for each of M target rows its K nearest rows as stored; -1:
    none."""

    retired: ClassVar[Mapping[str, str]] = {"cache_dir": "nothing is cached outside the checkpoints"}

    def check(self) -> None:
        super().check()
        if self.indices_path is not None:
            neighbours = read_array("indices_path", self.indices_path, dimensions=2)
            if not np.issubdtype(neighbours.dtype, np.integer):
                raise ConfigError(f"indices_path must hold integers, {self.indices_path} has {neighbours.dtype}")
            if neighbours.size == 0 or neighbours.max() < 0:
                raise ConfigError(f"indices_path must name at least one row, {self.indices_path} has none")

    @property
    def found_before(self) -> bool:
        return self.indices_path is not None

    def files(self) -> Mapping[str, str]:
        return {} if self.indices_path is None else {"indices_path": self.indices_path}

    def check_rows(self, raw_rows: int) -> None:
        if self.indices_path is None:
            return
        neighbours = read_array("indices_path", self.indices_path, dimensions=2)
        if neighbours.max() >= raw_rows or neighbours.min() < -1:
            wrong = neighbours.max() if neighbours.max() >= raw_rows else neighbours.min()
            raise ConfigError(
                f"indices_path must hold rows of the data, 0 to {raw_rows - 1} (or -1: none), {self.indices_path} has {wrong}"
            )

    def select(
        self, state: State, signals: Mapping[str, np.ndarray], context: SelectionContext
    ) -> tuple[Selection, State]:
        if self.indices_path is None:
            rows, targets, _ = comparable(signals)
            score = closeness(targets, rows, np.zeros(len(targets), dtype=np.int64))[:, 0]
            return Selection(turns_among(targets, rows, context.budget), score), state
        assert context.raw_rows is not None
        neighbours = read_array("indices_path", self.indices_path, dimensions=2)
        place = np.full(max(int(neighbours.max()), int(context.raw_rows.max())) + 1, -1, dtype=np.int64)
        place[context.raw_rows] = np.arange(context.rows)
        ranking = np.where(neighbours >= 0, place[np.maximum(neighbours, 0)], -1)
        turns = take_turns(ranking, ranking.size)
        chosen = turns[turns >= 0][: context.budget]
        if len(chosen) < context.budget:
            raise DataflexError(
                f"select: near was asked for {context.budget} rows, but {self.indices_path} names only {len(chosen)} of the"
                f" {context.rows} that can be chosen; make it with more neighbours, or leave indices_path out"
            )
        return Selection(chosen), state
