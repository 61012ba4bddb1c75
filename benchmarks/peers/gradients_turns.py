"""What both sides of gradients.py have in common: rows in a file, one answer per line asked for. Needs torch alone."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ADAPTER, MOMENTS = "adapter", "moments.pt"
"""Names of what the first side writes for both."""

Rows = list[tuple[list[int], list[int]]]
"""(ids, labels) of every row."""


def serve(measure: Callable[[str], dict[str, Any]]) -> None:
    """For every line of standard input, what `measure` gives of it as a line of JSON. Whatever else is printed goes to
    standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(measure(line.strip())), file=answers, flush=True)


def read_rows(work: Path) -> tuple[Rows, Rows]:
    """The pool and the target."""
    found = json.loads((work / "rows.json").read_text(encoding="utf-8"))
    return found["pool"], found["target"]


def layer_of(name: str) -> str:
    """The part of a module's or parameter's name that both sides share, however they wrap the model."""
    return name[name.index("layers.") :].removesuffix(".weight")


def peak(dtype: Any) -> float:
    """GFLOP/s of a matrix product of this shape of layer, the best of many."""
    import torch

    a, b = torch.randn(1024, 576).to(dtype), torch.randn(576, 1536).to(dtype)
    best = float("inf")
    for _ in range(60):
        begin = time.process_time()
        for _ in range(3):
            a @ b
        best = min(best, time.process_time() - begin)
    return 3 * 2 * 1024 * 576 * 1536 / best / 1e9
