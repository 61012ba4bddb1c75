"""What a mixer's weights of domains become in the loss: sum_i alpha_i l_i, whatever the lengths of rows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dataflex.components.contexts import Decision
from dataflex.data.rows import SAMPLE_IDS
from dataflex.deciding.mixing import Mixing
from dataflex.errors import DataflexError
from dataflex.plan.plan import Domains
from dataflex.record.remarks import Remarks
from dataflex.weighting import domain_weights
from dataflex.weighting.domain_weights import DomainWeights, TokenShares, factors, on_device, trained_tokens
from dataflex.weighting.objectives import Objective

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
    shares = trained_tokens(batches, domains, pairs=False, mean_of_each=True)
    assert shares.tolist() == pytest.approx([5 / 6, 1 / 6 + 1], abs=1e-15)
    empty: list[dict[str, Any]] = [{SAMPLE_IDS: torch.tensor([2]), "labels": torch.full((1, 4), -100)}]
    assert trained_tokens(empty, domains, pairs=False, mean_of_each=True).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("kind, accepts, scaled, of_step", [
    ("smoothed", True, False, False), ("smoothed", True, True, True), ("asft", True, False, False),
    ("cross_entropy", True, False, True), ("cross_entropy", False, False, False),
])  # fmt: skip
def test_a_domain_counts_by_its_weight_where_each_micro_batch_has_its_own_mean(
    kind: str, accepts: bool, scaled: bool, of_step: bool
) -> None:
    """Rows of 100, 400 and 2000 tokens, one in every micro-batch: with a mean of each, a row counts alike whatever its length.
    The share of a domain in the loss of a step, as the trainer divides it, is its weight."""
    domains, p, rng = Domains(("a", "b", "c"), (1, 1, 1)), np.array([0.5, 0.3, 0.2]), np.random.default_rng(0)
    objective = Objective(kind, accepts_items=accepts, fix_scaling=scaled)
    run = DomainWeights(domains, torch.device("cpu"), objective, pairs=False)
    batches = [{SAMPLE_IDS: torch.tensor([d]), "labels": torch.ones((1, n + 1))} for d, n in enumerate(LENGTHS)]
    shares, says = TokenShares(np.zeros(3), np.zeros(3)), []
    for _ in range(400):
        drawn = rng.choice(3, 30, p=p)
        taken = [batches[d] for d in drawn]
        items = int(LENGTHS[drawn].sum())
        trained = run.trained(taken, items)
        shares.add(trained, np.bincount(drawn, minlength=3))
        weights, say = factors(ALPHA, shares.of(p), trained), np.zeros(3)
        for d in drawn:  # each loss is 1: what the domain adds to the loss of the step
            tokens = torch.tensor(int(LENGTHS[d]))
            by, shared = objective.divisor(items, tokens)
            assert shared is of_step
            say[d] += weights[d] * float(tokens) / float(by) / (1 if shared else len(drawn))
        says.append(say)
    np.testing.assert_allclose(np.sum(says, axis=1), 1.0, rtol=1e-9)
    np.testing.assert_allclose(np.mean(says, axis=0), ALPHA, atol=0.02)


def test_each_rank_with_a_mean_of_its_own_counts_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = Objective(average_tokens=False)
    run = DomainWeights(Domains(("a", "b"), (1, 1)), torch.device("cpu"), objective, pairs=False)
    batches = [{SAMPLE_IDS: torch.tensor([d]), "labels": torch.ones((1, n))} for d, n in ((0, 31), (1, 11))]
    assert run.trained(batches, 40).tolist() == [30, 10]
    monkeypatch.setattr(domain_weights, "ranks", lambda: 2)
    assert run.trained(batches, 40).tolist() == [0.75, 0.25]


def mixing(spec: Any, domains: Domains, recorder: Any = None, plan: Any = None) -> Mixing:
    """Of a run with weights of domains, whose losses are all zero."""
    serving = SimpleNamespace(domains=domains, plan=plan, position=lambda step: step, origin=(0, 0), global_batch=1)
    return Mixing(
        spec,
        lambda: None,  # type: ignore[arg-type, return-value]
        lambda request: [],
        serving=serving,  # type: ignore[arg-type]
        recorder=recorder,
        sums=SimpleNamespace(take=lambda: np.zeros((len(domains), 5))),  # type: ignore[arg-type]
        weights=DomainWeights(domains, torch.device("cpu"), Objective(), pairs=False),
        signals=[],
    )


TWO = Domains(("a", "b"), (5, 5))


@pytest.mark.parametrize("wrong", [[1.0, 2.0], [0.0, 0.0, 0.0], [1.0, -1.0, 1.0], [1.0, float("nan"), 1.0]])
def test_weights_that_a_run_begins_with_are_checked(wrong: list[float]) -> None:
    component = SimpleNamespace(initial_loss_weights=lambda _: np.array(wrong))
    run = mixing(SimpleNamespace(name="mine", component=component), Domains(("a", "b", "c"), (1, 1, 1)))
    with pytest.raises(DataflexError, match="mix: mine must return 3 non-negative loss weights"):
        run.begin_weights()


def test_what_a_mixer_that_pauses_its_weights_knew_is_kept() -> None:
    """Between two decisions with weights, one without: the shares, and what was served since, come back as they were."""
    spec = SimpleNamespace(name="mine", unit="tokens", component=SimpleNamespace(needs=frozenset()))

    def made(shares: TokenShares, amounts: list[float], decided: list[float]) -> Mixing:
        run = mixing(spec, TWO)
        run.weights.shares, run.asked = shares, np.array([0.5, 0.5])  # type: ignore[union-attr]
        run._amounts, run._amounts_decided = np.array(amounts), np.array(decided)
        return run

    saved = made(TokenShares(np.array([7.0, 9.0]), np.array([2.0, 3.0])), [1, 2], [5, 6]).state_dict()
    run = made(TokenShares(np.zeros(2), np.zeros(2)), [0, 0], [0, 0])
    run.load_state_dict(saved)
    weights: Any = run.weights
    assert weights.shares.trained.tolist() == [7, 9] and weights.shares.served.tolist() == [2, 3]
    assert run._amounts.tolist() == [1, 2] and run._amounts_decided.tolist() == [5, 6] and weights.alpha is None
    older = {k: v for k, v in saved.items() if k not in ("amounts", "amounts_decided", "trained_tokens")}
    again = made(TokenShares(np.zeros(2), np.zeros(2)), [0, 0], [0, 0])
    again.load_state_dict(older)  # by tokens, of a mixer that does not read what was served: from zero
    assert again._amounts.tolist() == [0, 0] == again._amounts_decided.tolist()


def test_the_ledger_has_all_that_was_served_since_the_last_decision() -> None:
    """An update that decides nothing is no line, and what it was told of belongs to the next one."""
    told, recorded = [], []

    def update(state: Any, observations: Any) -> Any:
        told.append(observations.realized.tolist())
        return (None if len(told) in (1, 3) else Decision(observations.proportions)), state

    def decision(step: int, position: int, name: str, decided: Any, source: Any, *_: Any) -> None:
        recorded.append(source["realized"].tolist())

    component = SimpleNamespace(
        needs_now=lambda _: frozenset(), update=update, seed=0, moves_proportions=False, needs=frozenset()
    )
    schedule = SimpleNamespace(due=lambda _: True, turn=lambda _: 0)
    stage = SimpleNamespace(proportions=[0.5, 0.5], index=0)
    run = mixing(
        SimpleNamespace(component=component, name="mine", settled=lambda *_: schedule),
        TWO,
        SimpleNamespace(remarks=Remarks(), decision=decision),
        SimpleNamespace(stage_at=lambda _: stage, stages=[stage], seed=0),
    )
    for step, amounts in enumerate(([1, 3], [4, 4], [2, 0], [6, 2])):
        run.count(np.array(amounts))
        run.act(step, SimpleNamespace(learning_rate=0.1))  # type: ignore[arg-type]
    assert told == [
        [0.25, 0.75],
        [0.5, 0.5],
        [1.0, 0.0],
        [0.75, 0.25],
    ]  # a mixer is told of what came since the last one
    assert recorded == [[1 + 4, 3 + 4], [2 + 6, 0 + 2]]
