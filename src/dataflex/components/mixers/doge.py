"""DoGE (Fan et al., arXiv 2310.15393): domains whose gradient agrees with that of all domains weigh more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from dataflex.components.contexts import Decision, DomainInfo, Observations, State
from dataflex.components.contracts import Mixer
from dataflex.components.paper import Paper
from dataflex.components.requests import DomainGradients, Request

_MOST = 5.0  # of W, in the authors' code


@dataclass(frozen=True, kw_only=True)
class DogeMixer(Mixer):
    """More weight for the domains whose gradient agrees with that of all domains.

    Algorithm 1 of the paper, for the k domains, at every update t, with the learning rate eta_t:

        W_j     = < g_j,  sum_i g_i >                    g_j: the gradient of l_j, the loss of domain j
        alpha_j ~ alpha_j exp(eta_t W_j / mu),      alpha = (1 - eps) alpha / sum(alpha) + eps / k

    g_j is the mean gradient of `rows_per_domain` rows of domain j, drawn afresh, in two halves. <g_j, g_j> is taken between
    the halves, which have no row in common: with the same rows on both sides, the noise of a domain would agree with itself,
    and |g_j|^2 be too large by its variance. own_product: false leaves <g_j, g_j> out, as the authors' code does.

    As in that code each g_j is cut to the length `max_norm`, W is divided by the mean length of all g_j, and kept within
    [0, 5]; so mu means what it means there. normalise: false, with max_norm: null, is W as the paper writes it.

    The proxy model is trained on sum_j alpha_j l_j, rows being drawn in the proportions that the run starts with; `result` is
    the mean of all alpha, the proportions to train the final model with. online: true draws rows by alpha instead, in the
    run itself. The paper takes the gradients of every training step; here they are measured at each update, on rows of their
    own.

    Departures:

    Compared with `src/trainer.py` of Olivia-fsm/doge. Cutting, the mean length, [0, 5], mu, eps and the mean of all alpha are
    the same, and with `own_product: false` so is W. What is different:

    - The paper's sum has i = j in it, and so it is here; the code leaves it out where the domains to train on are those to
      improve.
    - They take the gradients of every training step, each of the rows of that batch; here they are measured at each update,
      on rows of their own. alpha moves once per update, so `interval: 10` moves it a tenth as fast.
    - A gradient is the mean over rows of their token means; its length is that of the parameters measured, `linear` by
      default, and not of all.
    """

    mu: float = 0.05
    """Strength of the Bregman term: smaller values move alpha faster (the authors' configuration has 0.01, their code
    0.05)."""
    eps: float = 0.0
    """Smoothing."""
    max_norm: float | None = 1.0
    """Length that a longer g_j is cut to; null: none is."""
    normalise: bool = True
    """Divide W by the mean length of the g_i, and keep it in [0, 5]."""
    own_product: bool = True
    """Whether W_j has the term < g_j, g_j >."""
    rows_per_domain: int = 8
    """Rows of each domain whose mean gradient is taken, drawn afresh at every update."""
    online: bool = False
    """Draw rows by alpha, in the run itself, instead of weighing losses."""
    parameters: Literal["linear", "all"] = "linear"
    """Whose gradients: those of the linear layers but the output embedding, or of all parameters."""
    seed: int = 0
    """Of the rows drawn and of a projection."""

    paper: ClassVar[Paper | None] = Paper(
        authors="Fan et al.",
        title="DoGE: Domain Reweighting with Generalization Estimation",
        arxiv="2310.15393",
        venue="ICML 2024",
    )

    def check(self) -> None:
        self.require("mu", 0 < self.mu < np.inf, "positive and finite")
        self.require("eps", 0 <= self.eps <= 1, "in [0, 1]")
        self.require("max_norm", self.max_norm is None or 0 < self.max_norm < np.inf, "positive and finite, or null")
        self.require("rows_per_domain", self.rows_per_domain >= 2, "at least 2 (two halves)")

    def needs(self) -> frozenset[Request]:
        return frozenset(
            {
                DomainGradients(
                    gradient_type="sgd", parameters=self.parameters, rows=self.rows_per_domain, seed=self.seed
                )
            }
        )

    def moves_proportions(self) -> bool:
        return self.online

    def init(self, domains: DomainInfo) -> State:
        k = len(domains)
        alpha = np.asarray(domains.proportions, dtype=np.float64) if self.online else np.full(k, 1 / k)
        return {"alpha": alpha, "total": np.zeros(k), "turns": 0}

    def initial_loss_weights(self, domains: DomainInfo) -> np.ndarray | None:
        return None if self.online else np.asarray(self.init(domains)["alpha"])

    def agreement(self, products: np.ndarray) -> np.ndarray:
        """W, float64[k]. products: float[k, 2, k, 2], <g_ia, g_jb> of the halves a and b of domains i and j."""
        gram = products.mean(axis=(1, 3))
        lengths = np.sqrt(np.maximum(np.diag(gram), 0.0))
        np.fill_diagonal(gram, products[:, 0, :, 1].diagonal() if self.own_product else 0.0)
        if self.max_norm is not None:
            cut = self.max_norm / np.maximum(lengths, self.max_norm)
            gram, lengths = cut[:, None] * gram * cut, cut * lengths
        w = gram.sum(axis=1)
        if not self.normalise:
            return w
        return np.clip(w / lengths.mean(), 0.0, _MOST) if lengths.any() else np.zeros_like(w)

    def update(self, state: State, observations: Observations) -> tuple[Decision, State]:
        products = np.stack(observations.signals["domain_gradients"])
        exponent = observations.learning_rate * self.agreement(products) / self.mu
        alpha = np.asarray(state["alpha"]) * np.exp(exponent - exponent.max())
        alpha = (1 - self.eps) * alpha / alpha.sum() + self.eps / len(alpha)
        new = {"alpha": alpha, "total": state["total"] + alpha, "turns": state["turns"] + 1}
        if self.online:
            return Decision(alpha), new
        pi = observations.proportions
        return Decision(pi, alpha), new

    def result(self, state: State) -> np.ndarray | None:
        if not state["turns"]:
            return None
        mean = np.asarray(state["total"]) / state["turns"]
        return mean / mean.sum()
