"""Training on Ray: the same run as under DDP, resumed, and ended in one line where something goes wrong."""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from checkpoint_files import assert_refused
from harness import Result, Run, start
from ray_cluster import SETTINGS
from ray_hooks import variables

from dataflex.config import RunConfig, load_offline
from dataflex.errors import ConfigError

Config = dict[str, Any]

ODM = {"name": "odm", "interval": 3}
SELECT = {"name": "loss", "interval": 4}


def on_ray(
    config: Config, out: Path, cluster: str, *, hooks: Sequence[str] = (), driver: Sequence[str] = ("ray_on_cpus",),
    **env: str,
) -> Run:  # fmt: skip
    """`USE_RAY=1 dataflex-cli train` on two workers; hooks: in the workers."""
    init = {"address": cluster, "runtime_env": {"worker_process_setup_hook": "ray_hooks.in_worker"}}
    given = config.get("ray_init_kwargs", {})
    init = {**init, **given, "runtime_env": {**init["runtime_env"], **given.get("runtime_env", {})}}  # type: ignore[dict-item]
    env = {"USE_RAY": "1", **SETTINGS, **variables(out, hooks), **env}
    return start({"ray_num_workers": 2, **config, "ray_init_kwargs": init}, out, hooks=driver, **env)


def errors(run: Result) -> list[str]:
    """The lines that say what went wrong; workers' own output is not among them."""
    assert "Traceback" not in run.log, run.log[-4000:]
    return [line for line in run.log.splitlines() if line.startswith("dataflex: error")]


def assert_gone(run: Result) -> None:
    """No worker is left in the cluster, which goes on."""
    workers = [int(file.read_text()) for file in run.out.glob("pid-*")]
    assert len(workers) == 2
    begin = time.monotonic()
    while any(map(psutil.pid_exists, workers)):
        assert time.monotonic() < begin + 15
        time.sleep(0.1)


def assert_same(run: Result, ddp: Result) -> None:
    assert run.ok.ids() == ddp.ok.ids()
    assert run.trace() == ddp.trace()
    assert run.scalars() == ddp.scalars()
    assert run.ledger() == ddp.ledger()


def pair(base: Config, **slots: Any) -> Config:
    return {**base, "per_device_train_batch_size": 2, "dataflex": slots}


@pytest.mark.slow
def test_a_run_on_ray_is_the_run_on_two_ranks(base: Config, tmp_path: Path, cluster: str) -> None:
    config = pair(base, select=SELECT)
    run = on_ray(config, tmp_path / "ray", cluster, hooks=["record_ids"]).wait()
    assert_same(run, start(config, tmp_path / "ddp", ranks=2, hooks=["record_ids"]).wait())
    assert_gone(run)


RUNS: dict[str, Config] = {
    "gradients": {
        "select": {"name": "less", "warmup": 2, "interval": 4, "proj_dim": 16, "target_dataset": "arithmetic_heldout"}
    },
    "a mixture and weights": {"mix": ODM, "weight": {"name": "loss", "strategy": "linupper", "warmup": 2}},
}


@pytest.mark.slow
@pytest.mark.parametrize("slots", RUNS)
def test_every_kind_of_decision_is_the_same_on_ray(base: Config, tmp_path: Path, cluster: str, slots: str) -> None:
    config = pair(base, **RUNS[slots])
    run = on_ray(config, tmp_path / "ray", cluster, hooks=["record_ids"]).wait()
    assert_same(run, start(config, tmp_path / "ddp", ranks=2, hooks=["record_ids"]).wait())


