"""An environment for bergson, the gradient engine of EleutherAI, with the torch and transformers that dataflex is tested with."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

VERSION = "2.5.1"
_CONSTRAINTS = Path(__file__).resolve().parents[2] / "constraints.txt"
_SHARED = ("torch", "torchvision", "torchaudio", "transformers")
_MINUTES = 15


class Unavailable(Exception):
    """bergson cannot be installed here, and why."""


def interpreter(folder: Path) -> Path:
    """The Python of an environment with bergson in `folder`, made at the first call. Unavailable if it cannot be made."""
    python, done = folder / "bin" / "python", folder / "complete.txt"
    lines = _CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    wanted = [f"bergson=={VERSION}", *(line for line in lines if line.split("==")[0] in _SHARED)]
    if done.is_file() and done.read_text(encoding="utf-8") == "\n".join(wanted):
        return python
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv:  # its cache shares files by hard links
        _call(uv, "venv", "--quiet", "--python", sys.executable, folder)
        _call(uv, "pip", "install", "--quiet", "--link-mode", "hardlink", "--python", python, *wanted)
    else:
        _call(sys.executable, "-m", "venv", folder)
        _call(python, "-m", "pip", "install", "--quiet", *wanted)
    done.write_text("\n".join(wanted), encoding="utf-8")
    return python


def _call(*words: str | Path) -> None:
    try:
        ended = subprocess.run([str(w) for w in words], capture_output=True, text=True, timeout=60 * _MINUTES)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"not installed within {_MINUTES} minutes") from error
    if ended.returncode:
        said = [line.strip() for line in ended.stderr.splitlines() if line.strip()]
        raise Unavailable(said[-1] if said else f"{words[0]} ended with status {ended.returncode}")
