"""Statistics of a comparison, against scipy's own and against simulation."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
from scipy import stats

from dataflex.comparing.results.comparison import Comparison, Method
from dataflex.comparing.results.figures import Figures, lower_is_better
from dataflex.comparing.results.statistics import LEVEL, POWER, Sample, difference, holm, power, seeds_needed, verdict


def by_seed(values: np.ndarray) -> dict[int, float]:
    return {seed: float(value) for seed, value in enumerate(values)}


@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_differences_are_those_of_scipy(n: int) -> None:
    rng = np.random.default_rng(n)
    for _ in range(20):
        a, b = rng.normal(2.0, 0.1, n), rng.normal(2.1, 0.1, n)
        found, expected = difference(by_seed(a), by_seed(b)), stats.ttest_rel(a, b)
        assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
        assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)), rel=1e-9)
        assert found.mean == pytest.approx((a - b).mean()) and Sample(by_seed(a)).spread == pytest.approx(a.std(ddof=1))


def test_runs_are_paired_by_seed_and_not_by_place() -> None:
    base = {0: 1.0, 1: 5.0, 2: 9.0, 7: 100.0}
    found = difference({2: 8.9001, 0: 0.9, 1: 4.8999, 3: 0.0}, base)
    assert set(found.seeds) == {0, 1, 2} and found.mean == pytest.approx(-0.1)
    assert found.p is not None and found.p < 1e-5  # seeds differ far more than methods do


def test_holm_is_the_step_down_procedure() -> None:
    """Against its definition: the smallest p times m, the next times m - 1, and never below an earlier one."""
    rng = np.random.default_rng(0)
    found = [difference(by_seed(rng.normal(0.3 * k, 1, 6)), by_seed(rng.normal(0, 1, 6))) for k in range(5)]
    untested = difference({0: 1.0}, {0: 2.0})
    adjusted = holm([*found, untested])
    ps = np.array([d.p for d in found])
    expected = np.zeros(5)
    for rank, index in enumerate(np.argsort(ps)):
        before = [expected[i] for i in np.argsort(ps)[:rank]]
        expected[index] = min(1.0, max([(5 - rank) * ps[index], *before]))
    np.testing.assert_allclose([d.adjusted for d in adjusted[:5]], expected)
    assert adjusted[5].adjusted is None and [d.p for d in adjusted[:5]] == list(ps)


def methods(values: Mapping[str, np.ndarray]) -> list[Method]:
    """The first one is the baseline. values: of the metric `loss`, by method."""
    base = next(iter(values))
    return [
        Method(name, base, {s: Figures({"loss": v}, 10, 1.0, 0.0, None) for s, v in by_seed(found).items()},
               tuple(range(len(found))), {})
        for name, found in values.items()
    ]  # fmt: skip


def test_a_planted_effect_is_found_and_a_planted_null_is_noise() -> None:
    rng = np.random.default_rng(3)
    seeds = rng.normal(2.0, 0.3, 8)  # what a seed does to all methods
    noise = lambda: rng.normal(0, 0.02, 8)  # noqa: E731
    planted = {"none": seeds + noise(), "better": seeds - 0.1 + noise(), "same": seeds + noise()}
    table = {row.method.name: row for row in Comparison(methods(planted), "steps").tables["loss"]}
    assert table["none"].verdict == "baseline" and table["none"].difference is None
    better, same = table["better"], table["same"]
    assert better.difference is not None and better.difference.found
    assert better.verdict == f"lower (better) by {-better.difference.mean:.3g} (p < 0.001)"
    low, high = better.difference.interval or (0, 0)
    assert low < -0.1 < high < 0
    assert same.difference is not None and not same.difference.found and same.verdict.startswith("within noise")


def test_the_rate_of_false_alarms_is_the_level() -> None:
    """2,000 metrics of methods that do nothing, on five seeds: within the 99.9 % interval of a binomial; and of four methods
    that do nothing, any alarm after Holm's correction is no more frequent."""
    rng, trials = np.random.default_rng(11), 2000
    low, high = stats.binom.interval(0.999, trials, LEVEL)
    shared = rng.normal(0, 1, (trials, 5))
    alone = [holm([difference(by_seed(s + a), by_seed(s + b))])[0].found
             for s, a, b in zip(shared, rng.normal(0, 1, (trials, 5)), rng.normal(0, 1, (trials, 5)))]  # fmt: skip
    assert low <= sum(alone) <= high
    several = 0
    for base, others in zip(rng.normal(0, 1, (trials, 5)), rng.normal(0, 1, (trials, 4, 5))):
        several += any(d.found for d in holm([difference(by_seed(o), by_seed(base)) for o in others]))
    assert 0 < several <= high


