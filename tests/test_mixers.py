"""The update of every mixer against values worked out by hand or by a plain transcription of its formula."""

from __future__ import annotations

from math import exp, log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dataflex.components import registry
from dataflex.components.contexts import DomainInfo, Observations, WeightContext
from dataflex.components.contracts import Component
from dataflex.components.mixers.ado import AdoMixer, at_least, fit_law
from dataflex.components.mixers.aioli import AioliMixer
from dataflex.components.mixers.doge import DogeMixer
from dataflex.components.mixers.doremi import DoremiMixer
from dataflex.components.mixers.dynamic_moe import DynamicMoeMixer
from dataflex.components.mixers.fixed import ProportionalMixer, TemperatureMixer, UniformMixer
from dataflex.components.mixers.loss_gap import LossGapMixer
from dataflex.components.weighters.domain import DomainWeighter
from dataflex.config import parse
from dataflex.errors import ConfigError, DataflexError


def info(k: int, proportions: Any = None, sizes: Any = None) -> DomainInfo:
    return DomainInfo(
        tuple(f"d{i}" for i in range(k)),
        np.array(sizes if sizes is not None else range(10, 10 + k)),
        np.full(k, 1 / k) if proportions is None else np.array(proportions),
    )


def observe(
    pi: Any, *, step: int = 1, learning_rate: float = 0.0, signals: Any = None, realized: Any = None, **sums: Any
) -> Observations:
    """realized: by rows unless given."""
    none = np.zeros(len(pi))
    given = {
        name: np.asarray(sums.get(name, none), dtype=np.float64) for name in ("rows", "loss", "tokens", "token_loss")
    }
    return Observations(
        step=step, update=0, proportions=np.asarray(pi, dtype=np.float64), **given, signals=signals or {},
        rng=np.random.default_rng(0), excess=np.asarray(sums.get("excess", none), dtype=np.float64),
        realized=given["rows"] / max(given["rows"].sum(), 1) if realized is None else np.asarray(realized),
        learning_rate=learning_rate,
    )  # fmt: skip


# -- proportions by size ---------------------------------------------------------------------------------------------


def test_proportions_by_size() -> None:
    domains = info(3, sizes=[1, 16, 81])
    assert UniformMixer().initial(domains).tolist() == [1 / 3] * 3
    assert ProportionalMixer().initial(domains).tolist() == [1 / 98, 16 / 98, 81 / 98]
    np.testing.assert_allclose(TemperatureMixer(temperature=4).initial(domains), [1 / 6, 2 / 6, 3 / 6], rtol=1e-14)
    np.testing.assert_allclose(TemperatureMixer(temperature=1).initial(domains), [1 / 98, 16 / 98, 81 / 98], rtol=1e-13)
    np.testing.assert_allclose(TemperatureMixer(temperature=1e9).initial(domains), [1 / 3] * 3, rtol=1e-8)
    for name in ("static", "uniform", "proportional", "stratified", "temperature"):
        assert registry.resolve("mix", name, "key").fixed  # type: ignore[attr-defined]


# -- DoReMi ----------------------------------------------------------------------------------------------------------


def literal_doremi(steps: list[Any], k: int, eta: float, c: float) -> tuple[list[list[float]], list[float]]:
    """Algorithm 1 with plain numbers: all alpha_t, and their mean. steps: (excess sums, tokens) of each batch."""
    alpha, scores, found = [1 / k] * k, [0.0] * k, []
    for excess, tokens in steps:
        for i in range(k):
            if tokens[i]:
                scores[i] = excess[i] / tokens[i]
        raised = [a * exp(eta * s) for a, s in zip(alpha, scores)]
        alpha = [(1 - c) * r / sum(raised) + c / k for r in raised]
        found.append(alpha)
    return found, [sum(a[i] for a in found) / len(found) for i in range(k)]


