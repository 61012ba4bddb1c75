"""A scoring pass of a run that is killed goes on where it was, and nothing else changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from harness import Result, start, train, train_all
from test_invariants import SELECT, assert_same_continuation
from test_less import LESS, LORA

Config = dict[str, Any]
SHARDS = "small_shards:2000"


def measured(run: Result) -> list[int]:
    return json.loads((run.out / "measured.json").read_text())


def kept(run: Result) -> list[str]:
    return sorted(f.name for f in (run.out / "dataflex" / "signals").glob("step_*"))


@pytest.fixture
def saved(base: Config) -> Config:
    return {**base, "save_strategy": "steps", "save_steps": 4, "dataflex": SELECT}


def test_explore(saved: Config, tmp_path: Path) -> None:
    run = train(saved, tmp_path / "whole", hooks=["record_ids", SHARDS, "count_measured"])
    print(run.log[-3000:])
    print(measured(run.ok), kept(run))
