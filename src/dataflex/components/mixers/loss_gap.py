"""Dynamic batch loading (Sheared LLaMA, Xia et al., arXiv 2310.06694): domains above their reference loss get more data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dataflex.components.contexts import Decision, DomainInfo, Observations, State
from dataflex.components.contracts import Mixer
from dataflex.components.paper import Paper
from dataflex.components.requests import Request
from dataflex.errors import ConfigError, DataflexError

_HELD_OUT = ("heldout_loss", "heldout_tokens")


@dataclass(frozen=True, kw_only=True)
class LossGapMixer(Mixer):
    """More of the domains whose loss is above a reference (dynamic batch loading of Sheared LLaMA).

    Algorithm 1 of the paper, as the authors' code has it. At update t, for domain i of k with loss l_t[i] and reference
    loss l_ref[i],

        Delta_t[i] = l_t[i] - l_ref[i]                                        max(Delta_t[i], 0) with clip
        alpha_t    = w_{t-1} exp(Delta_t),        w_t = (1 - c) alpha_t / sum(alpha_t) + c / k

    w_0 are the proportions that the run starts with. The paper predicts the reference losses by a
    scaling law, or takes those of another model. Its losses are those of held-out rows; those of training cost nothing, and a
    domain without a token in the interval then keeps its gap. The code lets a domain below its reference lose.

    Departures:

    Compared with `dynamic_loading_callback.py` of princeton-nlp/LLM-Shearing: with the defaults the update is the same. What
    is different:

    - Their paper, unlike their code and the defaults here, has the clip and no smoothing: `clip: true, smoothing: 0`. It
      matters: from the shares that the authors start pruning with, a domain of .67 that is 0.2 below its reference has .035
      after ten updates, and with the clip .203.
    """

    reference_losses: tuple[float, ...]
    """l_ref of every data set, in the order of `dataset`."""
    losses: str = "heldout"
    """l_t: token means over the held-out rows of a domain, or over what was trained on in the interval."""
    clip: bool = False
    """A domain below its reference counts as one at its reference, as in the paper."""
    smoothing: float = 1e-4
    """c, the part that is shared out equally; with 0 a share that has come to zero stays there."""

    paper: ClassVar[Paper | None] = Paper(
        authors="Xia et al.",
        title="Sheared LLaMA: Accelerating Language Model Pre-training via Structured Pruning",
        arxiv="2310.06694",
        venue="ICLR 2024",
    )
    example: ClassVar[Mapping[str, Any]] = {"reference_losses": [2.0, 2.0, 2.0]}

    def check(self) -> None:
        self.require_choice("losses", ("heldout", "train"))
        finite = bool(self.reference_losses) and bool(np.isfinite(self.reference_losses).all())
        self.require("reference_losses", finite, "a list of numbers, one per data set")
        self.require("smoothing", 0 <= self.smoothing <= 1, "in [0, 1]")

    def needs(self) -> frozenset[Request]:
        return frozenset(_HELD_OUT if self.losses == "heldout" else {"train_loss"})

    def check_domains(self, names: tuple[str, ...]) -> None:
        if len(self.reference_losses) != len(names):
            raise ConfigError(
                f"reference_losses: {len(self.reference_losses)} given for {len(names)} data sets ({', '.join(names)})"
            )

    def init(self, domains: DomainInfo) -> State:
        return {"gap": np.zeros(len(domains))}

    def update(self, state: State, observations: Observations) -> tuple[Decision, State]:
        gap, reference = np.array(state["gap"]), np.array(self.reference_losses)
        if self.losses == "heldout":
            losses, tokens = (observations.signals[name] for name in _HELD_OUT)
            means = np.array([token_mean(l, n) for l, n in zip(losses, tokens, strict=True)])
            if not np.isfinite(means).all():
                raise DataflexError("loss_gap: a domain has no finite held-out loss; has training diverged?")
            gap = means - reference
        else:
            seen = observations.tokens > 0
            means = observations.token_loss[seen] / observations.tokens[seen]
            gap[seen] = means - reference[seen]
            if not seen.any():
                return Decision(observations.proportions), state
        delta = np.maximum(gap, 0.0) if self.clip else gap
        alpha = observations.proportions * np.exp(delta - delta.max())
        return Decision((1 - self.smoothing) * alpha / alpha.sum() + self.smoothing / len(alpha)), {"gap": gap}


def token_mean(losses: np.ndarray, tokens: np.ndarray) -> float:
    """Of rows with token means `losses`, those that have one; NaN where none has."""
    known = np.isfinite(losses)
    return float(np.average(losses[known], weights=tokens[known])) if known.any() else np.nan
