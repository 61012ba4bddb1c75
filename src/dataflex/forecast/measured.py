"""Prices of a run: a short training on few rows of the same data, in which every component acts once."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from dataflex.base.processes import children
from dataflex.errors import DataflexError
from dataflex.forecast.run import Forecast
from dataflex.reading.run import Run
from dataflex.report.tables import Table
from dataflex.report.words import duration, percent

_ACTS_AT = 2  # the step before which every component acts: the first ones are slower, and Adam has moments by then


@dataclass(frozen=True)
class Price:
    """What one component, or the training, will take."""

    name: str
    times: int
    seconds: float
    """Of one time."""

    @property
    def total(self) -> float:
        return self.times * self.seconds


@dataclass(frozen=True)
class Prices:
    """On this machine."""

    prices: tuple[Price, ...]
    """Training first."""
    steps: int
    """That were timed."""

    @property
    def total(self) -> float:
        return sum(price.total for price in self.prices)

    def table(self) -> Table:
        rows = []
        for price in self.prices:
            share = percent(price.total / self.total if self.total else None)
            rows.append((price.name, f"{price.times:,}", duration(price.seconds), duration(price.total), share))
        rows.append(("in all", "", "", duration(self.total), ""))
        note = f"From {self.steps} steps on this machine; decisions by rows. Without evaluating, saving and loading."
        return Table("Time", ("spent on", "times", "each", "in all", "share"), rows, note)

    def to_json(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "seconds": self.total,
            "prices": [{**asdict(p), "total": p.total} for p in self.prices],
        }


def measure(raw: Mapping[str, Any], forecast: Forecast, steps: int) -> Prices:
    """Train `steps` steps in a child process and a folder of their own, which is removed. raw: the configuration as it was read.
    DataflexError if that training fails."""
    steps = max(steps, _ACTS_AT + 2)
    with TemporaryDirectory(prefix="dataflex-plan-") as folder:
        file, out = Path(folder) / "measure.yaml", Path(folder) / "run"
        file.write_text(yaml.safe_dump(_short(raw, forecast, steps, out)))
        status = children.run(["-m", "dataflex", "train", str(file), "--quiet"], ours=True)
        if status != 0:
            raise DataflexError(f"--measure: the short training ended with status {status}; the lines above say why")
        return _prices(Run(out, "measured"), forecast, steps)


def _short(raw: Mapping[str, Any], forecast: Forecast, steps: int, out: Path) -> dict[str, Any]:
    """The configuration of the short training: the same rows of a step, few rows in all, every component once."""
    config = copy.deepcopy(dict(raw))
    each = max(8, -(-2 * forecast.global_batch // max(len(forecast.data), 1)))
    config |= {
        "output_dir": str(out), "max_steps": steps, "max_samples": each, "logging_steps": 1, "save_strategy": "no",
        "eval_strategy": "no", "do_eval": False, "report_to": "none", "overwrite_output_dir": True, "plot_loss": False,
        "resume_from_checkpoint": None,
    }  # fmt: skip
    block = config.get("dataflex")
    if isinstance(block, dict):
        block["total_steps"] = steps
        for slot in ("select", "mix", "order"):
            if isinstance(block.get(slot), dict) and ("interval" in block[slot] or slot == "select"):
                block[slot] |= {"warmup": _ACTS_AT, "interval": steps if slot == "mix" else 1, "updates": 1}
    return config


def _prices(run: Run, forecast: Forecast, steps: int) -> Prices:
    decided = [
        line for line in run.ledger if line["component"].partition(":")[0] in ("select", "mix", "weight", "order")
    ]
    spent = sum(float(line["seconds"]) for line in decided)
    trained = max(run.log.seconds - spent, 0.0) / steps
    found = [Price("training", forecast.steps or 0, trained)]
    measured = sum(n for n in run.sizes.values() if n is not None)
    for act in forecast.timeline:
        own = [line for line in decided if line["component"].startswith(f"{act.slot}:")]
        if own:
            scale = (
                forecast.samples / measured
                if forecast.samples and measured and act.slot in ("select", "order")
                else 1.0
            )
            times = act.times if act.slot != "weight" else len(own)
            found.append(Price(f"{act.slot} {act.name}", times, scale * float(own[0]["seconds"])))
    return Prices(tuple(found), steps)
