"""Components of one's own that read files, for the tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dataflex import (
    Decision,
    DomainInfo,
    Mixer,
    Observations,
    Selection,
    SelectionContext,
    Selector,
    State,
    WeightContext,
    Weighter,
)


@dataclass(frozen=True, kw_only=True)
class RankedSelector(Selector):
    """The rows that stand first in a ranking of all rows."""

    ranking: str

    def files(self) -> Mapping[str, str]:
        return {"ranking": self.ranking}

    def select(
        self, state: State, signals: Mapping[str, np.ndarray], context: SelectionContext
    ) -> tuple[Selection, State]:
        assert context.ids is not None
        indices = np.argsort(np.load(self.ranking)[context.ids], kind="stable")
        return Selection(indices[: context.budget]), state


@dataclass(frozen=True, kw_only=True)
class FolderMixer(Mixer):
    """The shares that stand in a file of a folder."""

    folder: str

    def files(self) -> Mapping[str, str]:
        return {"folder": self.folder}

    def initial(self, domains: DomainInfo) -> np.ndarray:
        return np.array([float(v) for v in (Path(self.folder) / "now.txt").read_text().split()])

    def update(self, state: State, observations: Observations) -> tuple[Decision | None, State]:
        return Decision(observations.rng.dirichlet(np.ones(len(observations.rows)))), state


@dataclass(frozen=True, kw_only=True)
class FlatWeighter(Weighter):
    """All rows alike, whatever the file says."""

    note: str

    def files(self) -> Mapping[str, str]:
        return {"note": self.note}

    def weights(self, state: State, losses: torch.Tensor, context: WeightContext) -> torch.Tensor:
        return torch.ones_like(losses)


@dataclass(frozen=True, kw_only=True)
class Misnamed(FlatWeighter):
    """With a parameter whose name is taken."""

    files: str = ""  # type: ignore[assignment]
