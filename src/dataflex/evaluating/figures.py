"""What is said of one data set: metrics, their standard errors, and counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class Figures:
    """Of one data set, by name."""

    metrics: dict[str, float]
    errors: dict[str, float] = field(default_factory=dict)
    """Standard errors of metrics: how far they would vary with other rows of the same kind."""
    counts: dict[str, int] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    """Why rows are left out, with their number."""


def mean_and_error(values: Float[np.ndarray, " rows"]) -> tuple[float, float | None]:
    """The mean of rows, and its standard error s / sqrt(n) with the sample's deviation s; None of a single row."""
    count = len(values)
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(count)) if count > 1 else None


def ratio_and_error(
    numerators: Float[np.ndarray, " rows"], denominators: Float[np.ndarray, " rows"]
) -> tuple[float, float | None]:
    """The ratio R = sum y / sum x over rows, and its standard error; None of a single row.

    Rows are the units that were drawn, and the tokens of a row belong together. So the error is that of the ratio
    estimator (Cochran, Sampling Techniques, 1977, section 2.11, without the correction for a finite population):
    sqrt(n / (n - 1) sum (y_i - R x_i)^2) / sum x.
    """
    total, count = float(denominators.sum()), len(numerators)
    ratio = float(numerators.sum()) / total
    if count < 2:
        return ratio, None
    spread = float(((numerators - ratio * denominators) ** 2).sum())
    return ratio, float(np.sqrt(count / (count - 1) * spread) / total)


def figures_of(found: dict[str, tuple[float, float | None]], counts: dict[str, int], reasons: Counter[str]) -> Figures:
    """found: metric -> (value, standard error or None)."""
    errors = {name: error for name, (_, error) in found.items() if error is not None}
    return Figures({name: value for name, (value, _) in found.items()}, errors, counts, reasons)
