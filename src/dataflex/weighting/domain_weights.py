"""Weights of domains, set by a mixer, as factors on the losses of tokens.

A mixer that weighs losses asks for sum_i alpha_i l_i, with l_i the mean loss over the tokens of domain i. Training
minimises a mean over all tokens of a global batch. Let tau_i be the long-run share of domain i in these tokens. Then a
token of domain i weighs alpha_i / tau_i. As in the authors' code of DoReMi, these weights are divided by their mean
over the tokens of the batch, so the scale of the loss is that of a plain run.

Where the loss of a step is the mean over micro-batches of their means, a token counts one over the tokens of its
micro-batch. "Tokens" below then means such parts, so that tau and the mean of the weights fit the minimised loss.
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
    """tau: the share of each of k domains in the trained tokens, up to a factor.

    tau_i = p_i m_i. Here p_i is the proportion in force. m_i is the number of tokens trained on per served row, or per
    served token (prompts included). It covers all steps so far in which domains had weights. m_i belongs to the data of
    the domain, so it holds when proportions change. A selector changes which rows are drawn, and so m_i; it then
    follows as a mean over all steps. A fresh count after every selection would rest on a single batch, which may lack
    domains.

    Attributes:
        trained: Tokens trained on, float64[k].
        served: Served rows or tokens, float64[k].
    """

    def __init__(self, trained: np.ndarray, served: np.ndarray) -> None:
        self.trained, self.served = np.array(trained, dtype=np.float64), np.array(served, dtype=np.float64)

    def add(self, trained: np.ndarray, served: np.ndarray) -> None:
        """Of a global batch, each float[k]: tokens that carry a loss, and what was served in the unit of the proportions."""
        self.trained, self.served = self.trained + trained, self.served + served

    def of(self, proportions: np.ndarray) -> np.ndarray:
        return proportions * self.trained / np.maximum(self.served, 1.0)


class DomainWeights:
    """The last loss weights of a mixer, and the factors on losses that follow in each step.

    Args:
        pairs: Whether a row has one loss, as a pair of answers has.

    Attributes:
        alpha: The loss weight of each domain, float64 [k]; None: all tokens count alike.
    """

    def __init__(self, domains: Domains, device: torch.device, objective: Objective, *, pairs: bool) -> None:
        self.domains, self.device, self.objective, self.pairs = domains, device, objective, pairs
        none = np.zeros(len(domains))
        self.alpha: np.ndarray | None = None
        self.shares = TokenShares(none, none)

    def factors_of(
        self, batches: list[Any], num_items: Any, amounts: np.ndarray, proportions: np.ndarray
    ) -> torch.Tensor | None:
        """The factors on the losses of each domain in a step, float32 [k]. Called on every rank.

        Args:
            batches: Micro-batches of this rank.
            amounts: What the global batch counts of each domain in the unit of the proportions, float[k].
            proportions: The proportions in force, float[k].
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
    """Trainable tokens of each domain in the micro-batches of one rank, float64[k].

    Args:
        pairs: Count rows instead: a pair of answers, and an answer of kto, has one loss.
        mean_of_each: Add up the domains' shares in the tokens of each micro-batch instead, where the loss is a mean of
            each.
    """
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