@pytest.mark.parametrize("eta, c", [(1.0, 1e-3), (0.1, 0.05), (0.0, 0.0)])
def test_doremi_follows_algorithm_1(eta: float, c: float) -> None:
    k, pi, rng = 4, [0.4, 0.3, 0.2, 0.1], np.random.default_rng(3)
    mixer = DoremiMixer(reference_model_path="x", reweight_eta=eta, reweight_eps=c)
    steps = []
    for _ in range(40):
        tokens = rng.integers(0, 3, size=k) * rng.integers(1, 50, size=k)  # some domains are missing from some batches
        tokens[0] = max(tokens[0], 1)
        steps.append(((tokens * rng.random(k)).tolist(), tokens.tolist()))
    expected, mean = literal_doremi(steps, k, eta, c)
    state = mixer.init(info(k, pi))
    assert mixer.initial_loss_weights(info(k, pi)).tolist() == [0.25] * 4
    assert mixer.result(state) is None
    decision, state = mixer.update(state, observe(pi))  # before the first step there is nothing to go by
    assert state["turns"] == 0 and decision.proportions.tolist() == pi
    for (excess, tokens), alpha in zip(steps, expected, strict=True):
        decision, state = mixer.update(state, observe(pi, excess=excess, tokens=tokens))
        np.testing.assert_allclose(state["alpha"], alpha, rtol=1e-12)
        np.testing.assert_allclose(decision.loss_weights, alpha, rtol=1e-12)  # type: ignore[arg-type]
        assert decision.proportions.tolist() == pi
    np.testing.assert_allclose(mixer.result(state), mean, rtol=1e-12)
    if eta == 0.0:
        np.testing.assert_allclose(state["alpha"], [0.25] * 4, rtol=1e-15)


def test_doremi_survives_weights_that_vanish() -> None:
    mixer = DoremiMixer(reference_model_path="x", reweight_eta=1e4, reweight_eps=0.0)
    state, pi = mixer.init(info(2)), [0.5, 0.5]
    for _ in range(3):
        decision, state = mixer.update(state, observe(pi, excess=[0.0, 10.0], tokens=[10, 10]))
    assert decision.loss_weights.tolist() == [0.0, 1.0]  # type: ignore[union-attr]
    decision, _ = mixer.update(state, observe([1.0, 0.0], excess=[1.0, 0.0], tokens=[10, 0]))
    assert decision.loss_weights is not None and np.isfinite(decision.loss_weights).all()


# -- DoGE ------------------------------------------------------------------------------------------------------------


def halved(halves: np.ndarray) -> dict[str, Any]:
    """The signal that gradients [k, 2, values] of two halves of each domain give."""
    return {"domain_gradients": list(np.einsum("iav,jbv->iajb", halves, halves))}


@pytest.mark.parametrize("online", [False, True])
def test_doge_follows_algorithm_1(online: bool) -> None:
    """The paper's plain form, from gradients without noise, so that both halves are the domain's gradient."""
    pi, mu, eps, rate = [0.5, 0.25, 0.25], 0.05, 1e-3, 0.01
    plain = {"normalise": False, "max_norm": None}
    mixer, rng = DogeMixer(mu=mu, eps=eps, online=online, **plain), np.random.default_rng(1)  # type: ignore[arg-type]
    state = mixer.init(info(3, pi))
    alpha, found = (list(pi) if online else [1 / 3] * 3), []
    for _ in range(10):
        gradients = rng.normal(size=(3, 5))
        w = [sum(float(gradients[j] @ gradients[i]) for i in range(3)) for j in range(3)]
        raised = [a * exp(rate * x / mu) for a, x in zip(alpha, w)]
        alpha = [(1 - eps) * r / sum(raised) + eps / 3 for r in raised]
        found.append(alpha)
        decision, state = mixer.update(
            state, observe(pi, learning_rate=rate, signals=halved(np.stack([gradients, gradients], axis=1)))
        )
        if online:
            assert decision.loss_weights is None
            np.testing.assert_allclose(decision.proportions, alpha, rtol=1e-12)
        else:
            assert decision.proportions.tolist() == pi
            np.testing.assert_allclose(decision.loss_weights, alpha, rtol=1e-12)  # type: ignore[arg-type]
    np.testing.assert_allclose(mixer.result(state), np.mean(found, axis=0), rtol=1e-12)
    assert mixer.moves_proportions() is online


