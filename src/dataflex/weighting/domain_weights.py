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
from dataflex.plan.plan import Domains
from dataflex.signals.cross_entropy import IGNORE


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
        places = domains.of(batch[SAMPLE_IDS].cpu().numpy())
        counts = (
            np.ones(len(places), np.int64) if pairs else (batch["labels"][:, 1:] != IGNORE).sum(dim=1).cpu().numpy()
        )
        np.add.at(out, places, counts / max(counts.sum(), 1) if mean_of_each else counts)
    return out


def on_device(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """float32: a weight that is one in all but the last bit of float64 is exactly one."""
    return torch.as_tensor(values.astype(np.float32), device=device)
