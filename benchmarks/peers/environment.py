"""Environments of their own for programs that the benchmarks compare with: the same torch and LLaMA-Factory, other packages."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parents[2] / "constraints.txt"
_MINUTES = 15


class Unavailable(Exception):
    """An environment that cannot be made here, and why."""


def environment(
    folder: Path, requirements: Sequence[str], alone: Sequence[str] = (), *, constrained: bool = True
) -> Path:
    """The interpreter of a virtual environment in `folder`, made at the first call.

    requirements: what pip installs, where `constrained` within constraints.txt. alone: packages that are installed without what
    they require; the first list must have it. Their own caps on torch would bring another release, and the comparison would be
    one of torch.
    Unavailable if something cannot be had.
    """
    python, done = folder / "bin" / "python", folder / "complete.txt"
    wanted = "\n".join([*requirements, "alone:", *alone, CONSTRAINTS.read_text(encoding="utf-8")])
    if done.is_file() and done.read_text(encoding="utf-8") == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv:  # its cache shares files by hard links, so an environment takes seconds and hardly any room
        _call(uv, "venv", "--quiet", "--python", sys.executable, folder)
        install = [uv, "pip", "install", "--quiet", "--link-mode", "hardlink", "--compile-bytecode", "--python", python]
    else:
        _call(sys.executable, "-m", "venv", folder)
        install = [python, "-m", "pip", "install", "--quiet"]
    _call(*install, *(("--constraint", CONSTRAINTS) if constrained else ()), *requirements)
    if alone:
        _call(*install, "--no-deps", *alone)
    done.write_text(wanted, encoding="utf-8")
    return python


def _call(*words: str | Path) -> None:
    try:
        ended = subprocess.run([str(w) for w in words], capture_output=True, text=True, timeout=60 * _MINUTES)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"not installed within {_MINUTES} minutes") from error
    if ended.returncode:
        said = [line.strip() for line in ended.stderr.splitlines() if line.strip()]
        raise Unavailable(said[-1] if said else f"{words[0]} ended with status {ended.returncode}")
