"""What came out of a comparison: every metric of every method, and its difference to the baseline."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dataflex.comparing.results.figures import Figures, chosen, lower_is_better
from dataflex.comparing.results.statistics import Difference, Sample, difference, holm, verdict
from dataflex.errors import nearest


@dataclass(frozen=True)
class Method:
    """A row of the tables."""

    name: str
    baseline: str
    """The method that it is compared with: itself, if it is one."""
    runs: Mapping[int, Figures]
    """Those that have finished, by seed."""
    seeds: tuple[int, ...]
    """Those that were asked for."""
    settings: Mapping[str, Any]
    """The keys in which methods differ, by path."""

    @property
    def is_baseline(self) -> bool:
        return self.name == self.baseline

    def sample(self, metric: str) -> Sample:
        return Sample({seed: f.metrics[metric] for seed, f in self.runs.items() if metric in f.metrics})


@dataclass(frozen=True)
class Row:
    """A metric of a method. difference: to its baseline; None of a baseline."""

    method: Method
    sample: Sample
    difference: Difference | None
    verdict: str


class Comparison:
    """Statistics of methods.

    Args:
        equal: What was kept equal between runs; None: not known.
        asked: Metrics to compare; none: all held-out losses.
    """

    def __init__(self, methods: Sequence[Method], equal: str | None, asked: Sequence[str] = ()) -> None:
        self.methods, self.equal, self.asked = tuple(methods), equal, tuple(asked)

    @cached_property
    def known(self) -> list[str]:
        """All metrics that some run has, means over data sets first."""
        names = {name: None for method in self.methods for figures in method.runs.values() for name in figures.metrics}
        return sorted(names, key=lambda name: not name.endswith("/mean"))

    @cached_property
    def metrics(self) -> list[str]:
        return chosen(self.known, self.asked)

    @cached_property
    def tables(self) -> dict[str, list[Row]]:
        """The rows of every metric."""
        return {metric: self._rows(metric) for metric in self.metrics}

    def _rows(self, metric: str) -> list[Row]:
        samples = {method.name: method.sample(metric) for method in self.methods}
        compared = [method for method in self.methods if not method.is_baseline]
        found = holm([difference(samples[m.name].values, samples[m.baseline].values) for m in compared])
        by_name = {method.name: each for method, each in zip(compared, found, strict=True)}
        rows = []
        for method in self.methods:
            own = by_name.get(method.name)
            said = "baseline" if own is None else verdict(own, lower_is_better=lower_is_better(metric))
            rows.append(Row(method, samples[method.name], own, said))
        return rows

    def remarks(self) -> Iterator[str]:
        """What a reader of the tables must know."""
        for method in self.methods:
            missing = [seed for seed in method.seeds if seed not in method.runs]
            if missing:
                yield f"{method.name}: no results of seed {', '.join(map(str, missing))}"
        for name in self.asked:
            if not chosen(self.known, [name]):
                yield f"metrics: no run has {name!r}{nearest(name, self.known)}"
        if not self.metrics and any(method.runs for method in self.methods):
            yield "no run has a held-out loss; with eval_dataset or val_size every run is evaluated at its end"
        yield from self._unequal()

    def _unequal(self) -> Iterator[str]:
        """Where what was to be equal is not, by more than five percent."""
        kind = {"tokens": "tokens", "compute": "seconds"}.get(str(self.equal))
        if kind is None:
            return
        amounts = {method.name: mean_of(method, kind) for method in self.methods}
        known = {name: amount for name, amount in amounts.items() if amount}
        if known and max(known.values()) > 1.05 * min(known.values()):
            least, most = min(known, key=lambda n: known[n]), max(known, key=lambda n: known[n])
            yield (
                f"equal: {self.equal} holds roughly: {least} has {known[least]:,.4g} {kind} on average, and {most}"
                f" {known[most]:,.4g}"
            )

    def to_json(self) -> dict[str, Any]:
        """Numbers that are not finite become null."""
        return {
            "equal": self.equal,
            "methods": {m.name: _method_json(m) for m in self.methods},
            "metrics": {
                metric: {row.method.name: _row_json(row) for row in rows} for metric, rows in self.tables.items()
            },
            "remarks": list(self.remarks()),
        }


def mean_of(method: Method, what: str) -> float | None:
    """The mean of steps, seconds, deciding or tokens over the runs of a method; None where it is not known."""
    values = [getattr(figures, what) for figures in method.runs.values()]
    return None if not values or None in values else float(sum(values)) / len(values)


def _method_json(method: Method) -> dict[str, Any]:
    runs = {
        str(seed): {
            "steps": f.steps, "tokens": f.tokens, "seconds": f.seconds, "deciding": f.deciding,
            "metrics": {name: _finite(value) for name, value in f.metrics.items()},
        }
        for seed, f in method.runs.items()
    }  # fmt: skip
    return {"baseline": method.baseline, "settings": dict(method.settings), "runs": runs}


def _row_json(row: Row) -> dict[str, Any]:
    out: dict[str, Any] = {
        "seeds": len(row.sample.values),
        "mean": _finite(row.sample.mean),
        "standard_deviation": _finite(row.sample.spread),
        "verdict": row.verdict,
    }
    if row.difference is not None:
        d = row.difference
        out["difference"] = {
            "pairs": len(d.seeds),
            "mean": _finite(d.mean),
            "interval": None if d.interval is None else list(d.interval),
            "p": d.p,
            "p_holm": d.adjusted,
        }
    return out


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
