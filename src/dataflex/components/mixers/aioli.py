"""Aioli (Chen et al., arXiv 2411.05735): how each domain moves the losses of all is measured while training, and acted on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from dataflex.components.contexts import Decision, DomainInfo, Observations, State
from dataflex.components.contracts import Mixer
from dataflex.components.paper import Paper
from dataflex.components.requests import Request
from dataflex.errors import ConfigError, DataflexError

if TYPE_CHECKING:
    from jaxtyping import Float64


@dataclass(frozen=True, kw_only=True)
class AioliMixer(Mixer):
    """How each domain moves the losses of all domains is measured while training, and the mixture follows.

    Algorithm 1 of the paper, with LearnParams (Algorithm 2), a step of it per update.

    A round begins with `sweeps` times k probes: for one interval each, domain j is drawn with proportion one_hot and the
    others share the rest, P[j]. The fall of the held-out loss of domain i during the probes of j, averaged over sweeps, is
    B[i, j]; the linear mixing law B[i, j] = sum_m A[i, m] P[j, m] gives A. Then, for the rest of the round,

        A    <- (A - min(A, 0)) / sum                       (normalise)
        Abar  = (1 - ema) A + ema Abar,    p_j ~ exp(eta sum_i Abar[i, j])          with ema (as the authors train)
        p_j   ~ p_j exp(eta sum_i A[i, j])                                         without (ema: null)

    An interval is one probe: with k domains a round lasts sweeps k / probe_share intervals.

    Departures:

    Compared with a transcription of HazyResearch/aioli: the law, its shift by the smallest of all entries, the average over
    rounds, and the mixture that holds between probes are the same. What is different:

    - They probe each domain in 2 to 4 sweeps of a round; `sweeps` is 1 here, which costs less and is noisier.
    - Their `eta` is 0.2 for two domains and 1 for seven; here it is 0.2 unless it is given.
    - Domains are probed in the order of `dataset`; they draw an order for every sweep.
    """

    eta: float = 0.2
    """How far the mixture follows A."""
    ema: float | None = 0.1
    """What the rounds before count; null: no average, and p is multiplied from round to round, as in the paper's Algorithm
    1."""
    one_hot: float = 0.75
    """Share of the probed domain in its probe; not 1/k."""
    sweeps: int = 1
    """Probes of each domain in a round."""
    probe_share: float = 0.2
    """Part of a round that is spent on probes."""
    normalise: bool = True
    """Shift A to non-negative numbers and divide it by its sum."""

    paper: ClassVar[Paper | None] = Paper(
        authors="Chen et al.",
        title="Aioli: A Unified Optimization Framework for Language Model Data Mixing",
        arxiv="2411.05735",
        venue="ICLR 2025",
    )

    def check(self) -> None:
        self.require("eta", 0 <= self.eta < np.inf, "at least 0 and finite")
        self.require("ema", self.ema is None or 0 <= self.ema < 1, "in [0, 1), or null")
        self.require("one_hot", 0 < self.one_hot <= 1, "in (0, 1]")
        self.require("sweeps", self.sweeps >= 1, "at least 1")
        self.require("probe_share", 0 < self.probe_share < 1, "in (0, 1)")

    def needs(self) -> frozenset[Request]:
        return frozenset({"heldout_loss"})

    def unobserving_updates(self, domains: int) -> int:
        """The probes of the first round."""
        return self.sweeps * domains

    def init(self, domains: DomainInfo) -> State:
        k = len(domains)
        if k > 1 and abs(self.one_hot - 1 / k) < 1e-9:
            raise ConfigError(
                f"dataflex.mix.one_hot must not be 1 / {k}, with which all probes of {k} domains are the same"
            )
        return {
            "phase": 0, "p": np.asarray(domains.proportions, dtype=np.float64), "before": np.zeros(k),
            "falls": np.zeros((k, k)), "law": np.zeros((0, k)),
        }  # fmt: skip

    def probes(self, k: int) -> Float64[np.ndarray, "k k"]:
        """P: the mixture of each probe."""
        if k == 1:
            return np.ones((1, 1))
        rest = (1 - self.one_hot) / (k - 1)
        return np.full((k, k), rest) + (self.one_hot - rest) * np.eye(k)

    def needs_now(self, state: State) -> frozenset[Request]:
        return self.needs() if state["phase"] <= self.sweeps * len(state["p"]) else frozenset()

    def update(self, state: State, observations: Observations) -> tuple[Decision, State]:
        k, phase, new = len(state["p"]), state["phase"], dict(state)
        probed = self.sweeps * k
        held = max(1, round(probed * (1 - self.probe_share) / self.probe_share))
        new["phase"] = (phase + 1) % (probed + held)
        if phase > probed:
            return Decision(state["p"]), new
        losses = np.array([np.nanmean(values) for values in observations.signals["heldout_loss"]])
        if not np.isfinite(losses).all():
            raise DataflexError("aioli: a domain has no finite held-out loss; has training diverged?")
        falls = np.array(state["falls"]) if phase else np.zeros((k, k))
        if phase:
            falls[:, (phase - 1) % k] += (state["before"] - losses) / self.sweeps
        new |= {"before": losses, "falls": falls}
        if phase < probed:
            return Decision(self.probes(k)[phase % k]), new
        law = np.linalg.solve(self.probes(k), falls.T).T
        if self.normalise:
            law = law - min(law.min(), 0.0)
            law = law / law.sum() if law.sum() > 0 else np.full((k, k), 1 / k**2)
        if self.ema is not None and len(state["law"]):
            law = (1 - self.ema) * law + self.ema * state["law"]
        exponent = self.eta * law.sum(axis=0)
        p = np.exp(exponent - exponent.max()) * (1.0 if self.ema is not None else state["p"])
        new |= {"law": law, "p": p / p.sum()}
        return Decision(new["p"]), new
