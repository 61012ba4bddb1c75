"""What goes wrong outside the program: nothing already saved is lost, and one line says what happened."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import yaml
from commands import environment, kill_tree
from harness import Run, start, train, train_all

from dataflex.base.launching.torchrun import exit_line
from dataflex.record.completeness import newest_complete

Config = dict[str, Any]
KILLED = "dataflex: error: rank 1 was killed by SIGKILL; the run can be resumed from its newest checkpoint"
BLOCK: Config = {
    "select": {"name": "loss", "warmup": 2, "interval": 4},
    "mix": {"name": "odm", "warmup": 1, "interval": 3},
}


@pytest.mark.parametrize("where", ["a system's own folder", "a file in the way"])
def test_an_output_dir_that_cannot_be_written_to(base: Config, tmp_path: Path, where: str) -> None:
    """Refused before a model is loaded."""
    in_the_way = tmp_path / "file"
    in_the_way.write_text("kept")
    out = "/proc/dataflex/out" if where == "a system's own folder" else str(in_the_way / "out")
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({**base, "output_dir": out, "dataflex": BLOCK}))
    run = Run(["train", str(file)], tmp_path / "log", 1, ["no_model"], {}).wait()
    assert run.status == [2] and "Traceback" not in run.log
    assert f"dataflex: error: output_dir: {out} cannot be written to: " in run.log
    assert in_the_way.read_text() == "kept"


def test_a_disk_that_fills_up_between_two_checkpoints(base: Config, tmp_path: Path) -> None:
    """The ledger cannot be added to at step 7: the run ends there, and goes on exactly once there is room."""
    config = {**base, "dataflex": BLOCK, "save_strategy": "steps", "save_steps": 3}
    full = start(config, tmp_path / "full", hooks=["full_from:7"])
    whole, ended = train_all(start(config, tmp_path / "whole"), full)
    assert ended.status == [1] and "Traceback" not in ended.log
    assert (
        ended.log.count("dataflex: error: ") == 1
        and "ledger.jsonl cannot be written: No space left on device" in ended.log
    )
    resumed = train(config, tmp_path / "full", hooks=["record_ids"])
    assert min(resumed.ok.ids()) == 6
    assert resumed.trace() == whole.ok.trace() and resumed.ledger() == whole.ledger()
    assert not list((tmp_path / "full").rglob("*.partial"))


def ends(**ranks: tuple[int, int]) -> dict[int, Any]:
    """rank_<n>=(exit status, second)."""
    return {int(r[5:]): SimpleNamespace(exitcode=status, timestamp=at) for r, (status, at) in ranks.items()}


def test_which_rank_is_at_fault() -> None:
    killed = "rank 1 was killed by SIGKILL; the run can be resumed from its newest checkpoint"
    assert exit_line(ends(rank_0=(1, 5), rank_1=(-9, 5)), {0}) == killed
    assert exit_line(ends(rank_0=(1, 5), rank_1=(-9, 5)), set()) == killed
    # What torchrun stopped itself, at once or because it did not end, is not at fault.
    assert exit_line(ends(rank_0=(3, 5), rank_1=(-15, 5)), set()) == "rank 0 ended with exit status 3"
    assert exit_line(ends(rank_0=(3, 5), rank_1=(-9, 35)), set()) == "rank 0 ended with exit status 3"
    # The first one that did not only lose another.
    assert exit_line(ends(rank_0=(1, 4), rank_1=(3, 5)), {0}) == "rank 1 ended with exit status 3"
    assert exit_line(ends(rank_0=(1, 4), rank_1=(1, 5)), {0, 1}) is None


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_run(base: Config, tmp_path: Path) -> None:
    """By torchrun, killed in the middle: the other rank waits for it in a collective, and is stopped."""
    file, out = tmp_path / "config.yaml", tmp_path / "run"
    config = {**base, "per_device_train_batch_size": 2, "max_steps": 100_000, "dataflex": BLOCK}
    config |= {"output_dir": str(out), "save_strategy": "steps", "save_steps": 2, "save_total_limit": 2}
    file.write_text(yaml.safe_dump(config))
    running = subprocess.Popen(
        [sys.executable, "-m", "dataflex", "train", str(file)],
        env=environment(FORCE_TORCHRUN="1", NPROC_PER_NODE="2"),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        while running.poll() is None and not list(out.glob("checkpoint-*/dataflex/COMPLETE")):
            time.sleep(0.05)
        family = psutil.Process(running.pid).children(recursive=True)
        ranks = {p.environ().get("RANK"): p for p in family if "RANK" in p.environ()}
        ranks["1"].kill()
        begin = time.monotonic()
        _, said = running.communicate(timeout=120)
        assert time.monotonic() - begin < 60
    finally:
        kill_tree(running)
    assert running.returncode == 1
    lines = [line for line in said.splitlines() if line.startswith("dataflex: error: ")]
    assert lines == [KILLED]
    assert "Traceback" not in said
    assert not psutil.wait_procs(family, timeout=10)[1]
    assert newest_complete(out)[0] is not None


# -- a disk without room, in a save ------------------------------------------------------------------------------------


def test_no_room_for_any_file_of_a_checkpoint(base: Config, tmp_path: Path) -> None:
    """Whichever file finds none, at its beginning or after a part of it, a save ends with one line; then with the next start all
    goes on from the checkpoint before."""
    config = {**base, "dataflex": BLOCK, "save_strategy": "steps", "save_steps": 3}
    full = start(config, tmp_path / "full", hooks=["no_room_in_turn:6"])
    whole, ended = train_all(start(config, tmp_path / "whole"), full)
    assert ended.status == [-9], ended.log[-3000:]
    assert_one_line_each(json.loads((ended.out / "no_room.json").read_text()))
    resumed = train(config, tmp_path / "full", hooks=["record_ids"])
    assert min(resumed.ok.ids()) == 3
    assert resumed.trace() == whole.ok.trace() and resumed.ledger() == whole.ledger()


def test_no_room_for_what_a_callback_adds_to_a_checkpoint(base: Config, tmp_path: Path) -> None:
    """LLaMA-Factory's writes the value head of a reward model once the Trainer is done."""
    config = {**base, "stage": "rm", "dataset": "arithmetic_pairs", "finetuning_type": "lora", "lora_rank": 4}
    config |= {"dataflex": {"select": BLOCK["select"]}, "save_strategy": "steps", "save_steps": 3}
    ended = train(config, tmp_path / "full", hooks=["no_room_in_turn:3"])
    found = json.loads((ended.out / "no_room.json").read_text())
    assert any(name.endswith("value_head.safetensors") for name in found)
    assert_one_line_each(found)


def assert_one_line_each(ended: dict[str, str]) -> None:
    assert ended.pop("nothing") == "saved"
    assert len(ended) > 40
    for name, said in ended.items():
        assert re.fullmatch(
            r"DataflexError: checkpoint-\d could not be saved \([^\n]+\); the checkpoints before .*", said
        ), (
            name,
            said,
        )
