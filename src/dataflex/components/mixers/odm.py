"""Online Data Mixing (Albalak et al., arXiv 2312.02406): domains as the arms of an EXP3 bandit, the loss as reward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import floor, log, sqrt
from typing import Any, ClassVar, Literal

import numpy as np

from dataflex.components.contexts import Decision, DomainInfo, Observations, State
from dataflex.components.contracts import Mixer
from dataflex.components.paper import Paper
from dataflex.components.requests import Request


@dataclass(frozen=True, kw_only=True)
class OdmMixer(Mixer):
    """More of the domains with a high loss: domains as the arms of an EXP3 bandit, the loss as reward.

    Algorithm 1 of the paper, one turn per update. For the K domains after turn t, with L_d the mean loss of the rows of d in
    the interval, pi_d what was requested in it, and s_d the share of d in what was served (in the unit of pi_d):

        R_d   <- R_d + c L_d / pi_d                             reward: authors    (their code)
        R_d   <- alpha R_d + (1 - alpha) c L_d / pi_d           reward: averaged   (dataflex 1.1.0)
        R_d   <- alpha R_d + (1 - alpha) c L_d s_d / pi_d       reward: unbiased
        eps_t  = min(1/K, sqrt(ln K / (K t)))
        pi_d   = (1 - K eps_t) exp(eps_{t-1} R_d) / sum_j exp(eps_{t-1} R_j) + eps_t

    A domain without a row keeps its R_d. With `authors`, a domain with a small pi_d gains more for the same loss: pi comes
    to rest near shares proportional to L_d. With `unbiased`, c L_d s_d / pi_d is c L_d in the mean, as in EXP3.

    Departures:

    Compared with `Exp3WeightUpdater.group_update` of alon-albalak/online-data-mixing. With the defaults the update is the
    same. What is different:

    - An update takes the rows of all steps since the last one, and t counts updates; theirs acts at every step. `interval: 1`
      is that.
    - The paper's text has a moving average of the rewards, as `averaged` and `unbiased` do; the code adds them up.
    - L_d is the mean over rows of their token means. Their rows all have one length.
    - `averaged` lacks what 1.1.0 did beside its formula: it credited the loss of one micro-batch to the domain of its first
      row, and never let exp fall below e^-5 ([migration.md](migration.md)).
    """

    reward: Literal["authors", "averaged", "unbiased"] = "authors"
    """How rewards add up: as in the authors' code; as in dataflex 1.1.0; or as in EXP3, one for each time that a domain is
    drawn."""
    alpha: float | None = None
    """Smoothing of `averaged` and `unbiased`; null: 0.9."""
    reward_scale: float | None = None
    """c; null: 0.1 for `authors`, 15 for the others."""
    min_exploration_rate: float | None = None
    """Floor of eps_t, and so of every proportion, never above 1/(2K); null: 0 for `authors`, 0.03 for the others."""

    paper: ClassVar[Paper | None] = Paper(
        authors="Albalak et al.",
        title="Efficient Online Data Mixing For Language Model Pre-Training",
        arxiv="2312.02406",
    )
    defaults_of_1_1: ClassVar[Mapping[str, Any]] = {"reward": "averaged"}
    retired: ClassVar[Mapping[str, str]] = {
        "warmup_steps": "the warmup of the schedule decides when the mixer starts",
    }

    def check(self) -> None:
        self.require_choice("reward", ("authors", "averaged", "unbiased"))
        self.require("alpha", self.alpha is None or 0 <= self.alpha < 1, "in [0, 1)")
        averages = self.alpha is None or self.reward != "authors"
        self.require(
            "alpha", averages, "left out with reward: authors, which adds rewards up (averaged and unbiased have it)"
        )
        self.require("reward_scale", self.reward_scale is None or self.reward_scale > 0, "positive")
        floor = self.min_exploration_rate
        self.require("min_exploration_rate", floor is None or 0 <= floor <= 1, "in [0, 1]")

    def needs(self) -> frozenset[Request]:
        return frozenset({"train_loss"})

    @property
    def scale(self) -> float:
        """c."""
        if self.reward_scale is not None:
            return self.reward_scale
        return 0.1 if self.reward == "authors" else 15.0

    @property
    def floor(self) -> float:
        """What eps_t never falls below, but for few domains."""
        if self.min_exploration_rate is not None:
            return self.min_exploration_rate
        return 0.0 if self.reward == "authors" else 0.03

    def exploration(self, turn: int, k: int) -> float:
        """eps_t; turn counts from 1, and eps_0 = 1/K."""
        if k == 1:
            return 0.0
        rate = 1.0 / k if turn == 0 else min(1.0 / k, sqrt(log(k) / (k * turn)))
        return max(rate, min(self.floor, 0.5 / k))

    def unobserving_updates(self, domains: int) -> int:
        """eps_t = 1/K, which makes pi uniform, while t <= K ln K."""
        return floor(domains * log(domains))

    def init(self, domains: DomainInfo) -> State:
        return {"turn": 0, "rewards": np.zeros(len(domains))}

    def update(self, state: State, observations: Observations) -> tuple[Decision, State]:
        pi, k = observations.proportions, len(observations.rows)
        turn, rewards = state["turn"] + 1, np.array(state["rewards"], dtype=np.float64)
        seen = (observations.rows > 0) & (pi > 0)
        gain = self.scale * observations.loss[seen] / observations.rows[seen] / pi[seen]
        if self.reward == "unbiased":
            gain = gain * observations.realized[seen]
        if self.reward == "authors":
            rewards[seen] += gain
        else:
            alpha = 0.9 if self.alpha is None else self.alpha
            rewards[seen] = alpha * rewards[seen] + (1 - alpha) * gain
        exponent = self.exploration(turn - 1, k) * rewards
        softmax = np.exp(exponent - exponent.max())
        softmax /= softmax.sum()
        epsilon = self.exploration(turn, k)
        return Decision((1 - k * epsilon) * softmax + epsilon), {"turn": turn, "rewards": rewards}
