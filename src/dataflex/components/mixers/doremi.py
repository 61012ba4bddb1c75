"""DoReMi (Xie et al., arXiv 2305.10429): domain weights by group distributionally robust optimization over a reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dataflex.components.contexts import Decision, DomainInfo, Observations, State
from dataflex.components.contracts import Mixer
from dataflex.components.requests import ExcessLoss, Request


@dataclass(frozen=True, kw_only=True)
class DoremiMixer(Mixer):
    """Step 2 of the method, Algorithm 1 of the paper: the training of the proxy model. For the k domains and step t,

        lambda_t[i] = sum over the tokens of domain i of max(l_proxy - l_reference, 0) / number of these tokens
        alpha'_t    = alpha_{t-1} exp(eta lambda_t)
        alpha_t     = (1 - c) alpha'_t / sum(alpha'_t) + c / k

    over the tokens of the whole global batch. Rows are drawn in the proportions that the run starts with, and the proxy is
    trained on sum_i alpha[i] l_i, l_i the mean loss over the tokens of domain i. What the method is run for is the mean of
    alpha_1 .. alpha_T: `result`, the proportions to train the final model with.

    One forward pass gives the losses of a step and trains on them, so step t is weighted by alpha_{t-1}; the paper weighs it
    by alpha_t, from the same losses. A domain of which a batch has no token keeps its lambda (as the authors' code does).

    reference_model_path: the model of step 1. reference_store: a directory that runs with the same reference share its
    losses in. reweight_eta, reweight_eps: eta and the smoothing c, 1 and 0.001 in the paper.
    """

    reference_model_path: str
    reference_store: str | None = None
    reweight_eta: float = 1.0
    reweight_eps: float = 1e-3

    default_interval: ClassVar[int | None] = 1

    def check(self) -> None:
        self.require("reference_model_path", bool(self.reference_model_path), "a model")
        self.require("reweight_eta", 0 <= self.reweight_eta < np.inf, "at least 0 and finite")
        self.require("reweight_eps", 0 <= self.reweight_eps <= 1, "in [0, 1]")

    def moves_proportions(self) -> bool:
        return False

    def without_effect(self) -> str | None:
        return "with reweight_eta 0 all domains keep the same weight" if self.reweight_eta == 0 else None

    def needs(self) -> frozenset[Request]:
        return frozenset({"train_loss", ExcessLoss(model=self.reference_model_path, store=self.reference_store)})

    def init(self, domains: DomainInfo) -> State:
        k = len(domains)
        return {"alpha": np.full(k, 1 / k), "score": np.zeros(k), "total": np.zeros(k), "turns": 0}

    def initial_loss_weights(self, domains: DomainInfo) -> np.ndarray:
        return np.asarray(self.init(domains)["alpha"])

    def update(self, state: State, observations: Observations) -> tuple[Decision, State]:
        alpha, pi = np.asarray(state["alpha"]), observations.proportions
        seen = observations.tokens > 0
        if not seen.any():  # before the first step
            return Decision(pi, alpha), state
        score = np.array(state["score"])
        score[seen] = observations.excess[seen] / observations.tokens[seen]
        with np.errstate(divide="ignore"):  # an alpha of zero stays zero
            exponent = np.log(alpha) + self.reweight_eta * score
        raised = np.exp(exponent - exponent.max())
        alpha = (1 - self.reweight_eps) * raised / raised.sum() + self.reweight_eps / len(raised)
        new = {"alpha": alpha, "score": score, "total": state["total"] + alpha, "turns": state["turns"] + 1}
        return Decision(pi, alpha), new

    def result(self, state: State) -> np.ndarray | None:
        if not state["turns"]:
            return None
        mean = np.asarray(state["total"]) / state["turns"]
        return mean / mean.sum()
