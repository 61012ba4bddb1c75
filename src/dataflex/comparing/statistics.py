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
from scipy import stats

LEVEL = 0.05
"""Of the test, and one minus the confidence of intervals."""
POWER = 0.8
_MOST_SEEDS = 1000


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
    """Of 95 %, for this difference alone."""
    p: float | None
    """Of the paired t test, two-sided, for this difference alone."""
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
    if not deviation:  # equal in every seed, as of two names for one method: nothing, or a constant
        return Difference(seeds, mean, deviation, (mean, mean), 1.0 if not mean else 0.0)
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
    """The fewest seeds with which a difference of this size is found with probability POWER, by one paired t test at LEVEL; None:
    more than 1000, or there is no difference."""
    if not mean:
        return None
    effect = abs(mean) / deviation if deviation else math.inf

    def power(n: int) -> float:
        critical, shift = float(stats.t.ppf(1 - LEVEL / 2, n - 1)), effect * math.sqrt(n)
        # Far out nct has no numbers; the other tail is nothing there.
        return (
            1.0 if shift > 30 else float(stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift))
        )

    low, high = 2, _MOST_SEEDS
    if power(high) < POWER:
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= POWER else (middle + 1, high)
    return low


def verdict(found: Difference, *, lower_is_better: bool | None) -> str:
    """What a difference says, in one sentence."""
    n = len(found.seeds)
    if n == 0:
        return "no seed in common with the baseline"
    if not math.isfinite(found.mean):
        return "a run has diverged, so there is no test"
    if n == 1:
        return "one seed cannot tell an effect from noise"
    assert found.deviation is not None and found.adjusted is not None
    if not found.mean and not found.deviation:
        return "equal in every seed"
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
