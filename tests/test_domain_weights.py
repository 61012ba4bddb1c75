"""What a mixer's weights of domains become in the loss: sum_i alpha_i l_i, whatever the lengths of rows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dataflex.components.contracts import Decision
from dataflex.data.rows import SAMPLE_IDS
from dataflex.errors import DataflexError
from dataflex.plan.plan import Domains
from dataflex.record.remarks import Remarks
from dataflex.trainer import mix
from dataflex.trainer.limits import LimitedTrainer
from dataflex.trainer.mix import MixTrainer
from dataflex.weighting.domain_weights import TokenShares, factors, on_device, trained_tokens
from dataflex.weighting.objectives import divisor

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
    weight = SimpleNamespace(fix_scaling=True) if scaled else None
    run: Any = SimpleNamespace(
        config=SimpleNamespace(weight=weight), model_accepts_loss_kwargs=accepts, _objective_kind=kind, stage_name="sft",
        rows=SimpleNamespace(domains=domains), args=SimpleNamespace(average_tokens_across_devices=True),
    )  # fmt: skip
    batches = [{SAMPLE_IDS: torch.tensor([d]), "labels": torch.ones((1, n + 1))} for d, n in enumerate(LENGTHS)]
    shares, says = TokenShares(np.zeros(3), np.zeros(3)), []
    for _ in range(400):
        drawn = rng.choice(3, 30, p=p)
        taken = [batches[d] for d in drawn]
        items = int(LENGTHS[drawn].sum())
        trained = MixTrainer._trained(run, taken, items)
        shares.add(trained, np.bincount(drawn, minlength=3))
        weights, say = factors(ALPHA, shares.of(p), trained), np.zeros(3)
        for d in drawn:  # each loss is 1: what the domain adds to the loss of the step
            tokens = torch.tensor(int(LENGTHS[d]))
            by, shared = divisor(run, kind, items, tokens)
            assert shared is of_step
            say[d] += weights[d] * float(tokens) / float(by) / (1 if shared else len(drawn))
        says.append(say)
    np.testing.assert_allclose(np.sum(says, axis=1), 1.0, rtol=1e-9)
    np.testing.assert_allclose(np.mean(says, axis=0), ALPHA, atol=0.02)


def test_each_rank_with_a_mean_of_its_own_counts_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    run: Any = SimpleNamespace(
        config=SimpleNamespace(weight=None), model_accepts_loss_kwargs=True, _objective_kind="cross_entropy",
        stage_name="sft", rows=SimpleNamespace(domains=Domains(("a", "b"), (1, 1))),
        args=SimpleNamespace(average_tokens_across_devices=False),
    )  # fmt: skip
    batches = [{SAMPLE_IDS: torch.tensor([d]), "labels": torch.ones((1, n))} for d, n in ((0, 31), (1, 11))]
    assert MixTrainer._trained(run, batches, 40).tolist() == [30, 10]
    monkeypatch.setattr(mix, "ranks", lambda: 2)
    assert MixTrainer._trained(run, batches, 40).tolist() == [0.75, 0.25]


@pytest.mark.parametrize("wrong", [[1.0, 2.0], [0.0, 0.0, 0.0], [1.0, -1.0, 1.0], [1.0, float("nan"), 1.0]])
def test_weights_that_a_run_begins_with_are_checked(wrong: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    component = SimpleNamespace(initial_loss_weights=lambda _: np.array(wrong))
    spec = SimpleNamespace(name="mine", component=component)
    run: Any = object.__new__(MixTrainer)
    vars(run).update(config=SimpleNamespace(mix=spec), served=np.zeros(3), _domain_info=lambda: None)
    monkeypatch.setattr(LimitedTrainer, "_open_first_stage", lambda self: None)
    with pytest.raises(DataflexError, match="mix: mine must return 3 non-negative loss weights"):
        MixTrainer._open_first_stage(run)


def test_what_a_mixer_that_pauses_its_weights_knew_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two decisions with weights, one without: the shares, and what was served since, come back as they were."""
    monkeypatch.setattr(LimitedTrainer, "_extra_state", lambda self: {"served": np.array([3, 4])})
    spec = SimpleNamespace(name="mine", unit="tokens", component=SimpleNamespace(needs=frozenset()))

    def made(shares: TokenShares, amounts: list[float], decided: list[float]) -> Any:
        run: Any = object.__new__(MixTrainer)
        vars(run).update(
            config=SimpleNamespace(mix=spec), states={"mix": {}}, served=np.zeros(2), loss_weights=None, _shares=shares,
            _amounts=np.array(amounts), _amounts_decided=np.array(decided), _asked=np.array([0.5, 0.5]),
        )  # fmt: skip
        return run

    saved = MixTrainer._extra_state(made(TokenShares(np.array([7.0, 9.0]), np.array([2.0, 3.0])), [1, 2], [5, 6]))
    run = made(TokenShares(np.zeros(2), np.zeros(2)), [0, 0], [0, 0])
    MixTrainer._restore_extra(run, saved)
    assert run._shares.trained.tolist() == [7, 9] and run._shares.served.tolist() == [2, 3]
    assert run._amounts.tolist() == [1, 2] and run._amounts_decided.tolist() == [5, 6] and run.loss_weights is None
    older = {k: v for k, v in saved.items() if k not in ("amounts", "amounts_decided", "trained_tokens")}
    again = made(TokenShares(np.zeros(2), np.zeros(2)), [0, 0], [0, 0])
    MixTrainer._restore_extra(again, older)  # by tokens, of a mixer that does not read what was served: from zero
    assert again._amounts.tolist() == [0, 0] == again._amounts_decided.tolist()


