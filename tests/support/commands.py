"""Commands started as a user starts them, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
from harness import TESTS


def environment(**extra: str) -> dict[str, str]:
    source = str(TESTS.parent / "src")
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_"))}
    return {**keep, "PYTHONPATH": source, "ACCELERATE_TORCH_DEVICE": "cpu", "OMP_NUM_THREADS": "1", **extra}


def command(*arguments: str, cwd: Path | None = None, **extra: str) -> subprocess.CompletedProcess[str]:
    """`dataflex-cli` with these arguments, to its end. extra: of the environment."""
    return subprocess.run(
        [sys.executable, "-m", "dataflex", *arguments],
        env=environment(**extra), cwd=cwd, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


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
