"""The command line itself: bad input, torchrun, and commands passed on."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from checkpoint_files import assert_refused
from commands import command, environment, kill_tree
from harness import start, train

Config = dict[str, Any]

SELECT = {"name": "loss", "interval": 4}
FLAT = {"train_type": "dynamic_select", "component_name": "loss", "update_step": 4}


def block(**slots: Any) -> Config:
    return {"dataflex": slots}


# What is wrong -> (changes to a good configuration, words the one line must hold).
BAD: dict[str, tuple[Config, tuple[str, ...]]] = {
    "unknown key of LLaMA-Factory": ({"learning_rat": 1}, ("learning_rat: unknown key", "'learning_rate'")),
    "unknown key of ours": (block(slect=SELECT), ("dataflex.slect", "'select'")),
    "misspelt flat key": ({**FLAT, "componant_name": "x"}, ("componant_name: unknown key", "'component_name'")),
    "missing data set": ({"dataset": "code,dcs", **block(select=SELECT)}, ("dataset: 'dcs' is not defined", "'docs'")),
    "missing evaluation set": ({"eval_dataset": "cod", **block(select=SELECT)}, ("eval_dataset", "'code'")),
    "data set twice": ({"dataset": "code,code", **block(select=SELECT)}, ("dataset", "'code' is listed twice")),
    "no dataset_info": ({"dataset_dir": "nowhere", **block(select=SELECT)}, ("dataset_dir", "nowhere")),
    "budget above the pool": (
        block(select={"name": "random", "interval": 46}),
        ("dataflex.select.interval", "ask for 184 rows", "has 180", "at most 45 steps"),
    ),
    "wrong number of proportions": (
        block(mix={"name": "odm", "interval": 2, "proportions": [0.5, 0.5]}),
        ("proportions", "2 given for 3 data sets"),
    ),
    "proportions that do not add up": (
        block(mix={"name": "odm", "interval": 2, "proportions": [0.5, 0.5, 0.5]}),
        ("dataflex.mix.proportions must add up to 1",),
    ),
    "unknown component": (block(select={"name": "los", "interval": 2}), ("dataflex.select.name", "'loss'")),
    "unknown parameter": (block(select={**SELECT, "focuss": 1}), ("dataflex.select.focuss", "'focus'")),
    "parameter out of range": (block(select={**SELECT, "temperature": 0}), ("dataflex.select.temperature", "positive")),
    "no interval": (block(select={"name": "loss"}), ("dataflex.select.interval is required",)),
    "interval of zero, flat": ({**FLAT, "update_step": 0}, ("update_step must be at least 1",)),
    "unknown train_type": ({"train_type": "dynamic_selct"}, ("train_type", "'dynamic_select'")),
    "a family that is not there": (
        {"train_type": "dynamic_legos"},
        ("train_type: unknown value", "'dynamic_lego'"),
    ),
    "a preset that is not there": ({**FLAT, "component_name": "coincid"}, ("component_name", "'coincide'")),
    "both spellings": ({**FLAT, **block(select=SELECT)}, ("dataflex and component_name",)),
    "unknown choice": ({"finetuning_type": "lorra", **block(select=SELECT)}, ("finetuning_type", "'lora'")),
    "unknown template": ({"template": "qwenn", **block(select=SELECT)}, ("template", "'qwen'")),
    "not a number": ({"per_device_train_batch_size": "four", **block(select=SELECT)}, ("per_device_train_batch_size",)),
    "ppo": ({"stage": "ppo", **block(select=SELECT)}, ("stage: ppo", "select")),
    "kto and losses": (
        {"stage": "kto", "dataset": "arithmetic_kto", **block(select=SELECT)},
        ("stage: kto", "select: loss"),
    ),
    "streaming": ({"streaming": True, **block(select=SELECT)}, ("streaming",)),
    "interleaving": ({"mix_strategy": "interleave_under", **block(mix={"name": "static"})}, ("mix_strategy",)),
    "length grouping": ({"train_sampling_strategy": "group_by_length", **block(select=SELECT)}, ("group_by_length",)),
    "ignore_data_skip": ({"ignore_data_skip": True, **block(mix={"name": "static"})}, ("ignore_data_skip",)),
    "fused loss": (
        {"enable_liger_kernel": True, **block(weight={"name": "loss"})},
        ("enable_liger_kernel", "weight: loss"),
    ),
    "hidden logits": (
        {"enable_liger_kernel": True, **block(weight={"name": "loss"})},
        ("enable_liger", "weight: loss"),
    ),
    "several weighters": (block(weight=[{"name": "loss"}, {"name": "focle"}]), ("dataflex.weight[1].name", "'focal'")),
    "no training": ({"do_train": False, **block(select=SELECT)}, ("do_train",)),
    "no such model": ({"model_name_or_path": "./nowhere", **block(select=SELECT)}, ("model_name_or_path", "./nowhere")),
    "no such checkpoint": (
        {"resume_from_checkpoint": "nowhere", **block(select=SELECT)},
        ("resume_from_checkpoint", "nowhere"),
    ),
    "wrong kind of data set": ({"dataset": "arithmetic_pairs", **block(select=SELECT)}, ("not applicable",)),
    "not a component": (block(select={"name": "json:JSONDecoder", "interval": 2}), ("must extend dataflex.Selector",)),
    "no such module": (block(select={"name": "nowhere:Class", "interval": 2}), ("cannot import 'nowhere:Class'",)),
    "an old component": (
        block(select={"name": "own_components:OldSelector", "interval": 2}),
        ("component of dataflex 1.1.0", "docs/migration.md"),
    ),
    "LLaMA-Factory's own check": ({"val_size": 0.1, "eval_dataset": "code", **block(select=SELECT)}, ("val_size",)),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(base: Config, tmp_path: Path, case: str) -> None:
    """Invariant 9."""
    changes, words = BAD[case]
    assert_refused(train({**base, **changes}, tmp_path / "run", hooks=["own_component", "no_model"]), *words)


def test_an_empty_data_set_is_refused(base: Config, tmp_path: Path) -> None:
    """No rows in the file, and no rows left after tokenization."""
    columns = {"prompt": "instruction", "response": "output"}
    ranked = {"file_name": "bad.jsonl", "columns": columns}
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "bad.jsonl").write_text(json.dumps({"instruction": "x", "output": None}) + "\n")
    (tmp_path / "dataset_info.json").write_text(
        json.dumps({"empty": {"file_name": "empty.jsonl", "columns": columns}, "bad": ranked})
    )
    for name in ("empty", "bad"):
        config = {**base, "dataset_dir": str(tmp_path), "dataset": name, **block(mix={"name": "static"})}
        assert_refused(train(config, tmp_path / name, hooks=["no_model"]), "dataset:", f"'{name}'")


@pytest.mark.parametrize("ranks", [2])
def test_bad_input_on_two_ranks_is_said_once(base: Config, tmp_path: Path, ranks: int) -> None:
    config = {**base, **block(select={"name": "random", "interval": 46})}
    run = start(config, tmp_path / "run", ranks=ranks, hooks=["no_model"])
    assert_refused(run.wait(), "dataflex.select.interval")
    assert "dataflex: error" not in run.logs[1].read_text()


def test_notices_are_shown_once(base: Config, tmp_path: Path) -> None:
    config = {**base, "max_steps": 3, **block(total_steps=2, select={"name": "random", "interval": 1})}
    run = train(config, tmp_path / "run")
    assert run.ok.log.count("dataflex.total_steps (2 steps) wins over max_steps (3)") == 1
    assert max(run.trace()) == 2


@pytest.mark.slow
def test_torchrun_is_started_and_resumed_after_a_kill(base: Config, tmp_path: Path) -> None:
    """FORCE_TORCHRUN with an argument that holds spaces; the whole process tree is killed, then started again."""
    slots = {"select": {"name": "loss", "warmup": 2, "interval": 4}, "mix": {"name": "odm", "interval": 3}}
    out = tmp_path / "a run"
    config = {**base, "per_device_train_batch_size": 2, "save_strategy": "steps", "save_steps": 4, **block(**slots)}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    arguments = ["train", str(file), f"output_dir={out}"]
    ranks = {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2"}
    running = subprocess.Popen(
        [sys.executable, "-m", "dataflex", *arguments],
        env=environment(**ranks), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    mark = out / "checkpoint-8" / "dataflex" / "COMPLETE"
    while running.poll() is None and not mark.is_file():
        time.sleep(0.05)
    kill_tree(running)
    ended = command(*arguments, **ranks)
    assert ended.returncode == 0, ended.stderr[-3000:]
    state = json.loads((out / "checkpoint-12" / "dataflex" / "state.json").read_text())
    assert (state["step"], state["position"]) == (12, 48)
    whole = start(config, tmp_path / "whole", ranks=2).wait()
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    assert {r["step"]: (r["loss"], r["grad_norm"]) for r in history if "loss" in r} == whole.ok.trace()


@pytest.mark.slow
def test_an_error_under_torchrun_is_one_line(base: Config, tmp_path: Path) -> None:
    """Found by a rank, after the data were read: the launcher prints it, with exit status 2 and no traceback."""
    file = tmp_path / "config.yaml"
    file.write_text(
        yaml.safe_dump(
            {**base, "output_dir": str(tmp_path / "run"), **block(select={"name": "random", "interval": 46})}
        )
    )
    ended = command("train", str(file), FORCE_TORCHRUN="1", NPROC_PER_NODE="2")
    assert ended.returncode == 2
    assert [line for line in ended.stderr.splitlines() if "error:" in line.lower()] == [
        "dataflex: error: dataflex.select.interval: 46 steps of 8 rows ask for 368 rows, but the data has 180;"
        " use at most 22 steps"
    ]
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_export_is_passed_on(base: Config, tmp_path: Path) -> None:
    """A checkpoint of a dynamic run is an ordinary model directory: LLaMA-Factory merges its adapter."""
    config = {**base, "finetuning_type": "lora", "lora_rank": 4, "max_steps": 2, **block(mix={"name": "static"})}
    run = train(config, tmp_path / "run")
    export = {
        "model_name_or_path": base["model_name_or_path"],
        "adapter_name_or_path": str(run.ok.out),
        "template": "qwen",
        "export_dir": str(tmp_path / "merged"),
    }
    (tmp_path / "export.yaml").write_text(yaml.safe_dump(export))
    ended = command("export", str(tmp_path / "export.yaml"))
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert (tmp_path / "merged" / "model.safetensors").is_file()
