"""Training on Ray: the same run as under DDP, resumed, and ended in one line where something goes wrong."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness import TESTS, Result, Run, free_port, start
from ray_hooks import variables

Config = dict[str, Any]

ODM = {"name": "odm", "interval": 3}
SELECT = {"name": "loss", "interval": 4}


@pytest.fixture(scope="session")
def cluster(ground: Path) -> Iterator[str]:
    """The address of a Ray cluster of two CPUs, all of whose processes are gone afterwards."""
    folder = tempfile.mkdtemp(prefix="ray-")  # names of sockets are below it, and must be short
    port = free_port()
    log = Path(folder) / "head.log"
    command = ["start", "--head", "--block", "--num-cpus=2", f"--port={port}", "--include-dashboard=false"]
    command += ["--disable-usage-stats", f"--temp-dir={folder}", "--object-store-memory=100000000"]
    with log.open("w") as output:
        head = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", *command], stdout=output, stderr=subprocess.STDOUT
        )
    try:
        begin = time.monotonic()
        while "--block" not in log.read_text() and time.monotonic() < begin + 60:
            assert head.poll() is None, log.read_text()
            time.sleep(0.1)
        address = re.search(r"Local node IP: (\S+)", log.read_text())
        assert address is not None
        yield f"{address[1]}:{port}"
    finally:
        end_all(head.pid)
        shutil.rmtree(folder, ignore_errors=True)


def end_all(pid: int) -> None:
    try:
        parent = psutil.Process(pid)
        family = [*parent.children(recursive=True), parent]
    except psutil.NoSuchProcess:
        return
    for member in family:
        member.kill()
    psutil.wait_procs(family, timeout=20)


def on_ray(
    config: Config, out: Path, cluster: str, *, hooks: Sequence[str] = (), driver: Sequence[str] = (), **env: str
) -> Run:
    """`USE_RAY=1 dataflex-cli train` on two workers; hooks: in the workers."""
    init = {
        "address": cluster,
        "runtime_env": {"worker_process_setup_hook": "ray_hooks.in_worker"},
        "log_to_driver": True,
    }
    ray = {"ray_num_workers": 2, "ray_init_kwargs": init}
    env = {"USE_RAY": "1", "RAY_USAGE_STATS_ENABLED": "0", **variables(out, hooks), **env}
    return start({**ray, **config}, out, hooks=["ray_on_cpus", *driver], **env)


def assert_same(run: Result, ddp: Result) -> None:
    assert run.ok.ids() == ddp.ok.ids()
    assert run.trace() == ddp.trace()
    assert run.scalars() == ddp.scalars()
    assert run.ledger() == ddp.ledger()


def test_a_run_on_ray_is_the_run_on_two_ranks(base: Config, tmp_path: Path, cluster: str) -> None:
    config = {**base, "per_device_train_batch_size": 2, "dataflex": {"select": SELECT}}
    run = on_ray(config, tmp_path / "ray", cluster, hooks=["record_ids"]).wait()
    ddp = start(config, tmp_path / "ddp", ranks=2, hooks=["record_ids"]).wait()
    assert_same(run, ddp)
