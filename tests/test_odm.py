"""Online data mixing: its three rewards against plain numbers, and the figures that tell them apart."""

from __future__ import annotations

from math import exp, log, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataflex.components.contexts import DomainInfo, Observations, State
from dataflex.components.mixers.odm import OdmMixer
from dataflex.config import parse


def observe(pi: Any, rows: Any, loss: Any, realized: Any = None) -> Observations:
    """realized: by rows unless given."""
    pi, rows, loss = (np.asarray(values, dtype=np.float64) for values in (pi, rows, loss))
    shares = rows / max(rows.sum(), 1) if realized is None else np.asarray(realized, dtype=np.float64)
    return Observations(
        step=1, update=0, proportions=pi, rows=rows, loss=loss, tokens=rows, token_loss=loss, signals={},
        rng=np.random.default_rng(0), realized=shares,
    )  # fmt: skip


def info(k: int) -> DomainInfo:
    return DomainInfo(tuple(map(str, range(k))), np.arange(1, k + 1), np.full(k, 1 / k))


def literal_odm(
    history: list[tuple[Any, Any, Any]], reward: str, alpha: float, scale: float, floor: float
) -> list[list[float]]:
    """The proportions after each turn, one number at a time. history: (pi, rows, sum of losses) of each interval."""
    k = len(history[0][0])
    rewards, out = [0.0] * k, []

    def epsilon(t: int) -> float:
        rate = 1 / k if t == 0 else min(1 / k, sqrt(log(k) / (k * t)))
        return max(rate, min(floor, 1 / (2 * k)))

    for t, (pi, rows, loss) in enumerate(history, start=1):
        for d in range(k):
            if rows[d] == 0:
                continue
            if reward == "authors":
                rewards[d] += scale * loss[d] / rows[d] / pi[d]
            elif reward == "averaged":
                rewards[d] = alpha * rewards[d] + (1 - alpha) * scale * loss[d] / rows[d] / pi[d]
            else:
                rewards[d] = alpha * rewards[d] + (1 - alpha) * scale * (loss[d] / sum(rows)) / pi[d]
        highest = max(rewards)
        powers = [exp(epsilon(t - 1) * (reward - highest)) for reward in rewards]
        out.append([(1 - k * epsilon(t)) * powers[d] / sum(powers) + epsilon(t) for d in range(k)])
    return out


@pytest.mark.parametrize("k", [2, 7, 50])
@pytest.mark.parametrize(
    "mixer, scale, floor",
    [
        (OdmMixer(), 0.1, 0.0),
        (OdmMixer(reward="authors", min_exploration_rate=0.02), 0.1, 0.02),
        (OdmMixer(reward="averaged"), 15.0, 0.03),
        (OdmMixer(reward="unbiased"), 15.0, 0.03),
        (OdmMixer(reward="unbiased", alpha=0.0, reward_scale=1.0, min_exploration_rate=0.0), 1.0, 0.0),
    ],
)
def test_odm_follows_its_formula(k: int, mixer: OdmMixer, scale: float, floor: float) -> None:
    """50 turns, a sample of the requested proportions each; at K = 50 some domains stay unseen in many of them."""
    rng = np.random.default_rng(k)
    state, pi = mixer.init(info(k)), np.full(k, 1 / k)
    mean_loss = np.linspace(0.5, 3.0, k)
    history, decided, unseen = [], [], 0
    for _ in range(50):
        rows = rng.multinomial(64, pi)
        unseen += int((rows == 0).sum())
        loss = rows * mean_loss * rng.uniform(0.9, 1.1, size=k)
        history.append((pi.tolist(), rows.tolist(), loss.tolist()))
        before = {name: np.copy(value) for name, value in state.items()}
        decision, after = mixer.update(state, observe(pi, rows, loss))
        assert all(np.array_equal(state[name], before[name]) for name in before)  # a pure function
        state, pi = after, decision.proportions
        decided.append(pi)
    expected = literal_odm(history, mixer.reward, 0.9 if mixer.alpha is None else mixer.alpha, scale, floor)
    np.testing.assert_allclose(decided, expected, rtol=1e-12)
    np.testing.assert_allclose(np.sum(decided, axis=1), 1.0, rtol=1e-12)
    assert np.min(decided) > 0 and state["turn"] == 50
    assert (unseen > 300) == (k == 50)


# Losses of 4, 3 and 2, and as many rows as were asked for: the shares after 20, 300 and 5000 turns, and the highest of all.
COURSES = {
    "authors": ([[0.421, 0.331, 0.248], [0.438, 0.334, 0.228], [0.443, 0.333, 0.223]], 0.443),
    "averaged": ([[0.433, 0.335, 0.231], [0.423, 0.336, 0.242], [0.421, 0.335, 0.245]], 0.489),
    "unbiased": ([[0.641, 0.210, 0.148], [0.507, 0.302, 0.190], [0.471, 0.314, 0.215]], 0.657),
}


