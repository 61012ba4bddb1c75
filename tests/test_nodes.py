"""Several nodes: two on this machine, with working directories, data, models, caches and output of their own."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import environment, kill_tree
from harness import Result, Run, free_port, start, train_all

from dataflex.record.completeness import mark_complete

Config = dict[str, Any]

ODM = {"name": "odm", "interval": 3}
SELECT = {"name": "loss", "warmup": 2, "interval": 4}
SAVING = {"save_strategy": "steps", "save_steps": 4, "save_on_each_node": True}


@pytest.fixture
def two(base: Config) -> Config:
    return {**base, "per_device_train_batch_size": 2}


def settle(config: Config, ground: Path, path: Path, node: int) -> tuple[Config, Path]:
    """The configuration on a node, which has all that it names in a directory of its own."""
    home = path / f"node-{node}"
    for name in ("data", "model", "reference"):
        if (ground / name).is_dir() and not (home / name).exists():
            shutil.copytree(ground / name, home / name)
    return yaml.safe_load(yaml.safe_dump(config).replace(str(ground), str(home))), home


def nodes(
    config: Config, ground: Path, path: Path, *, hooks: Sequence[str] = (), second: Config | None = None
) -> list[Run]:
    """One rank on each of two nodes. second: what is other in the configuration of node 1."""
    port, runs = str(free_port()), []
    for node in range(2):
        given, home = settle({**config, **((second or {}) if node else {})}, ground, path, node)
        env = {
            "RANK": str(node), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        }  # fmt: skip
        runs.append(start(given, home / "out", hooks=[f"own_cache:{home / 'cache'}", *hooks], **env))
    return runs


def ids(runs: Sequence[Result]) -> dict[int, list[int]]:
    """As Result.ids, of ranks whose files lie apart."""
    for other in runs[1:]:
        for file in other.out.glob("served-*"):
            shutil.copy(file, runs[0].out)
    return runs[0].ids()


def assert_same(runs: list[Result], single: Result) -> None:
    assert all(run.ok for run in runs)
    assert ids(runs) == single.ok.ids()
    assert runs[0].trace() == single.trace()
    assert runs[0].scalars() == single.scalars()
    assert runs[0].ledger() == single.ledger()


RUNS: dict[str, Config] = {
    "select and mix": {"select": SELECT, "mix": ODM},
    "gradients": {
        "select": {"name": "less", "warmup": 2, "interval": 4, "proj_dim": 16, "target_dataset": "arithmetic_heldout"}
    },
    "weights of the global batch": {"mix": ODM, "weight": {"name": "loss", "strategy": "linupper", "scope": "global"}},
    "losses of a reference": {
        "mix": {"name": "doremi", "interval": 3, "reference_model_path": "REFERENCE"},
        "weight": {"name": "rho1", "reference_model_path": "REFERENCE"},
    },
}  # fmt: skip


@pytest.mark.parametrize(
    "slots", [name if name == "select and mix" else pytest.param(name, marks=pytest.mark.slow) for name in RUNS]
)
def test_two_nodes_are_one_node_with_two_ranks(
    two: Config, ground: Path, reference: Path, tmp_path: Path, slots: str
) -> None:
    """Node 1 has nothing that node 0 has written."""
    block = json.loads(json.dumps(RUNS[slots]).replace("REFERENCE", str(reference)))
    config = {**two, "gradient_accumulation_steps": 2 if "scope" in str(block) else 1, "dataflex": block}
    runs = nodes(config, ground, tmp_path, hooks=["record_ids"])
    single = start(config, tmp_path / "single", ranks=2, hooks=["record_ids"])
    apart, whole = train_all(*runs), single.wait()
    assert_same(apart, whole)
    assert (tmp_path / "node-0" / "out" / "dataflex" / "ledger.jsonl").is_file()
    written = [file.name for file in (tmp_path / "node-1" / "out" / "dataflex").rglob("*")]
    assert written == ["run.rank1.log"]  # what the libraries print there
    if slots == "losses of a reference":  # a second run takes them from the store, which node 1 does not have
        fresh = config | {"overwrite_output_dir": True, "save_on_each_node": True}
        again = train_all(*nodes(fresh, ground, tmp_path, hooks=["count_measured"]))
        assert json.loads((again[0].out / "measured.json").read_text()) == [0]
        assert again[0].ok.trace() == whole.trace()


@pytest.mark.slow
def test_a_run_on_two_nodes_is_resumed_from_each_nodes_checkpoint(two: Config, ground: Path, tmp_path: Path) -> None:
    """With save_on_each_node, after SIGKILL of both: from the newest checkpoint that both have whole."""
    config = {**two, **SAVING, "dataflex": RUNS["select and mix"] | {"weight": {"name": "loss"}}}
    runs = nodes(config, ground, tmp_path, hooks=["kill_after:10"])
    killed = [run.wait() for run in runs]
    assert [run.status for run in killed] == [[-9], [-9]]
    for node in range(2):
        state = tmp_path / f"node-{node}" / "out" / "checkpoint-8" / "dataflex"
        assert {p.name for p in state.iterdir()} >= {"COMPLETE", "state.json", "exposure.parquet"}
    (tmp_path / "node-1" / "out" / "checkpoint-8" / "dataflex" / "COMPLETE").unlink()
    resumed = train_all(*nodes(config, ground, tmp_path, hooks=["record_ids"]))
    whole = start(config | {"save_on_each_node": False}, tmp_path / "single", ranks=2, hooks=["record_ids"]).wait()
    assert resumed[0].ok.trace() == whole.ok.trace()
    assert ids(resumed) == {step: rows for step, rows in whole.ids().items() if step >= 4}
    assert resumed[0].ledger() == whole.ledger()
    assert re.search(r"checkpoint-8 is complete on rank 0 \(.*\) but not on every node; checkpoint-4", resumed[0].log)

    state = tmp_path / "node-1" / "out" / "checkpoint-12" / "dataflex" / "state.json"
    state.write_text(state.read_text().replace('"position": 48', '"position": 84'))  # damaged: both take an older one
    again = train_all(*nodes(config, ground, tmp_path, hooks=["record_ids"]))
    assert again[0].ok.trace() == whole.trace()
    assert re.search(
        r"/node-1/out/checkpoint-12 is damaged on rank 1 \(.*\) \(dataflex/state.json does not hold what was saved\);"
        r" an older checkpoint is used",
        again[0].log,
    )

    state.write_text(state.read_text().replace('"position": 48', '"position": 84'))
    mark_complete(state.parents[1])  # whole, but of another run, as it were
    other = train_all(*nodes(config, ground, tmp_path))
    assert [run.status for run in other] == [[2], [2]]
    assert re.fullmatch(
        r"resume_from_checkpoint: .*/node-1/out/checkpoint-12 on rank 1 \(.*\) is not the checkpoint that"
        r" .*/node-0/out/checkpoint-12 is on rank 0 \(.*\); copy one of them to every node",
        error(other[0].log),
    )


@pytest.mark.slow
def test_a_checkpoint_that_is_copied_to_the_other_node_is_gone_on_from(
    two: Config, ground: Path, tmp_path: Path
) -> None:
    """Exactly, where the file that rank 1 has written itself is kept; without it, one line says what is not."""
    config = {**two, **SAVING, "save_on_each_node": False, "dataflex": RUNS["select and mix"]}
    runs = nodes(config, ground, tmp_path, hooks=["kill_after:10"])
    assert [run.wait().status for run in runs] == [[-9], [-9]]
    here, there = (tmp_path / f"node-{node}" / "out" / "checkpoint-8" for node in range(2))
    assert [p.name for p in there.iterdir()] == ["rng_state_1.pth"]
    shutil.copytree(here, there, dirs_exist_ok=True)
    shutil.copytree(tmp_path, tmp_path / "lacking")
    resumed = train_all(*nodes(config, ground, tmp_path, hooks=["record_ids"]))
    whole = start(config, tmp_path / "single", ranks=2, hooks=["record_ids"]).wait()
    assert resumed[0].ok.trace() == whole.ok.trace()
    assert ids(resumed) == {step: rows for step, rows in whole.ids().items() if step >= 8}
    assert "dropout does not" not in resumed[0].log

    (tmp_path / "lacking" / "node-1" / "out" / "checkpoint-8" / "rng_state_1.pth").unlink()
    lacking = train_all(*nodes(config, ground, tmp_path / "lacking", hooks=["record_ids"]))
    assert ids(lacking) == ids(resumed)
    assert lacking[0].ok.trace() != whole.trace()
    assert re.search(
        r"dataflex: checkpoint-8 lacks rng_state_1.pth on rank 1 \(.*\); rows and decisions", lacking[0].log
    )


def launch(
    config: Config, ground: Path, path: Path, *, second: Config | None = None, rendezvous: bool = False
) -> list[subprocess.Popen[str]]:
    """The command on each of two nodes."""
    port, started = str(free_port()), []
    for node in range(2):
        given, home = settle({**config, **((second or {}) if node else {})}, ground, path, node)
        (home / "tmp").mkdir(exist_ok=True)
        (home / "config.yaml").write_text(yaml.safe_dump({**given, "output_dir": "out"}))
        how = {"RDZV_ID": "a-run"} if rendezvous else {"NODE_RANK": str(node)}
        env = {
            "FORCE_TORCHRUN": "1", "NNODES": "2", "NPROC_PER_NODE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            "HF_HOME": str(home / "hub"), "HF_DATASETS_CACHE": str(home / "cache"), "TMPDIR": str(home / "tmp"), **how,
        }  # fmt: skip
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "dataflex", "train", "config.yaml"],
                cwd=home,
                env=environment(**env),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return started


def ended(started: list[subprocess.Popen[str]], within: float = 120) -> list[tuple[int, str]]:
    """Exit status and output of each node, both within so many seconds."""
    limit, out = time.monotonic() + within, []
    try:
        for process in started:
            text, _ = process.communicate(timeout=max(1, limit - time.monotonic()))
            out.append((process.returncode, text))
    finally:
        for process in started:
            if process.returncode is None:
                kill_tree(process)
    return out


def error(text: str) -> str:
    assert "Traceback" not in text, text[-5000:]
    (line,) = [line for line in text.splitlines() if line.startswith("dataflex: error: ")]
    return line.removeprefix("dataflex: error: ")


def history(folder: Path) -> dict[int, tuple[float, float]]:
    records = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return {r["step"]: (r["loss"], r["grad_norm"]) for r in records if "loss" in r}


@pytest.mark.slow
@pytest.mark.parametrize("rendezvous", [False, True])
def test_the_command_meets_itself_on_another_node(two: Config, ground: Path, tmp_path: Path, rendezvous: bool) -> None:
    """By NODE_RANK, and by RDZV_ID, where the nodes settle between them which is which."""
    config = {**two, "dataflex": RUNS["select and mix"]}
    both = ended(launch(config, ground, tmp_path, rendezvous=rendezvous))
    assert [status for status, _ in both] == [0, 0], both
    (out,) = [home / "out" for home in tmp_path.glob("node-*") if (home / "out" / "trainer_state.json").is_file()]
    single = start(config, tmp_path / "single", ranks=2).wait()
    assert history(out) == single.ok.trace()
    assert single.ledger() == Result([0], out, "").ledger()


@pytest.mark.slow
def test_other_rows_on_one_node_end_both(two: Config, ground: Path, tmp_path: Path) -> None:
    for node in range(2):
        settle(two, ground, tmp_path, node)
    file = next((tmp_path / "node-1" / "data").glob("docs.*"))
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:-1] + lines[:1]) + "\n")
    both = ended(launch({**two, "dataflex": {"select": SELECT}}, ground, tmp_path), within=90)
    for status, text in both:
        assert status == 2, text[-5000:]
        assert re.fullmatch(
            r"dataset: the rows of 'docs' are others on rank 1 \(.*\) than on rank 0 \(.*\); every node must have the same"
            r" data",
            error(text),
        )


FAULTS: dict[str, tuple[Config, int, str]] = {
    # what is other on node 1 -> exit status, the line there; on node 0 it begins with who said so
    "a missing file": ({}, 2, r"dataset: the file of 'docs' is missing: .*"),
    "another seed": ({"seed": 8}, 2, r"seed is 8 on rank 1 \(.*\) and 7 on rank 0 \(.*\); every node must .*"),
    "another setting of LLaMA-Factory's": (
        {"logging_steps": 2},
        2,
        r"logging_steps is 2.0 on rank 1 \(.*\) and 1.0 on rank 0 \(.*\); every node must .*",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_on_one_node_is_said_on_both(two: Config, ground: Path, tmp_path: Path, fault: str) -> None:
    changes, expected, pattern = FAULTS[fault]
    for node in range(2):
        settle(two, ground, tmp_path, node)
    if fault == "a missing file":
        next((tmp_path / "node-1" / "data").glob("docs.*")).unlink()
    both = ended(launch({**two, "dataflex": {"select": SELECT}}, ground, tmp_path, second=changes), within=90)
    assert [status for status, _ in both] == [expected, expected]
    assert re.fullmatch(pattern, error(both[1][1]))
    assert re.fullmatch(rf"(rank 1 \(.*\): )?{pattern}", error(both[0][1]))


def training(two: Config, ground: Path, tmp_path: Path) -> list[subprocess.Popen[str]]:
    """Both nodes, once they have made some decisions."""
    started = launch({**two, "max_steps": 2000, "dataflex": {"mix": ODM}}, ground, tmp_path)
    ledger = tmp_path / "node-0" / "out" / "dataflex" / "ledger.jsonl"
    while not (ledger.is_file() and len(ledger.read_text().splitlines()) > 2):
        assert all(p.poll() is None for p in started), [p.communicate() for p in started]
        time.sleep(0.1)
    return started


@pytest.mark.slow
def test_a_killed_rank_ends_both_nodes(two: Config, ground: Path, tmp_path: Path) -> None:
    """SIGKILL of the rank of node 1 while it trains: both say so, in bounded time."""
    import psutil

    started = training(two, ground, tmp_path)
    (rank,) = psutil.Process(started[1].pid).children()
    rank.kill()
    both = ended(started, within=30)
    assert [status for status, _ in both] == [1, 1]
    line = "rank 1 was killed by SIGKILL; the run can be resumed from its newest checkpoint"
    assert error(both[1][1]) == line
    assert re.fullmatch(rf"on .*, {line}", error(both[0][1]))


@pytest.mark.slow
def test_a_node_that_vanishes_ends_the_other(two: Config, ground: Path, tmp_path: Path) -> None:
    """Its launcher and its rank are killed, so that nobody says anything."""
    started = training(two, ground, tmp_path)
    kill_tree(started[1])
    ((status, text),) = ended(started[:1], within=40)
    assert status == 1
    assert error(text).startswith("another rank is gone (")


@pytest.mark.slow
def test_a_checkpoint_on_one_node_alone_is_refused(two: Config, ground: Path, tmp_path: Path) -> None:
    """Not resumed on node 0 and begun anew on node 1, where each saves what is its own: named, asked for or found by itself."""
    config = {**two, **SAVING, "save_on_each_node": False, "dataflex": {"select": SELECT}, "max_steps": 8}
    assert all(run.ok for run in train_all(*nodes(config, ground, tmp_path)))
    assert (tmp_path / "node-1" / "out" / "checkpoint-8" / "rng_state_1.pth").is_file()
    found = (
        r"output_dir: .*/node-1/out on rank 1 \(.*\) has no complete checkpoint, and rank 0 \(.*\) would go on from"
        r" .*/node-0/out/checkpoint-8; a resumed run reads it on every node: copy it there, or train with"
        r" save_on_each_node: true"
    )
    named = (
        r"resume_from_checkpoint: out/checkpoint-4 is not complete on rank 1 \(.*\): it holds no dataflex state; a resumed"
        r" run reads it on every node: copy it there, or train with save_on_each_node: true"
    )
    for asked, pattern in (
        ({}, found),
        ({"resume_from_checkpoint": True}, found),
        ({"resume_from_checkpoint": "out/checkpoint-4"}, named),
    ):
        both = ended(launch({**config, **asked}, ground, tmp_path), within=90)
        assert [status for status, _ in both] == [2, 2]
        assert all(re.fullmatch(pattern, error(text)) for _, text in both), [error(text) for _, text in both]


def test_two_ranks_that_would_save_to_one_directory_are_refused(two: Config, tmp_path: Path) -> None:
    """As under Ray, where every rank counts as the first of its node."""
    port, out, runs = str(free_port()), tmp_path / "out", []
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({**two, **SAVING, "dataflex": {"select": SELECT}, "output_dir": str(out)}))
    for rank in range(2):
        env = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        runs.append(Run(["train", str(file)], tmp_path / f"log-{rank}", 1, [], env))
    found = train_all(*runs)
    assert [run.status for run in found] == [[2], [2]]
    assert re.fullmatch(
        rf"save_on_each_node: rank 0 \(.*\) and rank 1 \(.*\) would both save to {out}; leave it out, or give each an"
        " output_dir of its own",
        error(found[0].log),
    )


def test_nodes_without_a_port_are_refused(two: Config, tmp_path: Path) -> None:
    run = start({**two, "dataflex": {"select": SELECT}}, tmp_path / "run", FORCE_TORCHRUN="1", NNODES="2").wait()
    assert run.status == [2]
    assert error(run.log) == (
        "MASTER_PORT: 2 nodes (NNODES) need MASTER_ADDR and MASTER_PORT to meet at, the same on each"
    )
