"""Runs of a comparison that share their first steps and what they measure: to the bit the runs that share nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from forked import Starts
from harness import train

from dataflex.cli import main

Config = dict[str, Any]
HELD_OUT: Config = {"eval_dataset": "code_heldout,docs_heldout", "eval_on_each_dataset": True}
MEASURED = "were measured by another run of this comparison"


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> Starts:
    found = Starts()
    monkeypatch.setattr("dataflex.base.processes.side_by_side.start", found)
    return found


def ran(folder: Path, name: str, *options: str, **keys: Any) -> Path:
    """The output directory of a comparison that ends well."""
    file, out = folder / f"{name}.yaml", folder / name
    file.write_text(yaml.safe_dump({"output_dir": str(out), **keys}, sort_keys=False))
    assert main(["compare", str(file), *options]) == 0
    return out


def without_times(found: Any) -> Any:
    """Of what a run has written, without seconds."""
    if isinstance(found, dict):
        timed = ("seconds", "time", "deciding", "throughput")
        return {key: without_times(value) for key, value in found.items() if not any(word in key for word in timed)}
    return [without_times(value) for value in found] if isinstance(found, list) else found


def lines(file: Path) -> list[Any]:
    return [without_times(json.loads(line)) for line in file.read_text().splitlines()]


def assert_same_runs(shared: Path, alone: Path, count: int) -> None:
    """Tables, models, decisions, selections, losses and exposure."""
    tables = [without_times(json.loads((out / "comparison.json").read_text())) for out in (shared, alone)]
    for found in tables:
        found.pop("command", None)
    assert tables[0]["metrics"] == tables[1]["metrics"]
    runs = sorted(file.parent.relative_to(alone) for file in alone.glob("*/*/all_results.json"))
    assert len(runs) == count
    for run in runs:
        for name in ("model.safetensors", "adapter_model.safetensors", "dataflex/exposure.parquet"):
            if (alone / run / name).is_file():
                assert (shared / run / name).read_bytes() == (alone / run / name).read_bytes(), f"{run}/{name}"
        selections = sorted(file.name for file in (alone / run).glob("dataflex/selections/*"))
        assert selections == sorted(file.name for file in (shared / run).glob("dataflex/selections/*"))
        for name in selections:
            file = Path("dataflex/selections") / name
            assert (shared / run / file).read_bytes() == (alone / run / file).read_bytes(), f"{run}/{file}"
        for name in ("dataflex/ledger.jsonl", "trainer_log.jsonl"):
            if (alone / run / name).is_file():
                assert lines(shared / run / name) == lines(alone / run / name), f"{run}/{name}"


def said(out: Path, run: str) -> str:
    return (out / f"{run}.log").read_text()


@pytest.mark.slow
def test_selectors_share_their_first_steps_and_equal_signals(
    base: Config, tmp_path: Path, starts: Starts, capfd: pytest.CaptureFixture[str]
) -> None:
    select: Config = {"name": "loss", "warmup": 3, "interval": 2}
    methods = {
        "none": None, "low": {**select, "focus": "low"}, "high": {**select, "focus": "high"},
        "later": {"name": "random", "warmup": 5, "interval": 3},
        "at once": {"name": "random", "interval": 3},  # begins with a selection, and shares nothing
    }  # fmt: skip
    keys = {"base": {**base, **HELD_OUT, "max_steps": 8, "logging_steps": 1}, "vary": {"select": methods}, "seeds": [3]}
    shared = ran(tmp_path, "shared", **keys)
    assert "first 3 steps of low, high, later, seed 3" in capfd.readouterr().err
    assert len(starts.names) == 6 and not (shared / "shared").exists()
    assert MEASURED not in said(shared, "low/seed-3") and said(shared, "high/seed-3").count(MEASURED) == 1
    starts.names.clear()
    alone = ran(tmp_path, "alone", **keys, share=False)
    assert len(starts.names) == 5 and MEASURED not in said(alone, "high/seed-3")
    assert_same_runs(shared, alone, 5)


@pytest.mark.slow
def test_gradients_of_a_target_beside_a_mixer(base: Config, tmp_path: Path, starts: Starts) -> None:
    """With LoRA and dropout, a mixer that has acted before, and two seeds."""
    select: Config = {"target_dataset": "code_heldout", "warmup": 4, "interval": 4}
    methods = {
        "none": None, "less": {"name": "less", **select}, "icons": {"name": "icons", **select},
        "rds": {"name": "rds", **select}, "tsds": {"name": "tsds", **select},
    }  # fmt: skip
    lora = {"finetuning_type": "lora", "lora_rank": 4, "lora_dropout": 0.1, "eval_dataset": "docs_heldout"}
    mix = {"mix": {"name": "odm", "warmup": 1, "interval": 2}}
    keys = {
        "base": {**base, **lora, "max_steps": 8, "logging_steps": 1, "dataflex": mix}, "vary": {"select": methods},
        "seeds": [0, 1],
    }  # fmt: skip
    shared = ran(tmp_path, "shared", "--jobs", "2", **keys)
    assert len(starts.names) == 12
    alone = ran(tmp_path, "alone", **keys, share=False)
    assert_same_runs(shared, alone, 10)


def test_equal_compute_shares_nothing(base: Config, tmp_path: Path) -> None:
    from dataflex.comparing.grids.grid import read_grid

    file = tmp_path / "grid.yaml"
    vary = {"select": {"none": None, "random": {"name": "random", "warmup": 3, "interval": 2}}}
    for equal, share in (("steps", True), ("tokens", True), ("compute", False), ("nothing", True)):
        file.write_text(yaml.safe_dump({"output_dir": "out", "base": base, "vary": vary, "equal": equal}))
        assert read_grid([str(file)]).share is share


@pytest.mark.slow
def test_a_checkpoint_after_a_selection_begins_no_other_run(base: Config, tmp_path: Path) -> None:
    def select(**keys: Any) -> Config:
        return {**base, "max_steps": 6, "save_strategy": "steps", "save_steps": 2, "dataflex": {"select": keys}}

    train(select(name="random", warmup=2, interval=2), tmp_path / "first").ok  # noqa: B018
    for step, refused in ((2, False), (4, True)):
        checkpoint = tmp_path / "first" / f"checkpoint-{step}"
        other = {**select(name="loss", warmup=2, interval=2), "resume_from_checkpoint": str(checkpoint)}
        found = train(other, tmp_path / f"from-{step}", DATAFLEX_BRANCHES="1")
        assert found.status == [2 * refused], found.log[-3000:]
        said = f"{checkpoint} was saved after a selection, so no run with another selector can begin with it"
        assert (said in found.log) is refused
    changed = {**other, "seed": 5, "resume_from_checkpoint": str(tmp_path / "first" / "checkpoint-2")}
    assert "seed was" in train(changed, tmp_path / "changed", DATAFLEX_BRANCHES="1").log
