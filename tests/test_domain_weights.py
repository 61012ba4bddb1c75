"""What a mixer's weights of domains become in the loss: sum_i alpha_i l_i, whatever the lengths of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dataflex.trainer.domain_weights import TokenShares, factors, on_device, trained_tokens
from dataflex.trainer.plan import Domains
from dataflex.trainer.rows import SAMPLE_IDS

ALPHA = np.array([0.7, 0.2, 0.1])
LENGTHS = np.array([100, 400, 2000])  # trained tokens of a row of each domain, in the mean


@pytest.mark.parametrize("unit", ["samples", "tokens"])
@pytest.mark.parametrize("proportions", [[1 / 3, 1 / 3, 1 / 3], [0.5, 0.3, 0.2]])
def test_a_domain_counts_by_its_weight_whatever_the_length_of_its_rows(unit: str, proportions: list[float]) -> None:
    """300 batches of 120 rows of uneven lengths: the say of each domain in the loss, and the scale of the loss."""
    p, rng, shares = np.array(proportions), np.random.default_rng(0), TokenShares(np.zeros(3), np.zeros(3))
    total, say = 2 * LENGTHS, []  # half of a row is its prompt
    rows = 120 * p if unit == "samples" else 120 * (p / total) / (p / total).sum()
    owed = np.zeros(3)
    for _ in range(300):
        owed += rows
        drawn = np.floor(owed + 1e-9).astype(int)
        owed -= drawn
        trained = np.array([rng.uniform(0.7, 1.3, n).sum() * m for n, m in zip(drawn, LENGTHS, strict=True)])
        shares.add(trained, drawn if unit == "samples" else 2 * trained)
        found = factors(ALPHA, shares.of(p), trained)
        say.append(found * trained / trained.sum())
    np.testing.assert_allclose(np.sum(say, axis=1), 1.0, rtol=1e-12)  # of every batch
    np.testing.assert_allclose(np.mean(say, axis=0), ALPHA, atol=0.01)


def test_equal_weights_of_rows_of_equal_length_are_one_to_the_bit() -> None:
    shares = TokenShares(np.zeros(3), np.zeros(3))
    for rows in ([3, 4, 1], [2, 3, 3]):
        trained = 63 * np.array(rows)
        shares.add(trained, np.array(rows))
        found = factors(np.full(3, 1 / 3), shares.of(np.full(3, 1 / 3)), trained)
        assert on_device(found, torch.device("cpu")).tolist() == [1.0, 1.0, 1.0]


def test_domains_without_a_token_or_a_share_weigh_nothing() -> None:
    shares = TokenShares(np.zeros(3), np.zeros(3))
    shares.add(np.array([50, 0, 0]), np.array([5, 5, 0]))
    assert factors(ALPHA, shares.of(np.array([0.5, 0.5, 0.0])), np.array([50, 0, 0])).tolist() == [1.0, 0.0, 0.0]
    assert factors(np.array([0.0, 1.0, 0.0]), np.ones(3), np.array([50, 0, 0])).tolist() == [0.0, 0.0, 0.0]


def test_tokens_are_counted_by_domain() -> None:
    """The first token of a row is predicted from nothing; a pair has one loss."""
    domains, labels = Domains(("a", "b"), (2, 2)), torch.tensor([[-100, -100, 3, 4], [5, 6, -100, -100], [1, 2, 3, 4]])
    batches: list[dict[str, Any]] = [
        {SAMPLE_IDS: torch.tensor([0, 3, 1]), "labels": labels},
        {SAMPLE_IDS: torch.tensor([2]), "labels": labels[2:]},
    ]
    assert trained_tokens(batches, domains, pairs=False).tolist() == [2 + 3, 1 + 3]
    assert trained_tokens(batches, domains, pairs=True).tolist() == [2, 2]
