"""DoReMi (Xie et al., arXiv 2305.10429): domain weights by group distributionally robust optimization over a reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dataflex.components.contexts import Decision, DomainInfo, Observations, State
from dataflex.components.contracts import Mixer
from dataflex.components.paper import Paper
from dataflex.components.requests import ExcessLoss, Request

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True, kw_only=True)
class DoremiMixer(Mixer):
    """Weights for the domains on which a proxy model is behind a reference model.

    Step 2 of the method, Algorithm 1 of the paper: the training of the proxy model. For the k domains and step t,

        lambda_t[i] = sum over the tokens of domain i of max(l_proxy - l_reference, 0) / number of these tokens
        alpha'_t    = alpha_{t-1} exp(eta lambda_t)
        alpha_t     = (1 - c) alpha'_t / sum(alpha'_t) + c / k

    over the tokens of the whole global batch. Rows are drawn in the proportions that the run starts with, and the proxy is
    trained on sum_i alpha[i] l_i, l_i the mean loss over the tokens of domain i. What the method is run for is the mean of
    alpha_1 .. alpha_T: `result`, the proportions to train the final model with.

    One forward pass gives the losses of a step and trains on them, so step t is weighted by alpha_{t-1}; the paper weighs it
    by alpha_t, from the same losses. A domain of which a batch has no token keeps its lambda (as the authors' code does).

    The reference model is that of step 1 of the method. reweight_eta is eta, and reweight_eps is c: 1 and 0.001 in the paper.

    Departures:

    Compared with `doremi/trainer.py` of sangmichaelxie/doremi. The same are the clip at 0 per token, the mean over the tokens
    of a domain, a lambda that stays where a batch has no token of the domain, eta and c, and the mean of all alpha. What is
    different:

    - One forward pass gives the losses of a step and trains on them, so step t is weighted by alpha_(t-1) where the paper,
      with a second pass, uses alpha_t.
    - Their weights are alpha divided by the share of rows, over the mean of these weights on the tokens of a batch. Their
      rows all have one length; here the share is that of tokens, which is the same for such rows.
    - They divide by the mean over the tokens of each micro-batch, here over those of the global batch.
    """

    reference_model_path: str
    """The reference model: a directory or a name on the hub, or a LoRA adapter with its base."""
    reference_store: str | None = None
    """Where the losses of the reference model are kept; runs that share it share them; null:
    `<output_dir>/dataflex/reference`."""
    reweight_eta: float = 1.0
    """Step size eta."""
    reweight_eps: float = 1e-3
    """Smoothing c."""

    paper: ClassVar[Paper | None] = Paper(
        authors="Xie et al.",
        title="DoReMi: Optimizing Data Mixtures Speeds Up Language Model Pretraining",
        arxiv="2305.10429",
        venue="NeurIPS 2023",
    )
    example: ClassVar[Mapping[str, Any]] = {"reference_model_path": "path/to/reference"}
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

    def initial_loss_weights(self, domains: DomainInfo) -> Float[np.ndarray, " domains"]:
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

    def result(self, state: State) -> Float[np.ndarray, " domains"] | None:
        if not state["turns"]:
            return None
        mean = np.asarray(state["total"]) / state["turns"]
        return mean / mean.sum()
