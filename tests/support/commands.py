"""Commands started as a user starts them, in processes of their own."""

from __future__ import annotations

import os
import subprocess

import psutil
from harness import TESTS


def environment(**extra: str) -> dict[str, str]:
    source = str(TESTS.parent / "src")
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_"))}
    return {**keep, "PYTHONPATH": source, "ACCELERATE_TORCH_DEVICE": "cpu", "OMP_NUM_THREADS": "1", **extra}


def kill_tree(process: subprocess.Popen[str]) -> None:
    """torchrun's workers live in sessions of their own: kill every descendant and wait for it."""
    try:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        member.kill()
    psutil.wait_procs(family)
    process.communicate()