@pytest.mark.parametrize("reward", COURSES)
def test_rewards_differ_in_how_far_they_go(reward: Any) -> None:
    """The order of the domains is the same. The unbiased reward goes far beyond where it comes to rest."""
    mixer, losses, pi = OdmMixer(reward=reward), np.array([4.0, 3.0, 2.0]), np.full(3, 1 / 3)
    state, course = mixer.init(info(3)), []
    for _ in range(5000):
        decision, state = mixer.update(state, observe(pi, 512 * pi, 512 * pi * losses))
        pi = decision.proportions
        course.append(pi)
    expected, peak = COURSES[reward]
    np.testing.assert_allclose([course[t - 1] for t in (20, 300, 5000)], expected, atol=0.012)
    assert np.max(course) == pytest.approx(peak, abs=0.01)


@pytest.mark.parametrize("reward", ["authors", "averaged", "unbiased"])
@pytest.mark.parametrize("k, turns", [(2, 50), (7, 50), (50, 300)])
def test_odm_gives_more_to_domains_with_a_higher_loss(k: int, turns: int, reward: Any) -> None:
    """Up to K ln K turns the paper's eps is 1/K and the mixture uniform (196 turns at K = 50); then it must adapt."""
    mixer, pi = OdmMixer(reward=reward), np.full(k, 1 / k)
    state, mean_loss = mixer.init(info(k)), np.linspace(1.0, 2.0, k)
    for turn in range(1, turns + 1):
        rows = 6400 * pi  # as many as asked for, so that the reward is the mean loss
        decision, state = mixer.update(state, observe(pi, rows, rows * mean_loss))
        pi = decision.proportions
        assert mixer.exploration(turn, k) >= min(0.0 if reward == "authors" else 0.03, 0.5 / k)
        if turn <= int(k * log(k)):
            np.testing.assert_allclose(pi, 1 / k, rtol=1e-12)
    assert (np.diff(pi) > 0).all() and pi[0] < 1 / k < pi[-1]
    assert pi.min() >= mixer.exploration(turns, k) > 0


def test_odm_keeps_the_reward_of_an_unseen_domain() -> None:
    state: State = {"turn": 3, "rewards": np.array([1.0, 4.0, 6.0])}
    pi, rows, loss = [0.25, 0.25, 0.5], [3, 0, 1], [6.0, 0.0, 5.0]
    expected = {
        "authors": [1 + 2 * 2 / 0.25, 4.0, 6 + 2 * 5 / 0.5],
        "averaged": [0.5 * 1 + 0.5 * 2 * 2 / 0.25, 4.0, 0.5 * 6 + 0.5 * 2 * 5 / 0.5],
        "unbiased": [0.5 * 1 + 0.5 * 2 * 6 / 4 / 0.25, 4.0, 0.5 * 6 + 0.5 * 2 * 5 / 4 / 0.5],
    }
    for reward, rewards in expected.items():
        alpha = None if reward == "authors" else 0.5
        mixer = OdmMixer(reward=reward, alpha=alpha, reward_scale=2.0)  # type: ignore[arg-type]
        _, seen = mixer.update(state, observe(pi, rows, loss))
        assert seen["rewards"].tolist() == rewards
        _, nothing = mixer.update(state, observe(pi, np.zeros(3), np.zeros(3)))
        assert nothing["rewards"].tolist() == [1.0, 4.0, 6.0] and nothing["turn"] == 4


def test_odm_survives_enormous_rewards_and_a_single_domain() -> None:
    mixer = OdmMixer(reward="unbiased", reward_scale=1e9)
    decision, _ = mixer.update({"turn": 30, "rewards": np.zeros(2)}, observe([0.5, 0.5], [4, 4], [8.0, 4.0]))
    floor = mixer.exploration(31, 2)
    np.testing.assert_allclose(decision.proportions, [1 - floor, floor], rtol=1e-12)
    alone, _ = mixer.update(mixer.init(info(1)), observe([1.0], [8], [3.0]))
    assert alone.proportions.tolist() == [1.0]


def test_files_of_1_1_0_keep_its_reward(tmp_path: Path) -> None:
    """In its flat keys, and in a preset of a components file, unless it names another reward."""
    raw = {"stage": "sft", "do_train": True, "dataset": "a, b"}
    flat = {"train_type": "dynamic_mix", "component_name": "odm", "update_step": 10}
    block = {"mix": {"name": "odm", "interval": 10}}
    presets = tmp_path / "components.yaml"
    presets.write_text(
        "mixers:\n  odm: {name: odm, params: {alpha: 0.9, reward_scale: 15, min_exploration_rate: 0.03}}\n"
    )
    other = tmp_path / "other.yaml"
    other.write_text("mixers:\n  odm: {name: odm, params: {reward: unbiased}}\n")

    def reward(given: dict[str, Any]) -> str:
        config = parse({**raw, **given}).dataflex
        assert config is not None and config.mix is not None and isinstance(config.mix.component, OdmMixer)
        return config.mix.component.reward

    assert reward({"dataflex": block}) == "authors"
    assert reward(flat) == reward({**flat, "components_cfg_file": str(presets)}) == "averaged"
    assert reward({**flat, "components_cfg_file": str(other)}) == "unbiased"
