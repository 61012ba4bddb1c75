"""Random proportions: the baseline for mixers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dataflex.components.contexts import Decision, Observations, State
from dataflex.components.contracts import Mixer


@dataclass(frozen=True, kw_only=True)
class RandomMixer(Mixer):
    """Proportions drawn uniformly from all mixtures (flat Dirichlet), afresh at every update: the baseline for mixers.

    Departures:

    Nowhere known, compared with a flat Dirichlet distribution. It has no authors.
    """

    seed: int = 42
    """Mixed into the run's own seed: another value gives other mixtures."""

    def update(self, state: State, observations: Observations) -> tuple[Decision, State]:
        return Decision(observations.rng.dirichlet(np.ones(len(observations.rows)))), state
