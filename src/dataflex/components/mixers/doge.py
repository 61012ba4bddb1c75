"""DoGE (Fan et al., arXiv 2310.15393): domains whose gradient agrees with that of all domains weigh more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from dataflex.components.contracts import Decision, DomainInfo, Mixer, Observations, State
from dataflex.components.mixers.doremi import weights
from dataflex.components.requests import DomainGradients, Request


@dataclass(frozen=True, kw_only=True)
class DogeMixer(Mixer):
    """Algorithm 1 of the paper, for the k domains, at every update t, with the learning rate eta_t:

        W_j     = < grad l_j,  sum_i grad l_i >
        alpha_j ~ alpha_j exp(eta_t W_j / mu),      alpha = (1 - eps) alpha / sum(alpha) + eps / k

    grad l_j is the mean gradient of `rows_per_domain` rows of domain j, drawn afresh. The proxy model is trained on the loss
    weighted by alpha, rows being drawn in the proportions that the run starts with (a row of domain j weighs
    alpha_j / proportion_j); `result` is the mean of all alpha, the proportions to train the final model with. online: true
    draws rows by alpha instead, in the run itself.

    The paper takes the gradients of every training step; here they are measured at each update, on rows of their own.
    """

    mu: float = 0.05
    eps: float = 1e-3
    rows_per_domain: int = 8
    online: bool = False
    parameters: Literal["linear", "all"] = "linear"
    seed: int = 0

    def check(self) -> None:
        self.require("mu", 0 < self.mu < np.inf, "positive and finite")
        self.require("eps", 0 <= self.eps <= 1, "in [0, 1]")
        self.require("rows_per_domain", self.rows_per_domain >= 1, "at least 1")

    @property
    def needs(self) -> frozenset[Request]:  # type: ignore[override]
        return frozenset(
            {
                DomainGradients(
                    gradient_type="sgd", parameters=self.parameters, rows=self.rows_per_domain, seed=self.seed
                )
            }
        )

    @property
    def moves_proportions(self) -> bool:  # type: ignore[override]
        return self.online

    def init(self, domains: DomainInfo) -> State:
        k = len(domains)
        alpha = np.asarray(domains.proportions, dtype=np.float64) if self.online else np.full(k, 1 / k)
        return {"alpha": alpha, "total": np.zeros(k), "turns": 0}

    def initial_loss_weights(self, domains: DomainInfo) -> np.ndarray | None:
        return None if self.online else weights(self.init(domains)["alpha"], domains.proportions)

    def update(self, state: State, observations: Observations) -> tuple[Decision, State]:
        products = np.stack(observations.signals["domain_gradients"])
        exponent = observations.learning_rate * products.sum(axis=1) / self.mu
        alpha = np.asarray(state["alpha"]) * np.exp(exponent - exponent.max())
        alpha = (1 - self.eps) * alpha / alpha.sum() + self.eps / len(alpha)
        new = {"alpha": alpha, "total": state["total"] + alpha, "turns": state["turns"] + 1}
        if self.online:
            return Decision(alpha), new
        pi = observations.proportions
        return Decision(pi, weights(alpha, pi)), new

    def result(self, state: State) -> np.ndarray | None:
        if not state["turns"]:
            return None
        mean = np.asarray(state["total"]) / state["turns"]
        return mean / mean.sum()