def literal_doge(grads: np.ndarray, alpha: np.ndarray, lr: float, mu: float, max_norm: float, eps: float) -> np.ndarray:
    """The authors' update where train and target domains are the same: gradients clipped, the diagonal left out, divided by
    the mean norm, clipped again, and a softmax. grads: [k, values]."""
    clipped = np.array([g * min(1.0, max_norm / np.linalg.norm(g)) for g in grads])
    scores = clipped @ clipped.T
    score = lr * (scores.sum(axis=-1) - np.diag(scores))
    score = score / np.linalg.norm(clipped, axis=-1).mean()
    score = np.clip(score, lr * 0.0, lr * 5.0)
    logits = np.log(alpha) + score / mu
    new = np.exp(logits - np.logaddexp.reduce(logits))
    return np.asarray((1 - eps) * new + eps / len(new))


@pytest.mark.parametrize("scale", [0.1, 1.0, 20.0])  # none, some and all of the gradients are cut to length one
def test_doge_without_its_own_product_is_the_authors_code(scale: float) -> None:
    rng, k, lr = np.random.default_rng(4), 5, 3e-4
    mixer = DogeMixer(mu=0.01, eps=1e-3, own_product=False)
    state, alpha = mixer.init(info(k)), np.full(k, 1 / k)
    base = rng.normal(size=6)
    for _ in range(20):
        halves = scale * (base + rng.normal(size=(k, 2, 6))) / 3
        alpha = literal_doge(halves.mean(axis=1), alpha, lr, 0.01, 1.0, 1e-3)
        _, state = mixer.update(state, observe(np.full(k, 1 / k), learning_rate=lr, signals=halved(halves)))
        np.testing.assert_allclose(state["alpha"], alpha, rtol=1e-10)
    assert np.ptp(alpha) > 1e-4


def test_doge_is_not_led_by_the_noise_of_a_domain() -> None:
    """The true gradients rank the domains 0, 1, 2; the noise of their rows is the other way round. Products of the same rows
    rank them 2, 1, 0; the mean of W over many draws is the truth, and so is the order with the authors' lengths."""
    rng, draws, values = np.random.default_rng(0), 4000, 32
    true = np.zeros((3, values))
    true[:, 0] = [1.0, 0.8, 0.6]
    noise = np.array([0.2, 0.6, 1.0])
    plain = DogeMixer(normalise=False, max_norm=None)
    usual = DogeMixer()
    ours, theirs, cut = [], [], []
    for _ in range(draws):
        halves = true[:, None] + noise[:, None, None] * rng.normal(size=(3, 2, values)) / 2  # four rows in each half
        products = np.stack(halved(halves)["domain_gradients"])
        ours.append(plain.agreement(products))
        cut.append(usual.agreement(products))
        means = halves.mean(axis=1)
        theirs.append((means @ means.T).sum(axis=1))
    exact = (true @ true.T).sum(axis=1)
    error = np.std(ours, axis=0) / draws**0.5
    assert (np.abs(np.mean(ours, axis=0) - exact) < 4 * error).all() and error.max() < 0.04
    assert np.argsort(-exact).tolist() == np.argsort(-np.mean(cut, axis=0)).tolist() == [0, 1, 2]
    assert np.argsort(-np.mean(theirs, axis=0)).tolist() == [2, 1, 0]


def test_doge_survives_gradients_of_zero() -> None:
    mixer = DogeMixer()
    decision, _ = mixer.update(
        mixer.init(info(2)), observe([0.5, 0.5], learning_rate=1.0, signals=halved(np.zeros((2, 2, 3))))
    )
    assert decision.loss_weights is not None and decision.loss_weights.tolist() == [0.5, 0.5]


