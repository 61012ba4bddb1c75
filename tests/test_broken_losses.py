"""Losses that are no numbers for many steps on end are said, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from harness import train

from dataflex.weighting import broken_losses as broken_module
from dataflex.weighting.broken_losses import PATIENCE, BrokenLosses

Config = dict[str, Any]
NAN = float("nan")


def steps(*losses: list[float], watches: bool = True) -> list[tuple[int, int, int] | None]:
    """What is said after each step of two micro-batches of these losses, and at the end; a row of 0 tokens has none."""
    broken = BrokenLosses(torch.device("cpu"), watches=watches)
    out = []
    for step, values in enumerate(losses, start=1):
        for _ in range(2):
            broken.see(torch.tensor([*values, NAN]), torch.tensor([True] * len(values) + [False]))
        out.append(broken.close(step))
        assert broken.close(step) is None  # as before a save and again before the next step
    return [*out, broken.close(len(losses), last=True)]


BAD, GOOD = [1.0, NAN, float("inf")], [1.0, 2.0, 3.0]


@pytest.mark.parametrize("before", range(13))
def test_said_after_ten_steps_on_end_and_once(before: int) -> None:
    """With the first of them to the step, at the latest ten steps after the tenth."""
    found = steps(*[GOOD] * before, *[BAD] * (PATIENCE + 5), GOOD, *[BAD] * PATIENCE, *[BAD] * 20)
    said = [(i, f) for i, f in enumerate(found, start=1) if f is not None]
    assert [f for _, f in said] == [(before + 1, 4, 6)]
    assert before + PATIENCE <= said[0][0] < before + 2 * PATIENCE
    short = steps(*[GOOD] * before, *[BAD] * PATIENCE)  # the last step of the run is the tenth
    assert [f for f in short if f is not None] == [(before + 1, 4, 6)]
    assert not any(steps(*[BAD] * (PATIENCE - 1), GOOD, *[BAD] * (PATIENCE - 1)))
    assert not any(steps(*[GOOD] * 30))


def test_steps_wait_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten are read at once; none after the warning, nor where no component goes by these losses."""
    reads: list[int] = []
    monkeypatch.setattr(broken_module, "sum_over_ranks", lambda found: reads.append(len(found)) or found)  # type: ignore[func-returns-value]
    steps(*[GOOD] * 25)
    assert reads == [10, 10, 5]
    reads.clear()
    steps(*[BAD] * 35)
    assert reads == [10]
    reads.clear()
    steps(*[BAD] * 35, watches=False)
    assert reads == []


BLOCKS: dict[str, tuple[Config, str]] = {
    "mix": ({"mix": {"name": "odm", "interval": 3}}, "mix: odm decides without these rows. If"),
    "weight": (
        {"weight": {"name": "loss"}},
        "weight: loss gives them weight 0 as long as others have a finite loss. If",
    ),
    "both": (
        {"mix": {"name": "odm", "interval": 3}, "weight": {"name": "loss"}},
        "mix: odm decides without these rows, and weight: loss gives them weight 0",
    ),
}


@pytest.mark.parametrize("case, ranks", [("mix", 1), ("weight", 1), pytest.param("both", 2, marks=pytest.mark.slow)])
def test_a_run_whose_losses_are_nan_from_step_2_on(base: Config, tmp_path: Path, case: str, ranks: int) -> None:
    block, words = BLOCKS[case]
    rows = 4 // ranks
    config = {**base, "max_steps": 14, "per_device_train_batch_size": rows, "save_strategy": "steps", "save_steps": 4}
    run = train({**config, "dataflex": block}, tmp_path / "run", ranks=ranks, hooks=["nan_weights_after:1"])
    lines = [line for line in run.log.splitlines() if "not a finite number" in line]
    assert len(lines) == 1, run.log[-3000:]
    begin = "dataflex: warning: since step 2 every step has had rows whose loss is not a finite number (4 of 4 in the last one)"
    assert lines[0].startswith(begin) and words in lines[0]
