"""Adaptive Data Optimization (Jiang et al., arXiv 2410.11820): domains whose loss still falls fast get more data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from dataflex.components.contexts import Decision, DomainInfo, Observations, State
from dataflex.components.contracts import Mixer
from dataflex.components.paper import Paper
from dataflex.components.requests import Request

if TYPE_CHECKING:
    from jaxtyping import Float, Float64

_POINTS = 1000  # of a domain's history that a curve is fitted to, evenly spaced
_HUBER = 1e-3
_STARTS = 8


@dataclass(frozen=True, kw_only=True)
class AdoMixer(Mixer):
    """More of the domains whose loss still falls fast, by a scaling law fitted to each.

    Algorithm 1 of the paper. Every domain k has a scaling law of its mean token loss after n rows of training,

        L_k(n) = eps_k + beta_k n^-alpha_k,        - dL_k / dn = alpha_k (L_k(n) - eps_k) / n,

    fitted to the losses seen so far. With the prior mu, and h the moving average of the shares that were served, at step t

        rho    ~ mu_k h_k^s alpha_k (L_k(n) - eps_k) / n,      never below min_probability
        pi_t   = (1 - gamma_2) pibar_{t-1} + gamma_2 rho
        pibar_t = t / (t + 1) pibar_{t-1} + rho / (t + 1),      h <- (1 - gamma_1) h + gamma_1 (share of k that was served)

    t counts optimizer steps. An update that comes m steps after the last one takes the m steps at once, each with the share
    and the rho of the interval: pibar <- ((t - m + 1) pibar + m rho) / (t + 1), and h keeps (1 - gamma_1)^m of itself.

    The credit h^s, n counting the rows of all domains, and a floor of 0.05 for alpha_k are those of the authors' code. mu
    are the proportions the run starts with, by default the shares that the domains have in the data. The first `fit_after`
    updates only watch, the very first `ignore` of which no curve is fitted to; curves are fitted anew every `fit_every`
    updates.

    Departures:

    Compared with yidingjiang/ado, `src/data_selectors/ado.py`. The same are the credit h^s (the code had (h (1 - h))^s until
    December 2024), the prior, the floor of 0.05 under alpha_k in the slope, n counting the rows of all domains, the floor of
    rho, and the order h, fit, rho, averages. For laws that are known, 300 steps end within 0.005 of the code: with the prior
    (.8, .15, .05) at (.903, .086, .011). What is different:

    - Where the code penalises laws outside a range, bounds are set here; its lower bound for eps, which presumes its own
      tokenizer, is dropped.
    - Means over an interval take the place of the filter it smooths single steps with.
    - The code watches 1000 steps before the first fit and fits every 1000. `fit_after`, `ignore` and `fit_every` count
      updates.
    - With `unit: tokens` the prior and h are shares of tokens; n counts rows all the same. Rows of the code have one length.
    """

    gamma_1: float = 0.1
    """How fast h follows, per optimizer step."""
    gamma_2: float = 0.1
    """Share of the newest rho in pi."""
    s: float = 0.5
    """Exponent of the credit."""
    min_probability: float = 0.01
    """Floor of rho, at most 1 / k."""
    fit_after: int = 10
    """Updates that only watch, before the first fit."""
    fit_every: int = 5
    """Updates between two fits."""
    ignore: int = 2
    """The first updates, whose losses no law is fitted to."""

    paper: ClassVar[Paper | None] = Paper(
        authors="Jiang et al.",
        title="Adaptive Data Optimization: Dynamic Sample Selection with Scaling Laws",
        arxiv="2410.11820",
    )
    default_initial: ClassVar[Literal["uniform", "stratified"]] = "stratified"

    def check(self) -> None:
        for name in ("gamma_1", "gamma_2"):
            self.require(name, 0 < getattr(self, name) <= 1, "in (0, 1]")
        self.require("s", 0 <= self.s < np.inf, "at least 0 and finite")
        self.require("min_probability", 0 <= self.min_probability < 1, "in [0, 1)")
        self.require("fit_every", self.fit_every >= 1, "at least 1")
        self.require("ignore", self.ignore >= 0, "at least 0")
        self.require(
            "fit_after", self.fit_after >= self.ignore + 3, "at least ignore + 3 (a curve has three parameters)"
        )

    def needs(self) -> frozenset[Request]:
        return frozenset({"train_loss"})

    def unobserving_updates(self, domains: int) -> int:
        return self.fit_after - 1

    def init(self, domains: DomainInfo) -> State:
        mu = np.asarray(domains.proportions, dtype=np.float64)
        return {
            "mu": mu, "h": mu, "average": mu, "turn": 0, "step": 0, "rows": np.zeros(0),
            "losses": np.zeros((0, len(domains))), "laws": np.zeros((0, 3)),
        }  # fmt: skip

    def update(self, state: State, observations: Observations) -> tuple[Decision, State]:
        pi, t, total = observations.proportions, observations.step, observations.rows.sum()
        seen = observations.tokens > 0
        if not seen.any():
            return Decision(pi), state
        losses = np.full(len(pi), observations.token_loss.sum() / observations.tokens.sum())
        if len(state["losses"]):
            losses = np.array(state["losses"][-1])
        losses[seen] = observations.token_loss[seen] / observations.tokens[seen]
        n = total + (state["rows"][-1] if len(state["rows"]) else 0.0)
        steps = t - state["step"]
        kept = (1 - self.gamma_1) ** steps
        h = kept * state["h"] + (1 - kept) * observations.realized
        new = {
            **state, "h": h, "turn": state["turn"] + 1, "step": t,
            "rows": np.append(state["rows"], n), "losses": np.vstack([state["losses"], losses]),
        }  # fmt: skip
        if new["turn"] < self.fit_after:
            return Decision(pi), new
        if not len(new["laws"]) or (new["turn"] - self.fit_after) % self.fit_every == 0:
            new["laws"] = np.stack([fit_law(new["rows"][self.ignore :], y) for y in new["losses"][self.ignore :].T])
        log_beta, alpha = new["laws"].T[[0, 2]]
        speed = np.maximum(alpha, 0.05) * np.exp(log_beta) * n**-alpha / n
        rho = state["mu"] * h**self.s * speed
        rho = at_least(rho / rho.sum() if rho.sum() > 0 else state["mu"], self.min_probability)
        average = state["average"]
        decided = (1 - self.gamma_2) * average + self.gamma_2 * rho
        new["average"] = ((t - steps + 1) * average + steps * rho) / (t + 1)
        return Decision(decided / decided.sum()), new


def at_least(p: Float[np.ndarray, " domains"], least: float) -> Float[np.ndarray, " domains"]:
    """p raised to `least` (1 / k at most), and divided by its sum."""
    raised = np.maximum(p, min(least, 1 / len(p)))
    return raised / raised.sum()


def fit_law(n: Float[np.ndarray, " points"], losses: Float[np.ndarray, " points"]) -> Float64[np.ndarray, " 3"]:
    """log beta, log eps and alpha of the law eps + beta n^-alpha nearest to `losses` at `n`.

    The Huber loss (delta 0.001) of log losses is minimised by L-BFGS from the best points of a grid, as in Hoffmann et al.,
    arXiv 2203.15556, and the authors' code. Bounds stand for the penalties of the latter: alpha in [0.001, 0.8], beta at most
    e^6.5, eps positive and at most the smallest loss seen.
    """
    from scipy.optimize import minimize

    indices = np.unique(np.linspace(0, len(n) - 1, min(len(n), _POINTS)).astype(int))
    log_n, y = np.log(n[indices]), np.log(np.maximum(losses[indices], 1e-8))

    def objective(law: Float[np.ndarray, " 3"]) -> tuple[float, Float[np.ndarray, " 3"]]:
        a, e, alpha = law
        power = a - alpha * log_n
        top = np.logaddexp(power, e)
        difference = top - y
        small = np.abs(difference) <= _HUBER
        value = np.where(small, 0.5 * difference**2, _HUBER * (np.abs(difference) - 0.5 * _HUBER))
        slope = np.where(small, difference, _HUBER * np.sign(difference))
        share = np.exp(power - top)
        return value.sum(), np.array(
            [(slope * share).sum(), (slope * (1 - share)).sum(), -(slope * share * log_n).sum()]
        )

    highest = float(y.min())
    bounds = [(-10.0, 6.5), (highest - 7.0, highest), (0.001, 0.8)]
    grid = np.stack(
        np.meshgrid(
            np.arange(-2.0, 6.0), highest - np.array([0.02, 0.1, 0.3, 0.7, 1.5, 3.0]), np.arange(0.05, 0.8, 0.1)
        ),
        -1,
    ).reshape(-1, 3)
    order = np.argsort([objective(g)[0] for g in grid], kind="stable")[:_STARTS]
    found = [minimize(objective, grid[i], jac=True, method="L-BFGS-B", bounds=bounds) for i in order]
    return np.asarray(min(found, key=lambda f: f.fun).x)
