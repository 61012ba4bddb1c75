"""Fixed proportions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dataflex.components.contracts import Decision, DomainInfo, Mixer, Observations, State


@dataclass(frozen=True, kw_only=True)
class StaticMixer(Mixer):
    """Keeps the proportions the run starts with (`proportions` of the mix block; uniform when none are given)."""

    def init(self, domains: DomainInfo) -> State:
        return {"proportions": domains.proportions}

    def update(self, state: State, observations: Observations) -> tuple[Decision, State]:
        return Decision(np.asarray(state["proportions"])), state
