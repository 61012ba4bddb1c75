"""What the demonstration reports: the figures of each run, their noise, and their table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import t as student

from dataflex.demo.data import HELDOUT
from dataflex.errors import DataflexError

WITHIN = "within noise"


@dataclass(frozen=True)
class Noise:
    """A figure of runs that differ in their seed alone.

    half_width: half of the interval in which one more such run lies in 95 of 100 cases, t s sqrt(1 + 1/n), with the
    standard deviation s of the n runs and the 97.5 % quantile t of Student's distribution with n - 1 degrees of freedom.
    """

    mean: float
    half_width: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Noise:
        """ValueError for fewer than two."""
        if len(values) < 2:
            raise ValueError("one run has no spread")
        quantile = float(student.ppf(0.975, len(values) - 1))
        deviation = float(np.std(values, ddof=1))
        return cls(float(np.mean(values)), quantile * deviation * float(np.sqrt(1 + 1 / len(values))))

    def judge(self, value: float) -> str:
        """lower, higher, or within noise."""
        if abs(value - self.mean) <= self.half_width:
            return WITHIN
        return "lower" if value < self.mean else "higher"


@dataclass(frozen=True)
class RunResult:
    """One run: held-out loss by domain (nats per answer token), and the seconds its training loop took."""

    name: str
    losses: dict[str, float]
    seconds: float

    @property
    def mean(self) -> float:
        """Every domain counts the same."""
        return sum(self.losses.values()) / len(self.losses)


def read_result(name: str, run_dir: Path, domains: Sequence[str]) -> RunResult:
    """The figures LLaMA-Factory left in `run_dir`; DataflexError if one of them is missing."""
    path = run_dir / "all_results.json"
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
        losses = {domain: float(figures[f"eval_{domain}{HELDOUT}_loss"]) for domain in domains}
        return RunResult(name, losses, float(figures["train_runtime"]))
    except FileNotFoundError:
        raise DataflexError(f"run {name!r} left no {path}") from None
    except KeyError as error:
        raise DataflexError(f"run {name!r} left no {error.args[0]} in {path}") from None


def format_table(results: Sequence[RunResult], plain: Sequence[str], noise: Mapping[str, Noise]) -> str:
    """Rows are runs, columns the held-out loss of each domain, their mean, and seconds. No trailing newline.

    The runs named in `plain` are one row, their mean, with their noise below. A figure within it has a "~".
    """
    same = [result for result in results if result.name in plain]
    domains = list(same[0].losses)
    rows = [["run", *domains, "mean", "seconds"]]
    mean = [noise[domain].mean for domain in domains]
    seconds = sum(result.seconds for result in same) / len(same)
    rows.append([same[0].name, *map(_loss, [*mean, sum(mean) / len(mean)]), f"{seconds:.1f}"])
    rows.append(["  noise", *(f"\u00b1{noise[domain].half_width:.3f} " for domain in domains), "", ""])
    for result in results:
        if result.name not in plain:
            cells = [_loss(loss, noise[domain].judge(loss) == WITHIN) for domain, loss in result.losses.items()]
            rows.append([result.name, *cells, _loss(result.mean), f"{result.seconds:.1f}"])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _loss(value: float, within: bool = False) -> str:
    return f"{value:.3f}{'~' if within else ' '}"
