"""Is a difference between two methods more than noise? Runs are paired by seed.

The test is the paired t test (Student, Biometrika 6, 1908). Over the methods of a table its p values are corrected by Holm's
procedure (Scandinavian Journal of Statistics 6, 1979), which bounds the chance of any false alarm among them. The number of
seeds that would settle a difference follows from the noncentral t distribution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

LEVEL = 0.05
"""Of the test, and one minus the confidence of intervals."""
POWER = 0.8
ONE_SEED = "one seed cannot tell an effect from noise"
_MOST_SEEDS = 1000
_QUANTILES = 2000
_ROUNDING = 1e-12  # of a value, below which a difference is one of rounding


@dataclass(frozen=True)
class Sample:
    """A metric of one method, over its seeds."""

    values: Mapping[int, float]
    """By seed; NaN or infinite where a run has diverged."""

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.values.values()))) if self.values else math.nan

    @property
    def spread(self) -> float | None:
        """The standard deviation over seeds, with n - 1; None for one seed."""
        found = list(self.values.values())
        return float(np.std(found, ddof=1)) if len(found) > 1 else None


@dataclass(frozen=True)
class Difference:
    """A method minus its baseline, seed by seed."""

    seeds: tuple[int, ...]
    """That both have."""
    mean: float
    deviation: float | None
    """The standard deviation of the differences; None: fewer than two seeds, or a value that is not finite."""
    interval: tuple[float, float] | None
    """Of 95 %, for this difference alone; None as for `p`."""
    p: float | None
    """Of the paired t test, two-sided, for this difference alone; None where the deviation is not known, or zero."""
    adjusted: float | None = None
    """p after Holm's correction over the methods of the table."""

    @property
    def found(self) -> bool:
        """Whether it is more than noise."""
        return self.adjusted is not None and self.adjusted < LEVEL


def difference(method: Mapping[int, float], baseline: Mapping[int, float]) -> Difference:
    """Of two mappings from seed to value."""
    seeds = tuple(seed for seed in method if seed in baseline)
    deltas = np.array([method[seed] - baseline[seed] for seed in seeds], dtype=np.float64)
    n, mean = len(deltas), float(deltas.mean()) if len(deltas) else math.nan
    if n < 2 or not np.isfinite(deltas).all():
        return Difference(seeds, mean, None, None, None)
    deviation = float(deltas.std(ddof=1))
    if deviation <= _ROUNDING * max(abs(value) for seed in seeds for value in (method[seed], baseline[seed])):
        # Equal in every seed. Of counts, such as right answers, a few seeds may agree by chance, and t would be infinite.
        return Difference(seeds, mean, 0.0, None, None) if mean else Difference(seeds, 0.0, 0.0, (0.0, 0.0), 1.0)
    from scipy import stats  # which takes a second to import

    error = deviation / math.sqrt(n)
    half = float(stats.t.ppf(1 - LEVEL / 2, n - 1)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, n - 1))
    return Difference(seeds, mean, deviation, (mean - half, mean + half), p)


def holm(differences: Sequence[Difference]) -> list[Difference]:
    """The same, with `adjusted`. Those without a p have none, and are not counted."""
    tested = sorted((d.p, i) for i, d in enumerate(differences) if d.p is not None)
    found, least = list(differences), 0.0
    for rank, (p, index) in enumerate(tested):
        least = max(least, min(1.0, (len(tested) - rank) * p))
        found[index] = replace(differences[index], adjusted=least)
    return found


def seeds_needed(mean: float, deviation: float) -> int | None:
    """The fewest seeds with which a difference of this size is found with probability POWER, by one paired t test at LEVEL.

    None: more than 1000, or there is no difference. deviation: of the differences, above zero."""
    if not mean:
        return None
    effect = abs(mean) / deviation
    low, high = 2, _MOST_SEEDS
    if power(high, effect) < POWER:
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle, effect) >= POWER else (middle + 1, high)
    return low


def power(n: int, effect: float) -> float:
    """The chance that a paired t test of n seeds finds a difference of `effect` standard deviations, at LEVEL.

    t is (Z + effect sqrt(n)) / sqrt(V / (n - 1)) with Z normal and V chi-squared. The mean over V is taken at its quantiles;
    scipy's noncentral t has no numbers for large effects.
    """
    from scipy import stats

    quantiles = stats.chi2.ppf((np.arange(_QUANTILES) + 0.5) / _QUANTILES, n - 1)
    limit = stats.t.ppf(1 - LEVEL / 2, n - 1) * np.sqrt(quantiles / (n - 1))
    shift = effect * math.sqrt(n)
    return float(np.mean(stats.norm.cdf(shift - limit) + stats.norm.cdf(-shift - limit)))


def verdict(found: Difference, *, lower_is_better: bool | None) -> str:
    """What a difference says, in one sentence."""
    n = len(found.seeds)
    if n == 0:
        return "no seed in common with the baseline"
    if not math.isfinite(found.mean):
        return "a run has diverged, so there is no test"
    if n == 1:
        return ONE_SEED
    assert found.deviation is not None
    if not found.deviation:
        return (
            "equal in every seed"
            if not found.mean
            else f"the same difference in all {n} seeds, so its spread is not known"
        )
    assert found.adjusted is not None
    if found.found:
        how = "lower" if found.mean < 0 else "higher"
        better = "" if lower_is_better is None else " (better)" if lower_is_better == (found.mean < 0) else " (worse)"
        return f"{how}{better} by {abs(found.mean):.3g} (p {_p(found.adjusted)})"
    needed = seeds_needed(found.mean, found.deviation)
    if needed is None:
        return f"within noise; {_MOST_SEEDS} seeds would not settle a difference of this size"
    if needed <= n:  # found by this test alone, and lost to the correction for the other methods
        return "within noise, since several methods were tried; more seeds would tell"
    return f"within noise; about {needed} seeds would settle a difference of this size (power {POWER:g})"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.2g}"
