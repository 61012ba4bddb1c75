"""Dynamic batch loading (Sheared LLaMA, Xia et al., arXiv 2310.06694): domains above their reference loss get more data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dataflex.components.contracts import Decision, DomainInfo, Mixer, Observations, State
from dataflex.components.requests import HELD_OUT, Request
from dataflex.errors import ConfigError, DataflexError


@dataclass(frozen=True, kw_only=True)
class LossGapMixer(Mixer):
    """Algorithm 1 of the paper. At update t, for domain i with loss l_t[i] and reference loss l_ref[i],

        Delta_t[i] = max(l_t[i] - l_ref[i], 0)
        alpha_t    = w_{t-1} exp(Delta_t),        w_t = alpha_t / sum(alpha_t)

    w_0 are the proportions that the run starts with. reference_losses: l_ref in the order of `dataset`; the paper predicts
    them by a scaling law, or takes those of another model. losses: `heldout`, token means over the held-out rows, as in the
    paper; or `train`, token means over the interval, which cost nothing (a domain without a token keeps its gap).
    """

    reference_losses: tuple[float, ...]
    losses: str = "heldout"

    def check(self) -> None:
        self.require_choice("losses", ("heldout", "train"))
        finite = bool(self.reference_losses) and bool(np.isfinite(self.reference_losses).all())
        self.require("reference_losses", finite, "a list of numbers, one per data set")

    @property
    def needs(self) -> frozenset[Request]:  # type: ignore[override]
        return frozenset(HELD_OUT if self.losses == "heldout" else {"train_loss"})

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
            losses, tokens = (observations.signals[name] for name in HELD_OUT)
            means = np.array([token_mean(l, n) for l, n in zip(losses, tokens, strict=True)])
            if not np.isfinite(means).all():
                raise DataflexError("loss_gap: a domain has no finite held-out loss; has training diverged?")
            gap = np.maximum(means - reference, 0.0)
        else:
            seen = observations.tokens > 0
            means = observations.token_loss[seen] / observations.tokens[seen]
            gap[seen] = np.maximum(means - reference[seen], 0.0)
            if not seen.any():
                return Decision(observations.proportions), state
        alpha = observations.proportions * np.exp(gap - gap.max())
        return Decision(alpha / alpha.sum()), {"gap": gap}


def token_mean(losses: np.ndarray, tokens: np.ndarray) -> float:
    """Of rows with token means `losses`, those that have one; NaN where none has."""
    known = np.isfinite(losses)
    return float(np.average(losses[known], weights=tokens[known])) if known.any() else np.nan
