"""Dynamic data mixing for mixture-of-experts models (Zhu et al., arXiv 2406.11256): by how differently domains are routed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dataflex.components.contexts import Decision, DomainInfo, Observations, State
from dataflex.components.contracts import Mixer
from dataflex.components.paper import Paper
from dataflex.components.requests import Request, RouterLoad


@dataclass(frozen=True, kw_only=True)
class DynamicMoeMixer(Mixer):
    """More of the domains that the routers of a mixture-of-experts model send elsewhere than the rest.

    Algorithm 1 of the paper. O_i, the gate load of domain i, is the share of its tokens that go to each expert; at update t

        Delta_i = mean over j of |O_i - O_j|_2
        alpha   = w_{t-1} exp(eta Delta),    w_t = (1 - c) alpha / sum(alpha) + c / k

    Domains that use other experts than the rest get more data. w_0 are the proportions the run starts with. The loads are
    measured on `eval_samples` rows in all, an equal number of each domain, drawn afresh: held-out rows, where `eval_dataset`
    of the block names some for a domain, else rows that it trains on.

    Departures:

    Nowhere known, compared with `src/callbacks.py` of Spico197/MoE-SFT: the mean of distances includes the domain itself, and
    eta and c are those of its configuration.
    """

    eta: float = 10.0
    """Step size."""
    c: float = 0.05
    """Smoothing."""
    eval_samples: int = 1000
    """Rows the loads are measured on in all, as many of each domain, drawn afresh."""
    layer: int = -1
    """Which of the layers with a router; -1: the last."""
    seed: int = 0
    """Of the rows drawn."""

    paper: ClassVar[Paper | None] = Paper(
        authors="Zhu et al.",
        title="Dynamic Data Mixing Maximizes Instruction Tuning for Mixture-of-Experts",
        arxiv="2406.11256",
        venue="NAACL 2025",
    )
    retired: ClassVar[Mapping[str, str]] = {
        "collect_steps": "all of eval_samples are read at every update",
        "eval_batch_size": "batches are made by scoring_tokens",
    }

    def check(self) -> None:
        self.require("eta", 0 <= self.eta < np.inf, "at least 0 and finite")
        self.require("c", 0 <= self.c <= 1, "in [0, 1]")
        self.require("eval_samples", self.eval_samples >= 1, "at least 1")

    def needs(self) -> frozenset[Request]:
        return frozenset({RouterLoad(rows=self.eval_samples, layer=self.layer, seed=self.seed)})

    def update(self, state: State, observations: Observations) -> tuple[Decision, State]:
        loads = np.stack(observations.signals["router_load"])
        distances = np.linalg.norm(loads[:, None] - loads[None], axis=2)
        exponent = self.eta * distances.mean(axis=1)
        alpha = observations.proportions * np.exp(exponent - exponent.max())
        k = len(alpha)
        return Decision((1 - self.c) * alpha / alpha.sum() + self.c / k), state

    def init(self, domains: DomainInfo) -> State:
        return {}
