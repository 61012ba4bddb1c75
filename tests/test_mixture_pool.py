"""What proportions are shares of, how often rows may come, and mixtures that follow a plan; through the command line."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import Result, start, train, train_all
from test_invariants import assert_same_continuation

Config = dict[str, Any]
NAMES = ("code", "docs", "arithmetic")
OF = [name for name in NAMES for _ in range(60)]  # domain of each id

SCHEDULE = {"name": "schedule", "points": [[0, [0.5, 0.3, 0.2]], [5, [0.2, 0.2, 0.6]], [9, [0.0, 0.5, 0.5]]]}
EXHAUSTED = {
    "name": "odm", "warmup": 3, "interval": 4, "proportions": [0.6, 0.2, 0.2],
    "max_repetition": {"code": 0.2, "docs": 0.35}, "unit": "samples",
}  # fmt: skip


def order(run: Result) -> list[int]:
    return [i for ids in run.ok.ids().values() for i in ids]


def mixing(base: Config, **mix: Any) -> Config:
    return {**base, "dataflex": {"mix": mix}}


def test_try(base: Config, tmp_path: Path) -> None:
    for i, mix in enumerate(
        [
            SCHEDULE,
            EXHAUSTED,
            {**EXHAUSTED, "unit": "tokens"},
            {**EXHAUSTED, "when_exhausted": "stop"},
            {**EXHAUSTED, "when_exhausted": "repeat"},
        ]
    ):
        run = train(
            mixing({**base, "save_strategy": "steps", "save_steps": 5}, **mix), tmp_path / str(i), hooks=["record_ids"]
        )
        print(run.log[-1500:])
        run.ok
        for line in run.ledger():
            print(json.dumps({k: v for k, v in line.items() if k != "from"})[:400])
        print([OF[i][0] for i in order(run)])
        print(sorted(p.name for p in run.out.iterdir()))
        print({k: v for k, v in list(run.scalars().values())[-1].items()})
