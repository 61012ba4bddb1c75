"""Each component by itself, against its formula; and how names become component classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from itertools import permutations
from math import e, exp, lgamma, log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dataflex.components import registry
from dataflex.components.contexts import DomainInfo, Observations, Selection, SelectionContext, State, WeightContext
from dataflex.components.contracts import Component, Mixer, Selector
from dataflex.components.mixers.fixed import StaticMixer
from dataflex.components.mixers.odm import OdmMixer
from dataflex.components.mixers.random import RandomMixer
from dataflex.components.selectors.loss import LossSelector
from dataflex.components.selectors.random import RandomSelector
from dataflex.components.weighters.loss import LossWeighter
from dataflex.config import parse
from dataflex.errors import ConfigError
from dataflex.plan.permutation import generator


def choose(selector: Selector, losses: Any, budget: int, seed: int = 0) -> list[int]:
    losses = np.asarray(losses, dtype=np.float64)
    context = SelectionContext(
        budget=budget, rows=len(losses), step=4, update=0, updates=None, domain=None, rng=generator(1, seed)
    )
    given = losses.copy()
    selection, state = selector.select(selector.init(), {"loss": given}, context)
    assert state == {} and np.array_equal(given, losses)
    assert np.issubdtype(selection.chosen.dtype, np.integer)
    if "loss" in selector.needs():
        assert selection.scores is not None and selection.scores.tolist() == losses.tolist()
    return selection.chosen.tolist()


def plausible(hits: int, draws: int, p: float) -> bool:
    """Whether a Binomial(draws, p) reaches `hits` in its direction with a probability above 1e-9."""
    ways = [lgamma(draws + 1) - lgamma(i + 1) - lgamma(draws - i + 1) for i in range(draws + 1)]
    terms = [exp(ways[i] + i * log(p) + (draws - i) * log(1 - p)) for i in range(draws + 1)]
    return min(sum(terms[: hits + 1]), sum(terms[hits:])) > 1e-9


# -- selectors -------------------------------------------------------------------------------------------------------


def test_random_selection_is_uniform_and_differs_between_updates() -> None:
    draws = [choose(RandomSelector(), np.zeros(10), 4, seed) for seed in range(900)]
    assert all(len(set(d)) == 4 for d in draws)
    assert len({tuple(d) for d in draws[:50]}) > 40
    for row in range(10):
        assert plausible(sum(row in d for d in draws), 900, 0.4)
    assert choose(RandomSelector(), np.zeros(10), 4, 3) == draws[3]
    assert sorted(choose(RandomSelector(), np.zeros(10), 10)) == list(range(10))


def test_random_selection_with_replacement_may_exceed_the_pool() -> None:
    selector = RandomSelector(replacement=True)
    assert selector.with_replacement() and not RandomSelector().with_replacement()
    drawn = choose(selector, np.zeros(3), 900)
    assert len(drawn) == 900
    assert all(plausible(drawn.count(row), 900, 1 / 3) for row in range(3))


# Twelve losses whose quantiles at 1/11 x (3, 8) are rows themselves: low 4 rows, medium 4, high 4.
LOSSES = [0.3, 1.1, 0.1, 0.8, 0.5, 1.2, 0.2, 0.9, 0.6, 1.0, 0.4, 0.7]
CUTS = (3 / 11 + 1e-9, 8 / 11 - 1e-9)
BUCKETS = {"low": {0, 2, 6, 10}, "medium": {4, 8, 11, 3}, "high": {7, 9, 1, 5}}


@pytest.mark.parametrize("focus", BUCKETS)
@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("weight, temperature, p", [(5.0, 1.0, 5 / 7), (9.0, 2.0, 3 / 5), (0.25, 1.0, 1 / 9)])
def test_the_focused_bucket_is_drawn_in_proportion(
    focus: str, replacement: bool, weight: float, temperature: float, p: float
) -> None:
    """The first row is of the bucket with probability w / (w + 2), w = focus_weight^(1/temperature), 4 rows in each."""
    selector = LossSelector(
        focus=focus, focus_weight=weight, temperature=temperature, quantiles=CUTS, replacement=replacement
    )
    firsts = [choose(selector, LOSSES, 1, seed)[0] for seed in range(900)]
    assert plausible(sum(row in BUCKETS[focus] for row in firsts), 900, p)
    for row in range(12):
        share = p / 4 if row in BUCKETS[focus] else (1 - p) / 8
        assert plausible(firsts.count(row), 900, share)


def test_draws_without_replacement_are_sequential() -> None:
    """Every ordered pair of three rows: w_i / W for the first, w_j / (W - w_i) for the second."""
    selector = LossSelector(focus="high", focus_weight=4.0, quantiles=(0.5, 0.75))
    w = [1.0, 1.0, 4.0]
    draws = [tuple(choose(selector, [0.0, 1.0, 2.0], 2, seed)) for seed in range(1000)]
    for i, j in permutations(range(3), 2):
        assert plausible(draws.count((i, j)), 1000, w[i] / sum(w) * w[j] / (sum(w) - w[i]))
    assert sorted(choose(selector, [0.0, 1.0, 2.0], 3)) == [0, 1, 2]


def test_draws_with_replacement_are_independent() -> None:
    selector = LossSelector(focus="low", focus_weight=4.0, quantiles=(0.25, 0.75), replacement=True)
    assert selector.with_replacement() and not LossSelector().with_replacement()
    drawn = choose(selector, [0.0, 1.0, 2.0], 1000)
    assert len(drawn) == 1000
    assert [plausible(drawn.count(row), 1000, p) for row, p in enumerate((4 / 6, 1 / 6, 1 / 6))] == [True] * 3


@pytest.mark.parametrize(
    "losses, quantiles, buckets",
    [
        ([1.0, 2.0, 3.0, 4.0, 5.0], (0.25, 0.75), {"low": {0, 1}, "medium": {2, 3}, "high": {4}}),  # cuts at 2 and 4
        ([1.0, 2.0, 3.0], (0.0, 1.0), {"low": {0}, "medium": {1, 2}, "high": set()}),
        ([1.0, 2.0, 3.0], (0.5, 0.5), {"low": {0, 1}, "medium": set(), "high": {2}}),
        ([7.0, 7.0, 7.0], (0.33, 0.66), {"low": {0, 1, 2}, "medium": set(), "high": set()}),
        ([1.0, 1.0, 1.0, 9.0], (0.25, 0.5), {"low": {0, 1, 2}, "medium": set(), "high": {3}}),
        ([5.0], (0.33, 0.66), {"low": {0}, "medium": set(), "high": set()}),
        (
            [1.0] * 3 + [2.0] * 7,  # tied at the upper quantile
            (0.33, 0.66),
            {"low": {0, 1, 2}, "medium": {3, 4, 5, 6, 7, 8, 9}, "high": set()},
        ),
    ],
)
@pytest.mark.parametrize("focus", BUCKETS)
def test_rows_at_the_quantiles_and_ties(focus: str, losses: list[float], quantiles: Any, buckets: Any) -> None:
    """As dataflex 1.1.0 has it, a loss at a quantile belongs to the lower bucket. With an overwhelming weight the bucket comes
    first, whole; an empty bucket leaves the draw uniform, and says so."""
    selector = LossSelector(focus=focus, focus_weight=1e12, quantiles=quantiles)
    wanted = buckets[focus]
    for seed in range(20):
        assert set(choose(selector, losses, len(wanted), seed)) == wanted
    if not wanted:
        assert {choose(selector, losses, 1, seed)[0] for seed in range(60)} == set(range(len(losses)))
    context = SelectionContext(
        budget=1, rows=len(losses), step=4, update=0, updates=None, domain=None, rng=generator(1, 0)
    )
    remarks = selector.select({}, {"loss": np.array(losses)}, context)[0].remarks
    assert set(remarks) == (set() if wanted else {"bucket"})


# -- mixers ----------------------------------------------------------------------------------------------------------


def observe(pi: np.ndarray, rows: np.ndarray, loss: np.ndarray, seed: int = 0) -> Observations:
    rows, loss, none = rows.astype(np.float64), loss.astype(np.float64), np.zeros(len(pi))
    return Observations(1, 0, pi, rows, loss, tokens=none, token_loss=none, signals={}, rng=generator(7, seed))


def info(k: int) -> DomainInfo:
    return DomainInfo(tuple(map(str, range(k))), np.arange(1, k + 1), np.full(k, 1 / k))


def test_random_mixing_changes_between_updates_and_repeats_with_its_seed() -> None:
    drawn = [RandomMixer().update({}, observe(np.ones(3) / 3, np.ones(3), np.ones(3), s))[0] for s in (0, 1, 2, 0)]
    points = [d.proportions for d in drawn]
    assert points[0].tolist() == points[3].tolist()
    assert len({tuple(p) for p in points}) == 3
    assert all(p.shape == (3,) and (p > 0).all() for p in points)
    np.testing.assert_allclose(np.sum(points, axis=1), 1.0, rtol=1e-12)


def test_static_mixing_keeps_what_it_was_given() -> None:
    mixer, domains = StaticMixer(), DomainInfo(("a", "b"), np.array([5, 1]), np.array([0.7, 0.3]))
    assert mixer.fixed and mixer.initial(domains).tolist() == [0.7, 0.3]


# -- weighters -------------------------------------------------------------------------------------------------------


def weigh(weighter: LossWeighter, losses: list[float], reference: list[float]) -> list[float]:
    none = torch.zeros(len(losses), dtype=torch.int64)
    context = WeightContext(reference=torch.tensor(reference), ids=none, domains=none, step=0)
    return weighter.weights(weighter.init(), torch.tensor(losses), context).tolist()


BATCH = [1.0, 2.0, 3.0, 5.0]  # h = -1, -1/2, 0, 1 at delta = 1


@pytest.mark.parametrize(
    "parameters, expected",
    [
        ({"strategy": "linupper"}, [1.0, e**0.5, e, e]),
        ({"strategy": "quadratic"}, [1.0, e**0.75, e, 1.0]),
        ({"strategy": "extremes"}, [e, e**0.5, 1.0, e]),
        ({"strategy": "upper"}, [1.0, e**0.25, e**0.5, e]),
        ({"strategy": "uniform"}, [1.0, 1.0, 1.0, 1.0]),
        ({"strategy": "linupper", "delta": 2.0}, [1.0, e, e**2, e**2]),
        ({"strategy": "quadratic", "delta": 2.0}, [1.0, e**0.75, e, 1.0]),
        ({"strategy": "extremes", "delta": 2.0, "r": 4.0}, [e**0.5, e**0.25, 1.0, e**0.5]),
    ],
)
def test_loss_weights_worked_out_by_hand(parameters: dict[str, Any], expected: list[float]) -> None:
    weighter = LossWeighter(**parameters)
    expected = [w / max(expected) for w in expected]  # only ratios matter
    assert weigh(weighter, BATCH, BATCH) == pytest.approx(expected, rel=1e-6)
    assert weigh(weighter, BATCH[2:], BATCH) == pytest.approx(expected[2:], rel=1e-6)  # each row by itself
    assert weigh(weighter, [0.0, 99.0], BATCH) == pytest.approx([expected[0], expected[-1]], rel=1e-6)  # nearer bound


@pytest.mark.parametrize("strategy", ["linupper", "upper", "quadratic", "extremes", "uniform"])
def test_equal_losses_weigh_the_same(strategy: str) -> None:
    first, second = weigh(LossWeighter(strategy=strategy, r=0.001), [4.0, 4.0], [4.0, 4.0])
    assert first == second == 1


# -- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cls, parameters, message",
    [
        (LossSelector, {"focus": "lowest"}, "focus must be one of low, medium, high, got 'lowest'"),
        (LossSelector, {"focus_weight": 0.0}, "focus_weight must be positive and finite, got 0.0"),
        (LossSelector, {"temperature": -1.0}, "temperature must be positive, got -1.0"),
        (LossSelector, {"quantiles": (0.7, 0.3)}, "quantiles must be two ascending numbers in [0, 1], got (0.7, 0.3)"),
        (LossSelector, {"quantiles": (-0.1, 0.3)}, "quantiles must be two ascending numbers in [0, 1]"),
        (LossSelector, {"quantiles": (0.1, 1.3)}, "quantiles must be two ascending numbers in [0, 1]"),
        (LossSelector, {"quantiles": (0.1, 0.2, 0.3)}, "quantiles must be two ascending numbers in [0, 1]"),
        (OdmMixer, {"alpha": 1.0}, "alpha must be in [0, 1), got 1.0"),
        (OdmMixer, {"alpha": 0.9}, "alpha must be left out with reward: authors, which adds rewards up"),
        (OdmMixer, {"reward": "mean"}, "reward must be one of authors, averaged, unbiased, got 'mean'"),
        (OdmMixer, {"alpha": -0.1}, "alpha must be in [0, 1), got -0.1"),
        (OdmMixer, {"reward_scale": 0.0}, "reward_scale must be positive, got 0.0"),
        (OdmMixer, {"min_exploration_rate": 1.1}, "min_exploration_rate must be in [0, 1], got 1.1"),
        (
            LossWeighter,
            {"strategy": "linlower"},
            "strategy must be one of linupper, upper, quadratic, extremes, uniform, got",
        ),
        (LossWeighter, {"delta": 0.0}, "delta must be positive, got 0.0"),
        (LossWeighter, {"r": float("nan")}, "r must be positive, got nan"),
    ],
)
def test_parameters_outside_their_range_are_refused(cls: type[Component], parameters: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        cls(**parameters)
    assert str(error.value).startswith(message)


# -- names -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Theirs(Selector):
    """A component of a third party, with a parameter that has no default."""

    target: str

    def select(
        self, state: State, signals: Mapping[str, np.ndarray], context: SelectionContext
    ) -> tuple[Selection, State]:
        return Selection(np.arange(context.budget)), state


@dataclass(frozen=True, kw_only=True)
class Unfinished(Mixer):
    """Lacks `update`."""


class OldSelector:
    """The shape of a component of dataflex 1.1.0."""

    def select(self, model: Any, step_id: int, num_samples: int) -> list[int]:
        return list(range(num_samples))


ME = __name__


@pytest.mark.parametrize("slot", list(registry.FAMILIES))
def test_every_name_of_the_tables_resolves(slot: str) -> None:
    table, base, _ = registry.FAMILIES[slot]
    assert registry.names(slot) == sorted(["custom", *table])
    for name in table:
        assert issubclass(registry.resolve(slot, name, "key"), base)


def test_components_come_from_modules_and_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a parameter without a default is asked for by name."""
    found = EntryPoint(name="theirs", value=f"{ME}:Theirs", group="dataflex.selectors")
    monkeypatch.setattr(registry, "entry_points", lambda group: [found] if group == found.group else [])
    assert registry.names("select") == sorted(["custom", *registry.SELECTORS, "theirs"])
    assert registry.names("weight") == sorted(["custom", *registry.WEIGHTERS])
    for name in ("theirs", f"{ME}:Theirs"):
        select = {"name": name, "interval": 1}
        parsed = parse({"do_train": True, "dataflex": {"select": {**select, "target": "x"}}}).dataflex
        assert parsed is not None and parsed.components == {"select": Theirs(target="x")}
        with pytest.raises(ConfigError, match=rf"^dataflex\.select\.target is required by {name}$"):
            parse({"do_train": True, "dataflex": {"select": select}})


