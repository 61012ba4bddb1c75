"""Grids that are cut off, run side by side, or fitted to an equal budget: the table is the same, or the budget is kept."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from commands import environment, kill_tree
from forked import Starts

from dataflex.cli import main
from dataflex.comparing.fairness import Fitted, fit
from dataflex.comparing.results.figures import Figures
from dataflex.errors import DataflexError

Config = dict[str, Any]
HELD_OUT: Config = {"eval_dataset": "code_heldout,docs_heldout", "eval_on_each_dataset": True}
LOSS: Config = {"name": "loss", "interval": 3}


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> Starts:
    found = Starts()
    monkeypatch.setattr("dataflex.base.processes.side_by_side.start", found)
    return found


def written(folder: Path, name: str, **keys: Any) -> tuple[str, Path]:
    """The file of a grid, and its output directory."""
    file, out = folder / f"{name}.yaml", folder / name
    file.write_text(yaml.safe_dump({"output_dir": str(out), **keys}, sort_keys=False))
    return str(file), out


def table(out: Path) -> Config:
    """comparison.json without times."""
    found = json.loads((out / "comparison.json").read_text())
    for method in found["methods"].values():
        for run in method["runs"].values():
            del run["seconds"], run["deciding"]
    return dict(found)


# -- cut off and continued ---------------------------------------------------------------------------------------------


def long_grid(base: Config, methods: Config, seeds: list[int]) -> Config:
    """Runs of some seconds each, with checkpoints."""
    keys = {
        **base, **HELD_OUT, "max_steps": 120, "save_strategy": "steps", "save_steps": 20, "logging_steps": 10,
        "save_total_limit": 2,
    }  # fmt: skip
    return {"base": keys, "vary": {"select": methods}, "seeds": seeds}


def cut_off(file: str, there: Callable[[], bool], number: signal.Signals, *options: str) -> tuple[str, int]:
    """Start the command as a user does, send it a signal at a moment, and see that none of its processes is left. What it said,
    and how many processes it had."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dataflex", "compare", file, *options],
        env=environment(HF_HUB_OFFLINE="1"), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        until = time.monotonic() + 300
        while not there():
            assert process.poll() is None and time.monotonic() < until, process.stderr and process.stderr.read()
            time.sleep(0.02)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        said = process.communicate(timeout=90)[1]
        assert not psutil.wait_procs(family, timeout=10)[1]
        assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number)
        return said, len(family)
    finally:
        kill_tree(process)


@pytest.mark.slow
def test_a_killed_comparison_takes_its_runs_with_it_and_goes_on(base: Config, tmp_path: Path, starts: Starts) -> None:
    """SIGKILL of the command alone, once a run has a checkpoint: one has a block, the other is LLaMA-Factory's own."""
    keys = long_grid(base, {"none": None, "random": {"name": "random", "interval": 30}}, [0])
    file, out = written(tmp_path, "killed", **keys)
    marks = {"none": "trainer_state.json", "random": "dataflex/COMPLETE"}

    def whole(name: str) -> list[Path]:
        found = (out / name / "seed-0").glob(f"checkpoint-*/{marks[name]}")
        return sorted((out / name / "seed-0" / mark.relative_to(out).parts[2] for mark in found), key=step_of)

    _, processes = cut_off(file, lambda: any(map(whole, marks)), signal.SIGKILL, "--jobs", "2")
    assert processes >= 2 and not (out / "comparison.json").exists()
    kept = {name: whole(name) for name in marks}
    assert main(["compare", file]) == 0
    start_over = ("overwrite_output_dir=true",)
    resumed = (f'resume_from_checkpoint="{kept["none"][-1]}"',) if kept["none"] else start_over
    if "none, seed 0" in starts.names:  # it may have been done before
        assert starts.arguments["none, seed 0"][2:] == resumed
    if "random, seed 0" in starts.names:  # `train` takes the newest complete checkpoint by itself
        assert starts.arguments["random, seed 0"][2:] == (() if kept["random"] else start_over)
    assert starts.names
    assert main(["compare", written(tmp_path, "whole", **keys)[0]]) == 0
    assert table(out) == table(tmp_path / "whole")
    for name in marks:
        assert losses(out / name / "seed-0") == losses(tmp_path / "whole" / name / "seed-0")


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def losses(run: Path) -> list[float]:
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return [record["loss"] for record in history if "loss" in record]


