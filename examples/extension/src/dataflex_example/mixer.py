"""Learning progress: more of the domains whose loss is falling fastest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dataflex import Decision, DomainInfo, Mixer, Observations, Request, State


@dataclass(frozen=True, kw_only=True)
class ProgressMixer(Mixer):
    """With l_d the mean training loss of domain d in the last interval and l'_d the one before it:

        progress_d <- smoothing progress_d + (1 - smoothing) (l'_d - l_d)
        p_d         = (1 - floor) softmax(progress / temperature)_d + floor / k

    A domain without a row in the interval keeps its progress, and a domain seen for the first time has none yet.
    """

    temperature: float = 0.1
    smoothing: float = 0.5
    floor: float = 0.1

    def check(self) -> None:
        self.require("temperature", self.temperature > 0, "positive")
        self.require("smoothing", 0 <= self.smoothing < 1, "in [0, 1)")
        self.require("floor", 0 <= self.floor <= 1, "in [0, 1]")

    def needs(self) -> frozenset[Request]:
        return frozenset({"train_loss"})

    def init(self, domains: DomainInfo) -> State:
        return {"last_loss": np.full(len(domains), np.nan), "progress": np.zeros(len(domains))}

    def update(self, state: State, observations: Observations) -> tuple[Decision, State]:
        k, seen = len(observations.rows), observations.rows > 0
        loss = state["last_loss"].copy()
        loss[seen] = observations.loss[seen] / observations.rows[seen]
        gain = np.nan_to_num(state["last_loss"] - loss)
        progress = state["progress"].copy()
        progress[seen] = self.smoothing * progress[seen] + (1 - self.smoothing) * gain[seen]
        softmax = np.exp((progress - progress.max()) / self.temperature)
        proportions = (1 - self.floor) * softmax / softmax.sum() + self.floor / k
        return Decision(proportions), {"last_loss": loss, "progress": progress}
