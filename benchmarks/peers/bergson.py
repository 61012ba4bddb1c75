"""An environment for bergson, the gradient engine of EleutherAI, with the torch and transformers that dataflex is tested with."""

from __future__ import annotations

from pathlib import Path

from environment import CONSTRAINTS, Unavailable, environment

__all__ = ["VERSION", "Unavailable", "interpreter"]

VERSION = "2.5.1"
_SHARED = ("torch", "torchvision", "torchaudio", "transformers")


def interpreter(folder: Path) -> Path:
    """The Python of an environment with bergson in `folder`, made at the first call. Unavailable if it cannot be made."""
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    shared = [line for line in lines if line.split("==")[0] in _SHARED]  # its other packages are its own choice
    return environment(folder, [f"bergson=={VERSION}", *shared], constrained=False)
