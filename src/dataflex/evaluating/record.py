"""`dataflex/evaluation.json`: the figures of all data sets."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dataflex.evaluating.figures import Figures
from dataflex.writing import write_atomically

FILE = Path("dataflex") / "evaluation.json"


def evaluation_record(found: Sequence[tuple[str, Figures]], about: Mapping[str, Any]) -> dict[str, Any]:
    """metric -> {data set: number}; beside the metrics `standard_errors` and `counts` in the same form, and `about`.

    A number that is not finite is None.

    Args:
        found: Data sets with their figures; a data set may be there several times, with different metrics.
        about: What was evaluated, and how.
    """
    return {
        **_by_name([(name, figures.metrics) for name, figures in found]),
        "standard_errors": _by_name([(name, figures.errors) for name, figures in found]),
        "counts": _by_name([(name, figures.counts) for name, figures in found]),
        "about": dict(about),
    }


def _by_name(values: Sequence[tuple[str, Mapping[str, float]]]) -> dict[str, dict[str, float | None]]:
    out: dict[str, dict[str, float | None]] = {}
    for data_set, named in values:
        for name, value in named.items():
            out.setdefault(name, {})[data_set] = value if math.isfinite(value) else None
    return out


def write_evaluation(output_dir: Path, record: Mapping[str, Any]) -> Path:
    """Write the file, whole or not at all; its path."""
    path = output_dir / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode())
    return path