# -- loss gap --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip, c", [(False, 1e-4), (True, 0.0), (True, 0.02)])
def test_loss_gap_follows_algorithm_1(clip: bool, c: float) -> None:
    """As the authors' code has it, which is the default, and as the paper has it: without gaps below zero, not smoothed."""
    reference = (2.0, 1.0, 3.0)
    mixer = LossGapMixer(reference_losses=reference) if not clip else LossGapMixer(
        reference_losses=reference, clip=True, smoothing=c
    )  # fmt: skip
    pi = [0.2, 0.3, 0.5]
    state = mixer.init(info(3, pi))
    for losses in ([2.5, 1.1, 2.0], [2.2, 1.0, 4.0], [1.0, 0.5, 0.1]):
        gaps = [loss - r for loss, r in zip(losses, reference)]
        raised = [p * exp(max(gap, 0) if clip else gap) for p, gap in zip(pi, gaps)]
        rows = [np.array([loss - 0.5, np.nan, loss + 1.5]) for loss in losses]
        tokens = [np.array([9.0, 4.0, 3.0])] * 3  # every token counts alike, and a row without a loss not at all
        signals = {"heldout_loss": rows, "heldout_tokens": tokens}
        decision, state = mixer.update(state, observe(pi, signals=signals))
        pi = [(1 - c) * r / sum(raised) + c / 3 for r in raised]
        np.testing.assert_allclose(decision.proportions, pi, rtol=1e-12)
    signals["heldout_loss"] = [*rows[:2], np.full(3, np.nan)]
    with pytest.raises(DataflexError, match="loss_gap: a domain has no finite held-out loss"):
        mixer.update(state, observe(pi, signals=signals))
    with pytest.raises(ConfigError, match="reference_losses: 3 given for 2 data sets"):
        mixer.check_domains(("a", "b"))


# Sheared LLaMA's own start: the shares of its pruning, and the domains cc, github, book, stackexchange, wikipedia, arxiv, c4.
PRUNING = [0.67, 0.045, 0.045, 0.02, 0.045, 0.025, 0.15]


@pytest.mark.parametrize("clip, cc, arxiv", [(False, 0.035, 0.520), (True, 0.203, 0.413)])
def test_a_domain_below_its_reference_loses_its_share(clip: bool, cc: float, arxiv: float) -> None:
    """After 10 updates with cc 0.2 below its reference, and arxiv 0.4 above it; with the paper's clip cc keeps far more."""
    gaps = [-0.2, 0.3, 0.1, 0.1, -0.2, 0.4, -0.05]
    mixer = LossGapMixer(reference_losses=(2.0,) * 7, clip=clip, smoothing=0.0 if clip else 1e-4, losses="train")
    state, pi = mixer.init(info(7, PRUNING)), np.array(PRUNING)
    for _ in range(10):
        decision, state = mixer.update(state, observe(pi, tokens=np.ones(7), token_loss=2.0 + np.array(gaps)))
        pi = decision.proportions
    assert (pi[0], pi[5]) == (pytest.approx(cc, abs=0.002), pytest.approx(arxiv, abs=0.002))
    expected = np.array(PRUNING)
    for _ in range(10):  # the update of the authors' code: a softmax of log p + difference, then smoothing
        logits = np.log(expected) + (np.maximum(gaps, 0) if clip else gaps)
        expected = np.exp(logits - np.logaddexp.reduce(logits))
        expected = expected if clip else (1 - 1e-4) * expected + 1e-4 / 7
    np.testing.assert_allclose(pi, expected, rtol=1e-10)


def test_smoothing_lets_a_domain_come_back() -> None:
    for smoothing, comes_back in ((1e-4, True), (0.0, False)):
        mixer = LossGapMixer(reference_losses=(1.0, 1.0), losses="train", smoothing=smoothing)
        state, pi = mixer.init(info(2)), np.array([1.0, 0.0])
        for _ in range(20):
            decision, state = mixer.update(state, observe(pi, tokens=[10, 10], token_loss=[10.0, 20.0]))
            pi = decision.proportions
        assert (pi[1] > 0.5) == comes_back


