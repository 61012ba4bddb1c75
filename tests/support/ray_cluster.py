"""A Ray cluster on this machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from harness import free_port

# Without the second, Ray writes a token for its clusters into the home directory, and clusters ask for it from then on.
SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}


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
            [sys.executable, "-m", "ray.scripts.scripts", *command],
            env=os.environ | SETTINGS, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
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
