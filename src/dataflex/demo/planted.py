"""What the demonstration plants in its data: a target to select for, and answers that are wrong on purpose."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from dataflex.demo.sources import sums, worked_sum

AIM = "arithmetic"
"""The domain that the selection is aimed at."""
TARGET = "arithmetic_target"
MISLABELLED = "_mislabelled"
WRONG = "wrong"
WRONG_SHARE = 0.3


def plant(data_dir: Path, domains: Sequence[str], target_rows: int = 16, seed: int = 0) -> None:
    """Add data sets to those of `build_domains`: `arithmetic_target` and, of every domain D, D_mislabelled.

    The target has sums that are neither in the training nor in the held-out rows. D_mislabelled has the rows of D in their
    order, but 30 % of them have the answer to another question: a sum in place of text, text in place of a sum. Their
    column `wrong` is true.
    """
    info = json.loads((data_dir / "dataset_info.json").read_text(encoding="utf-8"))
    columns = info[AIM]["columns"]

    def write(name: str, rows: Sequence[dict[str, Any]]) -> None:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (data_dir / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
        info[name] = {"file_name": f"{name}.jsonl", "columns": columns}

    found = {name: _rows(data_dir, info, name) for name in domains}
    used = {row["input"] for name in (AIM, f"{AIM}_heldout") for row in _rows(data_dir, info, name)}
    new = ((a, b) for a, b in sums(seed) if not {f"{a} + {b}", f"{b} + {a}"} & used)
    instruction = found[AIM][0]["instruction"]
    write(
        TARGET,
        [
            {"instruction": instruction, "input": f"{a} + {b}", "output": worked_sum(a, b)}
            for a, b in islice(new, target_rows)
        ],
    )
    texts = [row for name in domains if name != AIM for row in found[name]]
    for name, rows in found.items():
        rng = random.Random(f"{seed}/wrong/{name}")
        others = texts if name == AIM else found[AIM]
        planted = set(rng.sample(range(len(rows)), round(WRONG_SHARE * len(rows))))
        write(
            name + MISLABELLED,
            [
                row | ({"output": rng.choice(others)["output"], WRONG: True} if i in planted else {WRONG: False})
                for i, row in enumerate(rows)
            ],
        )
    (data_dir / "dataset_info.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")


def planted_rows(data_dir: Path, domains: Sequence[str]) -> list[bool]:
    """Which rows of the mislabelled data sets are wrong, one set after the other, as a run numbers its rows."""
    info = json.loads((data_dir / "dataset_info.json").read_text(encoding="utf-8"))
    return [row[WRONG] for name in domains for row in _rows(data_dir, info, name + MISLABELLED)]


def _rows(data_dir: Path, info: dict[str, Any], name: str) -> list[dict[str, Any]]:
    text = (data_dir / info[name]["file_name"]).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