MOMENTS = {
    "before any run": lambda out: True,
    "within the steps that runs share": lambda out: any(out.glob("shared/*/trainer_log.jsonl")),
    "once these are saved": lambda out: any(out.glob("shared/*/checkpoint-*/dataflex/COMPLETE")),
    "once a run has begun": lambda out: any(out.glob("*/seed-*.log")),
    "within the second run": lambda out: (out / "runs.json").is_file(),
    "after a checkpoint": lambda out: any(out.glob("loss/seed-*/checkpoint-*/dataflex/COMPLETE")),
    "within the last": lambda out: (
        (out / "runs.json").is_file() and len(json.loads((out / "runs.json").read_text())) >= 3
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
def test_the_same_command_goes_on_from_any_moment(
    base: Config, tmp_path: Path, starts: Starts, number: signal.Signals
) -> None:
    """Cut off at every moment in turn, in one directory, and then finished. The whole one shares nothing."""
    loss = {"name": "loss", "warmup": 30, "interval": 30}
    keys = long_grid(base, {"none": None, "loss": loss, "high": {**loss, "focus": "high"}}, [0, 1])
    file, out = written(tmp_path, "cut", **keys)
    for moment, there in MOMENTS.items():
        said, _ = cut_off(file, lambda there=there: (out / "dataflex.lock").exists() and there(out), number)
        if number != signal.SIGKILL:
            assert said.splitlines()[-1] == "dataflex: stopped; the same command goes on", moment
    whole = written(tmp_path, "whole", **keys, share=False)[0]
    assert main(["compare", file]) == 0 and main(["compare", whole]) == 0
    assert table(out) == table(tmp_path / "whole")


@pytest.mark.slow
def test_twelve_runs_are_the_same_side_by_side_and_in_turn(base: Config, tmp_path: Path, starts: Starts) -> None:
    methods = {"none": None, "random": {"name": "random", "interval": 3}, "loss": LOSS}
    keys = {
        "base": {**base, **HELD_OUT}, "seeds": [0, 1],
        "vary": {"select": methods, "learning_rate": [1e-3, 3e-3]}, "baseline": {"select": "none"},
    }  # fmt: skip
    tables, orders = [], []
    for jobs in ("1", "2"):
        file, out = written(tmp_path, f"jobs-{jobs}", **keys)
        assert main(["compare", file, "--jobs", jobs]) == 0
        tables.append(table(out))
        orders.append(list(json.loads((out / "runs.json").read_text())))
    assert len(starts.names) == 24 and tables[0] == tables[1] and orders[0] == orders[1]
    rows = tables[0]["metrics"]["loss/mean"]
    assert sum("difference" in row for row in rows.values()) == 4  # each rate has a baseline of its own
    assert tables[0]["methods"]["select=loss learning_rate=0.003"]["baseline"] == "select=none learning_rate=0.003"


# -- the same tokens, the same seconds -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_equal_tokens(base: Config, tmp_path: Path, starts: Starts, capfd: pytest.CaptureFixture[str]) -> None:
    """The longest rows have more tokens, so fewer steps take the budget."""
    shortest = {"name": "token_length", "interval": 10, "order": "shortest", "count": "all"}
    long = {**shortest, "order": "longest"}
    keys = {
        "base": {**base, **HELD_OUT, "cutoff_len": 512, "max_steps": 20}, "equal": "tokens", "seeds": [0, 1],
        "vary": {"select": {"long": long, "short": shortest}},
    }  # fmt: skip
    file, out = written(tmp_path, "tokens", **keys)
    assert main(["compare", file]) == 0
    found = table(out)["methods"]
    tokens = {name: [run["tokens"] for run in method["runs"].values()] for name, method in found.items()}
    steps = {name: {run["steps"] for run in method["runs"].values()} for name, method in found.items()}
    assert steps["long"] == {20} and min(steps["short"]) > 28
    assert max(map(max, tokens.values())) < 1.05 * min(map(min, tokens.values()))
    pilot = json.loads((out / "short" / "seed-0" / "trainer_state.json").read_text())
    assert pilot["num_input_tokens_seen"] < 0.7 * tokens["short"][0]  # what equal steps would have given
    assert not (out / "long" / "seed-0_steps-20").exists()  # the dearest keeps its first run
    capfd.readouterr()
    starts.names.clear()
    assert main(["compare", file, "--json"]) == 0 and not starts.names  # the steps are found again, and all is done
    assert json.loads(capfd.readouterr().out)["remarks"] == []


def test_steps_follow_from_what_a_run_took() -> None:
    """In proportion; the dearest, or a cell that takes the budget as it is, keeps its steps."""

    def figures(steps: int, seconds: float, tokens: int | None = None) -> Figures:
        return Figures({}, steps, seconds, 0.0, tokens)

    measured = {"none": figures(100, 20.0, 1000), "slow": figures(100, 50.0, 400), "long": figures(60, 25.0, 2000)}
    assert fit("compute", None, measured) == Fitted(50.0, {"none": 250, "slow": None, "long": 120})
    assert fit("compute", 5.0, measured) == Fitted(5.0, {"none": 25, "slow": 10, "long": 12})
    assert fit("tokens", None, measured) == Fitted(2000, {"none": 200, "slow": 500, "long": None})
    assert fit("compute", 0.001, measured).steps == dict.fromkeys(measured, 1)
    with pytest.raises(DataflexError, match="equal: tokens: the files of none do not say how much it took"):
        fit("tokens", None, {"none": figures(100, 20.0)})


@pytest.mark.slow
def test_equal_compute(base: Config, tmp_path: Path, starts: Starts) -> None:
    """A selector that takes half a second at each of its four turns: the baseline trains for longer instead."""
    slow = {"name": "own_components:Slow", "interval": 3, "seconds": 0.5}
    keys = {
        "base": {**base, **HELD_OUT}, "equal": "compute", "seeds": [0, 1], "vary": {"select": {"none": None, "slow": slow}},
    }  # fmt: skip
    starts.hooks |= {f"slow, seed {seed}": ["own_component"] for seed in (0, 1)}
    file, out = written(tmp_path, "compute", **keys)
    assert main(["compare", file]) == 0
    methods = json.loads((out / "comparison.json").read_text())["methods"]
    none, slow_runs = ([run for run in methods[name]["runs"].values()] for name in ("none", "slow"))
    assert [run["steps"] for run in slow_runs] == [12, 12] and all(run["deciding"] > 2.0 for run in slow_runs)
    pilot = json.loads((out / "none" / "seed-0" / "all_results.json").read_text())["train_runtime"]
    expected = round(12 * slow_runs[0]["seconds"] / pilot)
    assert {run["steps"] for run in none} == {expected} and expected > 24
    assert (out / "none" / f"seed-1_steps-{expected}").is_dir() and not (out / "none" / "seed-1").exists()


@pytest.mark.parametrize("strategy", ["select", *(pytest.param(s, marks=pytest.mark.slow) for s in ("mix", "plain"))])
def test_runs_of_equal_data_share_one_tokenization(base: Config, tmp_path: Path, starts: Starts, strategy: str) -> None:
    """By the cache of the data sets, among seeds and methods; what was tokenized by an earlier run changes nothing."""
    variants: dict[str, list[Any]] = {
        "select": [{"name": "random", "interval": 3}, LOSS],
        "mix": ["uniform", "proportional"],
        "plain": [1e-3, 2e-3],
    }
    key = "learning_rate" if strategy == "plain" else strategy
    found = []
    for turn in ("cold", "warm"):
        keys = {
            "base": {**base, **HELD_OUT, "max_steps": 3},
            "vary": {key: variants[strategy]},
            "seeds": [0, 1][: 1 if strategy == "select" else 2],
        }
        file, out = written(tmp_path, turn, **keys)
        starts.names.clear()
        cache = tmp_path / "cache"
        starts.everywhere = [f"own_cache:{cache}"]
        assert main(["compare", file]) == 0
        found.append((sorted(p.name for p in cache.rglob("*.arrow")), table(out)))
        if turn == "cold":
            first = min(p.stat().st_mtime for p in out.rglob("all_results.json"))
            assert max(p.stat().st_mtime for p in cache.rglob("*.arrow")) < first
    assert found[0] == found[1] and found[0][0]