def test_loss_gap_from_training_keeps_the_gap_of_an_unseen_domain() -> None:
    mixer, pi = LossGapMixer(reference_losses=(1.0, 1.0), losses="train", clip=True, smoothing=0.0), [0.5, 0.5]
    decision, state = mixer.update(mixer.init(info(2)), observe(pi, tokens=[10, 10], token_loss=[15.0, 30.0]))
    np.testing.assert_allclose(decision.proportions, [1 / (1 + exp(1.5)), exp(1.5) / (1 + exp(1.5))], rtol=1e-12)
    again, _ = mixer.update(state, observe(pi, tokens=[10, 0], token_loss=[5.0, 0.0]))
    np.testing.assert_allclose(again.proportions, [1 / (1 + exp(2.0)), exp(2.0) / (1 + exp(2.0))], rtol=1e-12)
    untouched, _ = mixer.update(state, observe([0.9, 0.1]))
    assert untouched.proportions.tolist() == [0.9, 0.1]


# -- ADO -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps, beta, alpha", [(1.5, 8.0, 0.3), (0.4, 20.0, 0.5), (2.5, 3.0, 0.15)])
def test_a_scaling_law_is_found_again(eps: float, beta: float, alpha: float) -> None:
    n = np.arange(1, 400) * 64.0
    log_beta, log_eps, found = fit_law(n, eps + beta * n**-alpha)
    np.testing.assert_allclose(np.exp(log_eps) + np.exp(log_beta) * n**-found, eps + beta * n**-alpha, rtol=2e-3)
    assert found == pytest.approx(alpha, rel=0.1)


def test_a_scaling_law_stays_within_its_bounds() -> None:
    """Of losses that rise, or are noise, something usable is made."""
    n, rng = np.arange(1, 50) * 8.0, np.random.default_rng(0)
    for losses in (np.linspace(1, 2, 49), rng.uniform(1, 2, 49), np.full(49, 0.7)):
        log_beta, log_eps, alpha = fit_law(n, losses)
        assert np.isfinite([log_beta, log_eps, alpha]).all() and 0.001 <= alpha <= 0.8
        assert log_eps <= log(losses.min()) + 1e-9


@pytest.mark.parametrize("interval", [1, 10])
def test_ado_follows_algorithm_1(interval: int) -> None:
    """The policy by plain numbers, step by step, from the laws that the mixer has fitted; and the slope is that of the law. An
    update after several steps takes each of them with what was served, and the rho found, in the interval."""
    k, mu = 3, [0.5, 0.3, 0.2]
    mixer = AdoMixer(fit_after=6, fit_every=4, ignore=2)
    state, pi, rng = mixer.init(info(k, mu)), list(mu), np.random.default_rng(2)
    h, average, n, rows_seen = list(mu), list(mu), 0.0, []
    for turn in range(1, 15):
        step = interval * turn
        rows = rng.multinomial(32, pi).astype(float)
        n += rows.sum()
        rows_seen.append(n)
        means = np.array([1.0 + 5 * n**-0.3, 2.0 + 9 * n**-0.5, 3.0 + 0.1 * n**-0.2])
        for _ in range(interval):
            h = [0.9 * a + 0.1 * r / rows.sum() for a, r in zip(h, rows)]
        decision, state = mixer.update(
            state, observe(pi, step=step, rows=rows, tokens=10 * rows, token_loss=10 * rows * means)
        )
        if turn < 6:
            assert decision.proportions.tolist() == pi
            continue
        rho = []
        for i, (a, e, alpha) in enumerate(state["laws"]):
            law = exp(e) + exp(a) * n**-alpha
            slope = max(alpha, 0.05) * (law - exp(e)) / n
            if alpha >= 0.05:
                by = 1e-3 * n
                numeric = (exp(a) * (n - by) ** -alpha - exp(a) * (n + by) ** -alpha) / (2 * by)
                assert slope == pytest.approx(numeric, rel=1e-5)
            rho.append(mu[i] * h[i] ** 0.5 * slope)
        rho = [max(r / sum(rho), 0.01) for r in rho]
        rho = [r / sum(rho) for r in rho]
        expected = [0.9 * a + 0.1 * r for a, r in zip(average, rho)]
        for t in range(step - interval + 1, step + 1):
            average = [(t * a + r) / (t + 1) for a, r in zip(average, rho)]
        np.testing.assert_allclose(decision.proportions, expected, rtol=1e-9)
        pi = decision.proportions.tolist()
    assert state["rows"].tolist() == rows_seen and state["losses"].shape == (14, k)
    assert decision.proportions[1] > mu[1] * 0.95 and decision.proportions[2] < mu[2]  # the third has stopped falling


