"""One run at a time in an output directory."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from checkpoint_files import assert_refused
from harness import Run, start, train_all

from dataflex import locking
from dataflex.errors import ConfigError
from dataflex.locking import LOCK, alone_in, born

Config = dict[str, Any]
HOLD = r"""
import os, sys, time
from pathlib import Path
from dataflex.errors import ConfigError
from dataflex.locking import alone_in
try:
    with alone_in(Path(sys.argv[1])):
        if sys.argv[2] == "fork" and os.fork() == 0:
            os.write(1, b"%d\n" % os.getpid())
            time.sleep(600)
        os.write(1, b"held\n")  # at once: two processes write
        sys.stdin.read()
except ConfigError as error:
    print(error, flush=True)
"""


def holder(folder: Path, how: str = "") -> subprocess.Popen[str]:
    """Another process, which holds the directory until its input ends; its first line says whether it got it."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_second_run_is_told_who_holds_the_directory(tmp_path: Path) -> None:
    first = holder(tmp_path)
    assert first_line(first) == "held"
    said = json.loads((tmp_path / LOCK).read_text())
    assert (said["host"], said["pid"], said["born"]) == (socket.gethostname(), first.pid, born(first.pid))
    line = (
        f"^output_dir: {tmp_path} is in use by a run on {re.escape(socket.gethostname())} \\(pid {first.pid}, since"
        r" \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC\); choose another output_dir, or wait for its end$"
    )
    with pytest.raises(ConfigError, match=line), alone_in(tmp_path):
        raise AssertionError("held twice")
    assert json.loads((tmp_path / LOCK).read_text()) == said
    first.communicate()
    assert not (tmp_path / LOCK).exists()
    with alone_in(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["", "fork"])
def test_a_run_that_was_killed_leaves_the_directory_to_the_next(how: str, tmp_path: Path) -> None:
    """Before its parent, this process, has noticed; and though a worker that it forked lives on."""
    first = holder(tmp_path, how)
    lines = [first_line(first)] + ([first_line(first)] if how else [])
    worker = next((int(line) for line in lines if line.isdecimal()), None)
    first.kill()
    os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is still in the table of processes
    assert (tmp_path / LOCK).is_file()
    with alone_in(tmp_path):
        pass
    assert not (tmp_path / LOCK).exists()
    if worker is not None:
        os.kill(worker, signal.SIGKILL)
    first.communicate()


def written(folder: Path, **changes: Any) -> None:
    """A lock as a process left it that is gone, with changes."""
    content = {"host": socket.gethostname(), "pid": 1 << 22, "born": "1", "since": "2026-01-01 00:00:00 UTC"}
    (folder / LOCK).write_text(json.dumps({**content, **changes}))


def test_a_process_that_took_over_the_id_is_another_one(tmp_path: Path) -> None:
    parent = os.getppid()
    written(tmp_path, pid=parent, born=born(parent))
    with pytest.raises(ConfigError, match=f"pid {parent}, since 2026-01-01"), alone_in(tmp_path):
        pass
    for changes in ({"pid": parent}, {"pid": os.getpid()}, {}):
        written(tmp_path, **changes)
        with alone_in(tmp_path):
            assert json.loads((tmp_path / LOCK).read_text())["born"] == born(os.getpid())


def test_of_another_host_only_the_user_can_know(tmp_path: Path) -> None:
    written(tmp_path, host="elsewhere")
    line = f"a run on elsewhere .*; if it no longer runs, remove {tmp_path / LOCK}$"
    with pytest.raises(ConfigError, match=line), alone_in(tmp_path):
        pass
    assert json.loads((tmp_path / LOCK).read_text())["host"] == "elsewhere"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": "x"}'])
def test_a_lock_that_was_never_finished_is_none(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking, "_PATIENCE", 0.2)
    (tmp_path / LOCK).write_text(content)
    with alone_in(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


def test_one_of_several_that_start_at_once_gets_it(tmp_path: Path) -> None:
    written(tmp_path)
    runs = [holder(tmp_path) for _ in range(4)]
    said = [first_line(run) for run in runs]
    assert said.count("held") == 1
    winner = runs[said.index("held")].pid
    assert all(f"(pid {winner}, since" in line for line in said if line != "held")
    for run in runs:
        run.communicate()
    assert list(tmp_path.iterdir()) == []


def test_what_is_left_when_a_run_was_refused(tmp_path: Path) -> None:
    """Nothing, unless it was there or something was written; an error in between changes nothing about that."""
    (tmp_path / "there").mkdir()
    for folder in ("new/deep", "there"):
        with pytest.raises(ZeroDivisionError), alone_in(tmp_path / folder):
            raise ZeroDivisionError
    assert [p.name for p in tmp_path.iterdir()] == ["there"]
    with alone_in(tmp_path / "new/deep"):
        (tmp_path / "new/deep/file").touch()
    assert [p.name for p in (tmp_path / "new/deep").iterdir()] == ["file"]


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("kept")
    (tmp_path / LOCK).symlink_to(target)
    with pytest.raises(ConfigError, match=r"output_dir: .* cannot be written to: "), alone_in(tmp_path):
        pass
    assert target.read_text() == "kept"


def test_only_the_first_rank_holds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with alone_in(tmp_path):
        monkeypatch.setenv("RANK", "1")
        with alone_in(tmp_path):
            pass
        assert (tmp_path / LOCK).exists()


@pytest.mark.parametrize("command", ["train", "select", "doremi"])
def test_every_command_that_writes_is_refused(base: Config, tmp_path: Path, command: str) -> None:
    """Before a model is loaded; this process holds the directory."""
    blocks: Config = {
        "train": {"select": {"name": "loss", "interval": 4}},
        "select": {"select": {"name": "loss"}, "offline": {"budget": 10}},
        "doremi": {"mix": {"name": "doremi", "interval": 4}},
    }
    out = tmp_path / "out"
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({**base, "output_dir": str(out), "dataflex": blocks[command]}))
    with alone_in(out):
        run = Run([command, str(file)], tmp_path / "log", 1, ["no_model"], {}).wait()
        assert_refused(run, f"output_dir: {out} is in use by a run on", f"(pid {os.getpid()}, since")
        assert [p.name for p in out.iterdir()] == [LOCK]


def test_two_runs_in_one_output_dir(base: Config, tmp_path: Path) -> None:
    """The second one changes nothing of the first, whose files are those of a run alone."""
    out, go_on = tmp_path / "run", tmp_path / "go_on"
    config = {**base, "dataflex": {"select": {"name": "loss", "warmup": 2, "interval": 4}}}
    first = start(config, out, hooks=[f"pause_after:6={go_on}"])
    alone = start(config, tmp_path / "alone")
    while not (out / "paused").exists():
        assert first.processes[0].is_alive()
        first.processes[0].join(0.05)
    second = Run(["train", str(out / "config.yaml"), "seed=8"], tmp_path / "log", 1, ["no_model"], {}).wait()
    assert_refused(second, "output_dir: ", f"(pid {first.processes[0].pid}, since")
    go_on.touch()
    ended, reference = train_all(first, alone)
    assert ended.ok.trace() == reference.ok.trace() and ended.ledger() == reference.ledger()
    assert not (out / LOCK).exists()
