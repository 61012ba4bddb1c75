"""What the demonstration reports: the figures of each run, and their table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dataflex.demo.data import HELDOUT
from dataflex.errors import DataflexError


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


def format_table(results: Sequence[RunResult]) -> str:
    """Rows are runs, columns the held-out loss of each domain, their mean, and seconds. No trailing newline.

    Runs need not share domains: an absent figure is a dash.
    """
    domains = list(dict.fromkeys(domain for result in results for domain in result.losses))
    rows = [["run", *domains, "mean", "seconds"]]
    for result in results:
        cells = [f"{result.losses[domain]:.3f}" if domain in result.losses else "-" for domain in domains]
        rows.append([result.name, *cells, f"{result.mean:.3f}", f"{result.seconds:.1f}"])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