@pytest.mark.parametrize(
    "slot, name, message",
    [
        (
            "weight",
            "zzz",
            "unknown weighter 'zzz'; choose from adapt, column, custom, domain, focal, joint_update_aware, loss, rho1",
        ),
        (
            "mix",
            "no_such_module:X",
            "cannot import 'no_such_module:X': ModuleNotFoundError: No module named 'no_such_module'",
        ),
        ("mix", "json:X", "module 'json' has no 'X'"),
        ("mix", "json:loads", "json:loads is not a dataflex Mixer (it must extend dataflex.Mixer)"),
        ("mix", f"{ME}:Theirs", f"{ME}:Theirs is not a dataflex Mixer (it must extend dataflex.Mixer)"),
        ("mix", f"{ME}:Unfinished", f"{ME}:Unfinished does not implement update"),
        ("select", f"{ME}:OldSelector", f"{ME}:OldSelector is not a dataflex Selector (it looks like a component of"),
        ("mix", ":X", ""),
        ("mix", ".relative:X", ""),
        ("mix", "broken_import:X", ""),
        ("mix", "broken_syntax:X", ""),
        ("mix", "broken", "entry point 'broken' does not load: ModuleNotFoundError: No module named 'no_such_module'"),
    ],
)
def test_a_name_that_leads_nowhere_is_one_line(
    slot: str, name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = EntryPoint(name="broken", value="no_such_module:X", group="dataflex.mixers")
    monkeypatch.setattr(registry, "entry_points", lambda group: [broken] if name == "broken" else [])
    (tmp_path / "broken_import.py").write_text("from json import nothing_of_the_kind\n")
    (tmp_path / "broken_syntax.py").write_text("def (\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError) as error:
        registry.resolve(slot, name, "the.key")
    assert str(error.value).startswith(f"the.key: {message}") and "\n" not in str(error.value)