@pytest.mark.slow
def test_a_run_on_ray_without_a_block_is_llamafactorys(base: Config, tmp_path: Path, cluster: str) -> None:
    config = {**base, "per_device_train_batch_size": 2}
    run = on_ray({**config, "master_addr": cluster.split(":")[0]}, tmp_path / "ray", cluster).wait()
    assert run.ok.trace() == start(config, tmp_path / "ddp", ranks=2).wait().ok.trace()


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_the_run_and_it_is_resumed(base: Config, tmp_path: Path, cluster: str) -> None:
    """SIGKILL of one worker off a boundary: one line, status 1, the other one is not left behind; then the run goes on."""
    config = pair(base, select=SELECT, mix=ODM) | {"save_strategy": "steps", "save_steps": 4}
    out, begin = tmp_path / "ray", time.monotonic()
    killed = on_ray(config, out, cluster, hooks=["record_ids", "1@kill_after:6"]).wait()
    assert time.monotonic() - begin < 90
    assert killed.status == [1], killed.log[-3000:]
    (line,) = errors(killed)
    assert line.startswith("dataflex: error: rank 1 has died (")
    assert f"pid {(out / 'pid-1').read_text()}" in line
    assert_gone(killed)
    for file in out.glob("served-*"):
        file.unlink()
    resumed = on_ray(config, out, cluster, hooks=["record_ids"]).wait()
    whole = start(config, tmp_path / "ddp", ranks=2, hooks=["record_ids"]).wait()
    assert resumed.ok.trace() == whole.ok.trace()
    assert resumed.ids() == {step: ids for step, ids in whole.ids().items() if step >= 4}
    assert resumed.ledger() == whole.ledger()


@pytest.mark.slow
def test_a_killed_command_leaves_no_worker_behind(base: Config, tmp_path: Path, cluster: str) -> None:
    """The cluster goes on, and notices."""
    run = on_ray(pair(base, mix=ODM) | {"max_steps": 100_000}, tmp_path / "run", cluster)
    ledger, begin = tmp_path / "run" / "dataflex" / "ledger.jsonl", time.monotonic()
    while not (ledger.is_file() and len(ledger.read_text().splitlines()) > 2):
        assert time.monotonic() < begin + 90 and run.processes[0].is_alive()
        time.sleep(0.1)
    run.processes[0].kill()
    assert_gone(run.wait())


@pytest.mark.slow
def test_a_cluster_of_its_own_ends_with_the_run(base: Config, tmp_path: Path) -> None:
    """Nothing of the cluster that the command starts is left, whether the run ends well or not."""
    folder = tempfile.mkdtemp(prefix="ray-")
    try:
        for hooks, status in ((["record_ids"], [0]), (["1@broken"], [1])):
            own = {"ray_init_kwargs": {"num_cpus": 2, "include_dashboard": False, "_temp_dir": folder}}
            run = on_ray(pair(base, select=SELECT) | own, tmp_path / str(status), "local", hooks=hooks).wait()
            assert run.status == status, run.log[-3000:]
            assert_gone(run)
            left = [p for p in psutil.process_iter(["cmdline"]) if folder in " ".join(p.info["cmdline"] or [])]
            psutil.wait_procs(left, timeout=15)
            assert not [p for p in left if p.is_running()]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_nodes_without_dataflex_are_one_line(base: Config, tmp_path: Path, cluster: str) -> None:
    run = on_ray(pair(base, select=SELECT), tmp_path / "run", cluster, hooks=["1@no_dataflex"]).wait()
    assert run.status == [1]
    (line,) = errors(run)
    assert re.fullmatch(
        r"dataflex: error: a worker of Ray cannot start \(.*dataflex.*\); dataflex must be installed on every node",
        line,
    )


@pytest.mark.slow
def test_an_error_on_a_worker_is_one_line(base: Config, tmp_path: Path, cluster: str) -> None:
    """Found once the data have been read, on the workers: exit status 2."""
    run = on_ray(pair(base, select={"name": "random", "interval": 46}), tmp_path / "run", cluster).wait()
    assert run.status == [2]
    assert errors(run) == [
        "dataflex: error: dataflex.select.interval: 46 steps of 4 rows ask for 184 rows, but the data has 180;"
        " use at most 45 steps"
    ]


def test_llamafactorys_reservation_that_cannot_be_had_is_refused(base: Config, tmp_path: Path, cluster: str) -> None:
    """As it is, LLaMA-Factory waits for ever for ten CPUs per device."""
    run = on_ray(pair(base, select=SELECT), tmp_path / "run", cluster, driver=()).wait()
    assert run.status == [2]
    assert errors(run) == [
        "dataflex: error: ray_num_workers: LLaMA-Factory reserves 10 CPU for each of the 2 devices of the Ray cluster, and"
        " it has 2; give its nodes more with num_cpus"
    ]