@pytest.mark.parametrize(
    "mu, expected",
    [
        ([0.8, 0.15, 0.05], [0.903, 0.086, 0.011]),
        ([0.6, 0.3, 0.1], [0.633, 0.349, 0.018]),
        ([1 / 3, 1 / 3, 1 / 3], [0.282, 0.549, 0.169]),
    ],
)
def test_ado_ends_where_the_authors_code_does(mu: list[float], expected: list[float]) -> None:
    """300 steps on losses that follow their laws without noise. The code, in its own order: h, then rho, then the averages."""
    beta, alpha = np.array([4.0, 6.0, 2.88]), 0.25
    mixer, prior = AdoMixer(fit_every=50), np.array(mu)
    state, pi = mixer.init(info(3, mu)), prior
    p_history, p_avg, p, n = prior, prior, prior, 0
    for itr in range(1, 301):
        n += 64
        means = 1.0 + beta * n**-alpha
        decision, state = mixer.update(
            state, observe(pi, step=itr, rows=64 * pi, tokens=64 * pi, token_loss=64 * pi * means)
        )
        pi = decision.proportions
        p_history = 0.9 * p_history + 0.1 * p
        if itr >= 10:
            dist = alpha * (means - 1.0) / n * prior * p_history**0.5
            dist = np.maximum(dist / dist.sum(), 1e-2)
            dist = dist / dist.sum()
            p = 0.9 * p_avg + 0.1 * dist
            p_avg = (1 - 1 / (itr + 1)) * p_avg + 1 / (itr + 1) * dist
    np.testing.assert_allclose(p, expected, atol=3e-3)
    np.testing.assert_allclose(pi, p, atol=5e-3)  # the laws are fitted, and not known


def test_ado_forgets_by_steps_whatever_the_interval() -> None:
    """What was served weighs the same after 200 steps of equal shares, asked at every step or at every twentieth."""
    found = []
    for interval in (1, 20):
        mixer, served = AdoMixer(fit_after=1000), np.array([30.0, 10.0])
        state = mixer.init(info(2, [0.1, 0.9]))
        for step in range(interval, 61, interval):
            rows = interval * served
            _, state = mixer.update(state, observe([0.1, 0.9], step=step, rows=rows, tokens=rows, token_loss=rows))
        found.append(state["h"])
    np.testing.assert_allclose(found[0], [0.75 - 0.65 * 0.9**60, 0.25 + 0.65 * 0.9**60], rtol=1e-12)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-12)


def test_the_prior_of_ado_is_the_data_unless_it_is_given() -> None:
    raw = {"stage": "sft", "do_train": True, "dataset": "a, b"}
    for given, initial in (({}, "stratified"), ({"initial": "uniform"}, "uniform")):
        config = parse({**raw, "dataflex": {"mix": {"name": "ado", "interval": 5, **given}}}).dataflex
        assert config is not None and config.mix is not None and config.mix.initial == initial
    config = parse({**raw, "dataflex": {"mix": {"name": "odm", "interval": 5}}}).dataflex
    assert config is not None and config.mix is not None and config.mix.initial == "uniform"


