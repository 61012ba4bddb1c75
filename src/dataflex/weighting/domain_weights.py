"""How a mixer's weights of domains become factors on the losses of tokens.

A mixer that weighs losses asks for sum_i alpha_i l_i, with l_i the mean loss over the tokens of domain i. What is minimised
is a mean over all tokens of a global batch, in which domain i has the share that its rows and their lengths give it. With tau_i
that share in the long run, a token of domain i therefore weighs alpha_i / tau_i, and as in the authors' code of DoReMi these
weights are divided by their mean over the tokens of the batch, so that the scale of the loss is that of a plain run.

Where the loss of a step is the mean over micro-batches of their means, a token counts one over the tokens of its micro-batch.
"Tokens" below are such parts then, so that tau and the mean of the weights refer to what is minimised.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from dataflex.data.rows import SAMPLE_IDS
from dataflex.distributed.collectives import ranks, sum_over_ranks
from dataflex.plan.plan import Domains
from dataflex.signals.cross_entropy import IGNORE
from dataflex.weighting.objectives import Objective


class TokenShares:
    """tau: of what carries a loss, the share of each of k domains, up to a factor.

    tau_i = p_i m_i, with p_i the proportion in force and m_i the tokens trained on for each unit of it that was served (a row,
    or a token, prompts included), over all steps so far in which domains had weights. m_i belongs to the data of the domain,
    so that it holds when proportions change. A selector that changes which rows of a domain are drawn changes it too: m_i
    then follows only as a mean over all steps. (One begun anew with every selection would rest on a single batch, which
    may lack domains.)
    """

    def __init__(self, trained: np.ndarray, served: np.ndarray) -> None:
        self.trained, self.served = np.array(trained, dtype=np.float64), np.array(served, dtype=np.float64)

    def add(self, trained: np.ndarray, served: np.ndarray) -> None:
        """Of a global batch, each float[k]: tokens that carry a loss, and what was served in the unit of the proportions."""
        self.trained, self.served = self.trained + trained, self.served + served

    def of(self, proportions: np.ndarray) -> np.ndarray:
        return proportions * self.trained / np.maximum(self.served, 1.0)


class DomainWeights:
    """Weights of domains as a mixer last gave them, and the factors on losses that they become in each step.

    pairs: whether a row has one loss, as a pair of answers has.
    """

    def __init__(self, domains: Domains, device: torch.device, objective: Objective, *, pairs: bool) -> None:
        self.domains, self.device, self.objective, self.pairs = domains, device, objective, pairs
        none = np.zeros(len(domains))
        self.alpha: np.ndarray | None = None
        """What the mean loss of each domain counts in the loss of a step, float64 [k]; None: all tokens count alike."""
        self.shares = TokenShares(none, none)

    def factors_of(
        self, batches: list[Any], num_items: Any, amounts: np.ndarray, proportions: np.ndarray
    ) -> torch.Tensor | None:
        """What the losses of each domain are multiplied by in a step, float32 [k]. Called on every rank.

        batches: of this rank. amounts: what the global batch counts of each domain in the unit of the proportions.
        """
        if self.alpha is None or not batches:
            return None
        own = torch.from_numpy(self.trained(batches, num_items)).to(self.device)
        trained = sum_over_ranks(own).cpu().numpy()
        self.shares.add(trained, amounts)
        return on_device(factors(self.alpha, self.shares.of(proportions), trained), self.device)

    def trained(self, batches: list[Any], num_items: Any) -> np.ndarray:
        """What each domain counts for in the loss of this step on this rank, if all tokens count alike, float64[k]."""
        if self.pairs:
            return trained_tokens(batches, self.domains, pairs=True)
        _, of_step = self.objective.divisor(num_items, torch.ones(()))
        found = trained_tokens(batches, self.domains, pairs=False, mean_of_each=not of_step)
        if of_step and ranks() > 1 and not self.objective.average_tokens:
            return found / max(found.sum(), 1.0)  # gradients are averaged over ranks, each with a mean of its own
        return found

    def state_dict(self) -> dict[str, Any]:
        alpha = {} if self.alpha is None else {"loss_weights": self.alpha}
        return {"trained_tokens": self.shares.trained, "trained_amounts": self.shares.served, **alpha}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        alpha = state.get("loss_weights")
        self.alpha = None if alpha is None else np.asarray(alpha, dtype=np.float64)
        if "trained_tokens" in state:
            self.shares = TokenShares(state["trained_tokens"], state["trained_amounts"])


def factors(alpha: np.ndarray, tau: np.ndarray, trained: np.ndarray) -> np.ndarray:
    """What the loss of each token is multiplied by, float64[k], with mean one over the tokens of the global batch (trained:
    of each domain). Zero where a domain has no token."""
    raw = np.where(tau > 0, alpha / np.where(tau > 0, tau, 1.0), 0.0)
    total = float(raw @ trained)
    return raw * (trained.sum() / total) if total > 0 else np.zeros_like(raw)


def trained_tokens(
    batches: Iterable[Mapping[str, Any]], domains: Domains, *, pairs: bool, mean_of_each: bool = False
) -> np.ndarray:
    """How many tokens of each domain carry a loss in the micro-batches of one rank, float64[k]; pairs: how many rows do, since
    a pair of answers, and an answer of kto, has one loss. mean_of_each: the shares of the domains in the tokens of each
    micro-batch instead, added up, where the loss is a mean of each."""
    out = np.zeros(len(domains))
    for batch in batches:
        domain_of_row = domains.of(batch[SAMPLE_IDS].cpu().numpy())
        counts = (
            np.ones(len(domain_of_row), np.int64)
            if pairs
            else (batch["labels"][:, 1:] != IGNORE).sum(dim=1).cpu().numpy()
        )
        np.add.at(out, domain_of_row, counts / max(counts.sum(), 1) if mean_of_each else counts)
    return out


def on_device(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """float32: a weight that is one in all but the last bit of float64 is exactly one."""
    return torch.as_tensor(values.astype(np.float32), device=device)