def test_the_ledger_has_all_that_was_served_since_the_last_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    """An update that decides nothing is no line, and what it was told of belongs to the next one."""
    told, recorded = [], []

    def update(state: Any, observations: Any) -> Any:
        told.append(observations.realized.tolist())
        return (None if len(told) in (1, 3) else Decision(observations.proportions)), state

    component = SimpleNamespace(
        needs_now=lambda _: frozenset(), update=update, seed=0, moves_proportions=False, needs=frozenset()
    )
    stage = SimpleNamespace(proportions=[0.5, 0.5], index=0)
    run: Any = object.__new__(MixTrainer)
    zeros = np.zeros(2)
    vars(run).update(
        config=SimpleNamespace(mix=SimpleNamespace(component=component, name="mine"), signals=lambda _: []),
        _mix_schedule=SimpleNamespace(due=lambda _: True, turn=lambda _: 0), states={"mix": {}}, loss_weights=None,
        rows=SimpleNamespace(domains=Domains(("a", "b"), (5, 5))), sums=SimpleNamespace(take=lambda: np.zeros((2, 5))),
        plan=SimpleNamespace(stage_at=lambda _: stage, stages=[stage], seed=0), position=lambda step: step,
        _get_learning_rate=lambda: 0.1, _asked=zeros, remarks=Remarks(), _amounts=zeros, _amounts_decided=zeros,
        _log_decision=lambda step, name, decided, source, *_: recorded.append(source["realized"].tolist()),
    )  # fmt: skip
    monkeypatch.setattr(LimitedTrainer, "_mix", lambda self, step: None)
    monkeypatch.setattr(LimitedTrainer, "_count", lambda self, rows, amounts: None)
    for step, amounts in enumerate(([1, 3], [4, 4], [2, 0], [6, 2])):
        MixTrainer._count(run, np.array(amounts), np.array(amounts))
        MixTrainer._mix(run, step)
    assert told == [
        [0.25, 0.75],
        [0.5, 0.5],
        [1.0, 0.0],
        [0.75, 0.25],
    ]  # a mixer is told of what came since the last one
    assert recorded == [[1 + 4, 3 + 4], [2 + 6, 0 + 2]]
