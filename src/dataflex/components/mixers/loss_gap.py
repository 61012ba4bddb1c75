"""Dynamic batch loading (Sheared LLaMA, Xia et al., arXiv 2310.06694): domains above their reference loss get more data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dataflex.components.contexts import Decision, DomainInfo, Observations, State
from dataflex.components.contracts import Mixer
from dataflex.components.requests import Request
from dataflex.errors import ConfigError, DataflexError

if TYPE_CHECKING:
    from jaxtyping import Float

_HELD_OUT = ("heldout_loss", "heldout_tokens")


@dataclass(frozen=True, kw_only=True)
class LossGapMixer(Mixer):
    """Algorithm 1 of the paper, as the authors' code has it. At update t, for domain i of k with loss l_t[i] and reference
    loss l_ref[i],

        Delta_t[i] = l_t[i] - l_ref[i]                                        max(Delta_t[i], 0) with clip
        alpha_t    = w_{t-1} exp(Delta_t),        w_t = (1 - c) alpha_t / sum(alpha_t) + c / k

    w_0 are the proportions that the run starts with. reference_losses: l_ref in the order of `dataset`; the paper predicts
    them by a scaling law, or takes those of another model. losses: `heldout`, token means over the held-out rows, as in the
    paper; or `train`, token means over the interval, which cost nothing (a domain without a token keeps its gap).

    clip: the paper's algorithm, where a domain below its reference counts as one at its reference; the code lets it lose.
    smoothing: c, 1e-4 in the code and 0 in the paper. With 0 a share that has become zero stays zero.
    """

    reference_losses: tuple[float, ...]
    losses: str = "heldout"
    clip: bool = False
    smoothing: float = 1e-4

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


def token_mean(losses: Float[np.ndarray, " rows"], tokens: Float[np.ndarray, " rows"]) -> float:
    """Of rows with token means `losses`, those that have one; NaN where none has."""
    known = np.isfinite(losses)
    return float(np.average(losses[known], weights=tokens[known])) if known.any() else np.nan
