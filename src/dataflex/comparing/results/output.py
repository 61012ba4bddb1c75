"""The files of a comparison: comparison.json, RESULTS.md and report.html."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from dataflex.base.environment import report
from dataflex.comparing.results.comparison import Comparison
from dataflex.comparing.results.tables import markdown, tables_of
from dataflex.reading.run import Run
from dataflex.report.page import Section, page
from dataflex.writing import write_atomically

JSON, RESULTS, PAGE = "comparison.json", "RESULTS.md", "report.html"
_VERSIONS = ("dataflex", "Python", "platform", "torch", "transformers", "llamafactory", "device")


def write(out: Path, comparison: Comparison, runs: Sequence[Run], command: Sequence[str]) -> list[Path]:
    """Write all three files below `out`; their paths. command: that has made them, as words."""
    title = f"Comparison {out.name}"
    contents = {
        JSON: json.dumps(comparison.to_json(), indent=1, default=str, allow_nan=False),
        RESULTS: _results(comparison, title, command),
        PAGE: page(runs, title, first=[Section("Comparison", list(tables_of(comparison)))]) if runs else "",
    }
    for name, text in contents.items():
        if text:
            write_atomically(out / name, f"{text.rstrip()}\n".encode(errors="replace"))
    return [out / name for name, text in contents.items() if text]


def _results(comparison: Comparison, title: str, command: Sequence[str]) -> str:
    facts = [f"- {name}: {value}" for name, value in report() if name in _VERSIONS]
    parts = [
        f"# {title}",
        f"`{shlex.join(command)}`, written {datetime.now().astimezone():%Y-%m-%d %H:%M %Z}.",
        "\n".join(facts),
        *([("\n".join(f"- {line}" for line in comparison.remarks()))] if any(comparison.remarks()) else []),
        *map(markdown, tables_of(comparison)),
    ]
    return "\n\n".join(parts)