def test_at_least() -> None:
    np.testing.assert_allclose(at_least(np.array([0.0, 1.0]), 0.1), [0.1 / 1.1, 1 / 1.1], rtol=1e-15)
    np.testing.assert_allclose(at_least(np.array([0.0, 1.0]), 0.9), [0.5 / 1.5, 1 / 1.5], rtol=1e-15)


# -- Aioli -----------------------------------------------------------------------------------------------------------


class World:
    """Losses that fall by `law` @ mixture in every interval."""

    def __init__(self, law: np.ndarray) -> None:
        self.law, self.losses = law, np.full(len(law), 50.0)

    def train(self, p: np.ndarray) -> None:
        self.losses = self.losses - self.law @ p

    def heldout(self) -> dict[str, Any]:
        return {"heldout_loss": [np.array([loss, loss]) for loss in self.losses]}


@pytest.mark.parametrize("sweeps", [1, 2])
@pytest.mark.parametrize("ema", [None, 0.25])
def test_aioli_learns_the_mixing_law(sweeps: int, ema: float | None) -> None:
    law = np.array([[0.5, 0.1, 0.0], [0.2, 0.3, 0.1], [0.0, 0.0, 0.6]])
    mixer = AioliMixer(eta=2.0, ema=ema, one_hot=0.8, sweeps=sweeps, probe_share=0.5)
    world, state, kept = World(law), mixer.init(info(3, [0.2, 0.5, 0.3])), None
    expected = np.array([0.2, 0.5, 0.3])
    for _ in range(2):
        for phase in range(6 * sweeps):  # half of a round are probes, the other half holds what was learned
            asks = bool(mixer.needs_now(state))
            assert asks == (phase <= 3 * sweeps)
            decision, state = mixer.update(state, observe(expected, signals=world.heldout() if asks else {}))
            if phase < 3 * sweeps:
                probe = [0.1, 0.1, 0.1]
                probe[phase % 3] = 0.8
                np.testing.assert_allclose(decision.proportions, probe, rtol=1e-12)
            elif phase == 3 * sweeps:
                np.testing.assert_allclose(state["law"], law / law.sum(), rtol=1e-9, atol=1e-12)
                own = law / law.sum()
                kept = own if ema is None or kept is None else (1 - ema) * own + ema * kept
                raised = np.exp(2.0 * kept.sum(axis=0)) * (expected if ema is None else 1.0)
                expected = raised / raised.sum()
            if phase >= 3 * sweeps:
                np.testing.assert_allclose(decision.proportions, expected, rtol=1e-9)
            world.train(decision.proportions)


def test_aioli_shifts_a_law_with_negative_entries() -> None:
    law = np.array([[0.5, -0.25], [0.0, 0.25]])
    mixer = AioliMixer(eta=1.0, ema=None, one_hot=1.0, probe_share=0.5)
    world, state = World(law), mixer.init(info(2))
    for _ in range(3):
        decision, state = mixer.update(state, observe([0.5, 0.5], signals=world.heldout()))
        world.train(decision.proportions)
    shifted = (law + 0.25) / (law + 0.25).sum()
    raised = np.exp(shifted.sum(axis=0)) / 2
    np.testing.assert_allclose(decision.proportions, raised / raised.sum(), rtol=1e-9)
    with pytest.raises(DataflexError, match="one_hot must not be 1 / 4"):
        AioliMixer(one_hot=0.25).init(info(4))


# -- mixture of experts ----------------------------------------------------------------------------------------------


def test_dynamic_moe_follows_algorithm_1() -> None:
    loads, pi = [[0.5, 0.5, 0.0], [0.5, 0.25, 0.25], [0.0, 0.0, 1.0]], [0.2, 0.3, 0.5]
    mixer = DynamicMoeMixer(eta=2.0, c=0.1)
    decision, _ = mixer.update({}, observe(pi, signals={"router_load": [np.array(v) for v in loads]}))
    delta = [sum(sum((a - b) ** 2 for a, b in zip(u, v)) ** 0.5 for v in loads) / 3 for u in loads]
    raised = [p * exp(2.0 * d) for p, d in zip(pi, delta)]
    np.testing.assert_allclose(decision.proportions, [0.9 * r / sum(raised) + 0.1 / 3 for r in raised], rtol=1e-12)


