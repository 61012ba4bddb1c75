"""Random proportions: the baseline for mixers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dataflex.components.contexts import Decision, Observations, State
from dataflex.components.contracts import Mixer


@dataclass(frozen=True, kw_only=True)
class RandomMixer(Mixer):
    """Proportions drawn uniformly from the simplex (flat Dirichlet), afresh at every update.

    seed: mixed into the run's own seed.
    """

    seed: int = 42

    def update(self, state: State, observations: Observations) -> tuple[Decision, State]:
        return Decision(observations.rng.dirichlet(np.ones(len(observations.rows)))), state
