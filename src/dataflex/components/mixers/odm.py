"""Online Data Mixing (Albalak et al., arXiv 2312.02406): domains as the arms of an EXP3 bandit, the loss as reward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log, sqrt
from typing import ClassVar

import numpy as np

from dataflex.components.contracts import Decision, DomainInfo, Mixer, Observations, State


@dataclass(frozen=True, kw_only=True)
class OdmMixer(Mixer):
    """Algorithm 1 of the paper, one turn per update.

    For the K domains after turn t, from the samples of the whole interval:

        R_d   <- alpha R_d + (1 - alpha) (sum of the losses of d / samples of the interval) / pi_d
        eps_t  = min(1/K, sqrt(ln K / (K t)))
        pi_d   = (1 - K eps_t) exp(eps_{t-1} R_d) / sum_j exp(eps_{t-1} R_j) + eps_t

    The sum over the samples already counts how often d was drawn, so dividing by pi_d once makes the reward an unbiased
    estimate of its mean loss. A domain without a sample keeps R_d. pi is what was requested in the interval.

    alpha: smoothing of the moving-average reward. reward_scale: factor on the losses (the paper's code divides by 10).
    min_exploration_rate: a floor for eps_t, itself never above 1/(2K) so that every K leaves room to adapt.
    """

    alpha: float = 0.9
    reward_scale: float = 15.0
    min_exploration_rate: float = 0.03

    needs: ClassVar[frozenset[str]] = frozenset({"train_loss"})
    retired: ClassVar[Mapping[str, str]] = {
        "warmup_steps": "the warmup of the schedule decides when the mixer starts",
    }

    def check(self) -> None:
        self.require("alpha", 0 <= self.alpha < 1, "in [0, 1)")
        self.require("reward_scale", self.reward_scale > 0, "positive")
        self.require("min_exploration_rate", 0 <= self.min_exploration_rate <= 1, "in [0, 1]")

    def exploration(self, turn: int, k: int) -> float:
        """eps_t; turn counts from 1, and eps_0 = 1/K."""
        if k == 1:
            return 0.0
        rate = 1.0 / k if turn == 0 else min(1.0 / k, sqrt(log(k) / (k * turn)))
        return max(rate, min(self.min_exploration_rate, 0.5 / k))

    def init(self, domains: DomainInfo) -> State:
        return {"turn": 0, "rewards": np.zeros(len(domains))}

    def update(self, state: State, observations: Observations) -> tuple[Decision, State]:
        pi, k = observations.proportions, len(observations.rows)
        turn, rewards = state["turn"] + 1, np.array(state["rewards"], dtype=np.float64)
        seen = (observations.rows > 0) & (pi > 0)
        if seen.any():
            estimate = self.reward_scale * observations.loss[seen] / observations.rows.sum() / pi[seen]
            rewards[seen] = self.alpha * rewards[seen] + (1 - self.alpha) * estimate
        exponent = self.exploration(turn - 1, k) * rewards
        softmax = np.exp(exponent - exponent.max())
        softmax /= softmax.sum()
        epsilon = self.exploration(turn, k)
        return Decision((1 - k * epsilon) * softmax + epsilon), {"turn": turn, "rewards": rewards}