# -- weights by domain -----------------------------------------------------------------------------------------------


def test_weights_by_domain(tmp_path: Path) -> None:
    """As a list, by name, and from a file; whatever the losses are."""
    (tmp_path / "found.json").write_text('{"b": 0.5, "a": 0.0}')
    context = WeightContext(
        reference=torch.ones(4), ids=torch.arange(4), domains=torch.tensor([1, 0, 1, 1]), step=0, names=("a", "b")
    )
    losses = torch.tensor([1.0, 2.0, 3.0, 4.0])
    for given in ((0.0, 0.5), {"a": 0.0, "b": 0.5}, str(tmp_path / "found.json")):
        assert DomainWeighter(by_domain=given).weights({}, losses, context).tolist() == [0.5, 0.0, 0.5, 0.5]
    for bad, message in [
        ((1.0,), "by_domain: 1 given for 2 data sets (a, b)"),
        ({"a": 1.0}, "by_domain must name every data set of dataset, and 'b' is missing"),
        ({"a": 1.0, "bb": 1.0}, "by_domain: 'bb' is not in dataset"),
        ("/no/such", "by_domain must be a file, and /no/such does not exist"),
    ]:
        with pytest.raises(ConfigError) as error:
            DomainWeighter(by_domain=bad).check_domains(("a", "b"))
        assert str(error.value).startswith(message)


# -- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cls, parameters, message",
    [
        (TemperatureMixer, {"temperature": 0.0}, "temperature must be positive and finite, got 0.0"),
        (DoremiMixer, {"reference_model_path": ""}, "reference_model_path must be a model, got ''"),
        (DoremiMixer, {"reference_model_path": "x", "reweight_eta": -1.0}, "reweight_eta must be at least 0"),
        (DoremiMixer, {"reference_model_path": "x", "reweight_eps": 1.5}, "reweight_eps must be in [0, 1], got 1.5"),
        (DogeMixer, {"mu": 0.0}, "mu must be positive"),
        (DogeMixer, {"rows_per_domain": 1}, "rows_per_domain must be at least 2 (two halves), got 1"),
        (DogeMixer, {"max_norm": 0.0}, "max_norm must be positive and finite, or null, got 0.0"),
        (LossGapMixer, {"reference_losses": ()}, "reference_losses must be a list of numbers, one per data set"),
        (LossGapMixer, {"reference_losses": (1.0, float("nan"))}, "reference_losses must be a list of numbers"),
        (
            LossGapMixer,
            {"reference_losses": (1.0,), "losses": "eval"},
            "losses must be one of heldout, train, got 'eval'",
        ),
        (LossGapMixer, {"reference_losses": (1.0,), "smoothing": 1.1}, "smoothing must be in [0, 1], got 1.1"),
        (AdoMixer, {"gamma_1": 0.0}, "gamma_1 must be in (0, 1], got 0.0"),
        (AdoMixer, {"fit_after": 3}, "fit_after must be at least ignore + 3"),
        (AioliMixer, {"one_hot": 0.0}, "one_hot must be in (0, 1], got 0.0"),
        (AioliMixer, {"probe_share": 1.0}, "probe_share must be in (0, 1), got 1.0"),
        (DomainWeighter, {"by_domain": (0.0, 0.0)}, "by_domain must be non-negative numbers, not all zero"),
        (DomainWeighter, {"by_domain": (1.0, -1.0)}, "by_domain must be non-negative numbers, not all zero"),
        (DynamicMoeMixer, {"c": 2.0}, "c must be in [0, 1], got 2.0"),
        (DynamicMoeMixer, {"eval_samples": 0}, "eval_samples must be at least 1, got 0"),
    ],
)
def test_parameters_outside_their_range_are_refused(cls: type[Component], parameters: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        cls(**parameters)
    assert str(error.value).startswith(message)