@pytest.mark.slow
def test_too_many_workers_and_a_foreign_address_are_refused(base: Config, tmp_path: Path, cluster: str) -> None:
    config = pair(base, select=SELECT)
    many = on_ray({**config, "ray_num_workers": 3}, tmp_path / "many", cluster).wait()
    foreign = on_ray({**config, "master_addr": "10.9.8.7"}, tmp_path / "foreign", cluster).wait()
    for run, words in ((many, "num_workers (3)"), (foreign, "`master_addr` (10.9.8.7) is not in Ray cluster")):
        assert run.status == [2]
        (line,) = errors(run)
        assert line.startswith("dataflex: error: ray_num_workers, master_addr: ")
        assert words in line


def test_a_cluster_that_is_not_there_is_refused(base: Config, tmp_path: Path) -> None:
    """Wrong keys of ray.init, before anything is started."""
    run = on_ray(pair(base, select=SELECT) | {"ray_init_kwargs": {"adress": "x"}}, tmp_path / "run", "local").wait()
    assert run.status == [2]
    (line,) = errors(run)
    assert line.startswith("dataflex: error: ray_init_kwargs: Ray cannot be started or reached with ")
    assert "adress" in line


COMPONENT = """
from dataclasses import dataclass
import numpy as np
from dataflex import Selection, Selector

@dataclass(frozen=True, kw_only=True)
class Last(Selector):
    def select(self, state, signals, context):
        return Selection(np.arange(context.rows - context.budget, context.rows)), state
"""


@pytest.mark.slow
def test_a_component_of_ones_own_comes_with_py_modules(base: Config, tmp_path: Path, cluster: str) -> None:
    """A module that only the driver can import is one line; named in the runtime environment, it is sent along."""
    (tmp_path / "package" / "lasting").mkdir(parents=True)
    (tmp_path / "package" / "lasting" / "__init__.py").write_text(COMPONENT)
    config = pair(base, select={"name": "lasting:Last", "interval": 4})
    driver = [f"import_from:{tmp_path / 'package'}", "ray_on_cpus"]
    alone = on_ray(config, tmp_path / "alone", cluster, driver=driver).wait()
    assert alone.status == [2]
    assert errors(alone) == [
        "dataflex: error: a component cannot be imported on a worker of Ray (No module named 'lasting'); install its"
        " package there, or name it in ray_init_kwargs: {runtime_env: {py_modules: [...]}}"
    ]
    sent = {"runtime_env": {"py_modules": [str(tmp_path / "package" / "lasting")]}}
    run = on_ray({**config, "ray_init_kwargs": sent}, tmp_path / "sent", cluster, hooks=["record_ids"], driver=driver)
    assert sorted(run.wait().ok.ids()[0]) != sorted(range(4))
    assert min(i for ids in run.wait().ids().values() for i in ids) >= 180 - 16


@pytest.mark.slow
def test_a_fault_in_a_worker_shows_where_it_is(base: Config, tmp_path: Path, cluster: str) -> None:
    """Not one to be named in advance: its traceback, and one line."""
    run = on_ray(pair(base, select=SELECT), tmp_path / "run", cluster, hooks=["0@broken"]).wait()
    assert run.status == [1]
    assert [line for line in run.log.splitlines() if line.startswith("dataflex: error")] == [
        "dataflex: error: a worker of Ray failed: ZeroDivisionError: a fault of the test's"
    ]
    assert "in broken_step" in run.log


def test_ray_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataflex.base.launching import launch

    monkeypatch.setenv("USE_RAY", "1")
    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"USE_RAY: the package ray is not installed; .* \(dataflex\[ray\]\)"):
        launch._wants_ray(RunConfig(dataflex=None, llamafactory={}))


def test_a_selection_before_training_is_refused_on_ray(
    base: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USE_RAY", "1")
    file = tmp_path / "config.yaml"
    block = {"select": {"name": "random"}, "offline": {"budget": 4}}
    file.write_text(yaml.safe_dump({**base, "output_dir": str(tmp_path), "dataflex": block}))
    with pytest.raises(ConfigError, match="USE_RAY starts workers that train"):
        load_offline([str(file)])


def test_two_ways_to_start_ranks_are_refused(base: Config, tmp_path: Path) -> None:
    run = start(pair(base, select=SELECT), tmp_path / "run", USE_RAY="1", FORCE_TORCHRUN="1").wait()
    assert_refused(run, "USE_RAY", "FORCE_TORCHRUN")