def test_so_many_seeds_settle_a_difference() -> None:
    """Against Cohen's tables, scipy's noncentral t where it has numbers, and the definition: one seed less is too few."""
    assert seeds_needed(0.5, 1.0) == 34  # Cohen (1988), d = 0.5
    for n, effect in ((3, 0.5), (5, 1.0), (10, 0.3), (34, 0.5), (100, 0.2)):
        limit, shift = stats.t.ppf(0.975, n - 1), effect * np.sqrt(n)
        expected = stats.nct.sf(limit, n - 1, shift) + stats.nct.cdf(-limit, n - 1, shift)
        assert power(n, effect) == pytest.approx(expected, abs=1e-3)
    for effect in (0.1, 0.3, 0.7, 1.2, 1.56, 3.0, 8.0):
        needed = seeds_needed(-effect, 1.0)
        assert needed is not None and power(needed, effect) >= POWER
        assert needed == 2 or power(needed - 1, effect) < POWER
    assert seeds_needed(1.56, 1.0) == 6
    assert seeds_needed(0.0, 1.0) is None and seeds_needed(0.001, 1.0) is None and seeds_needed(500.0, 0.1) == 2


def test_the_number_of_seeds_is_right_by_simulation() -> None:
    rng = np.random.default_rng(5)
    drawn = rng.normal(1.0, 1.0, (2000, seeds_needed(1.0, 1.0) or 0))
    found = [(difference(by_seed(values), dict.fromkeys(range(len(values)), 0.0)).p or 1) < LEVEL for values in drawn]
    assert POWER - 0.03 < np.mean(found) < POWER + 0.06


def test_what_cannot_be_told_is_said() -> None:
    def said(method: dict[int, float], base: dict[int, float]) -> str:
        return verdict(holm([difference(method, base)])[0], lower_is_better=True)

    assert said({0: 1.0}, {0: 2.0}) == "one seed cannot tell an effect from noise"
    assert said({0: 1.0}, {1: 2.0}) == "no seed in common with the baseline"
    assert said({0: math.nan, 1: 1.0}, {0: 2.0, 1: 2.0}) == "a run has diverged, so there is no test"
    assert said({0: math.inf, 1: 1.0}, {0: 2.0, 1: 2.0}) == "a run has diverged, so there is no test"
    assert said({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}) == "equal in every seed"
    same = "the same difference in all 2 seeds, so its spread is not known"  # as of two right answers more in each
    assert said({0: 0.5, 1: 1.5}, {0: 1.0, 1: 2.0}) == said({0: 0.3, 1: 0.8}, {0: 0.1, 1: 0.6}) == same
    higher = verdict(holm([difference({0: 1.1, 1: 2.1, 2: 3.101}, {0: 1.0, 1: 2.0, 2: 3.0})])[0], lower_is_better=False)
    assert higher == "higher (better) by 0.1 (p < 0.001)"


@pytest.mark.parametrize(
    ("metric", "lower"),
    [
        ("loss/code_heldout", True), ("heldout_loss/code", True), ("perplexity", True), ("bits_per_byte/mean", True),
        ("choice_accuracy/arc", False), ("choice_accuracy_raw/arc", False), ("choice_margin/arc", False),
        ("exact_match/sums", False), ("number_match/gsm8k", False), ("words/code", None),
    ],
)  # fmt: skip
def test_which_side_of_a_metric_is_better(metric: str, lower: bool | None) -> None:
    assert lower_is_better(metric) is lower
