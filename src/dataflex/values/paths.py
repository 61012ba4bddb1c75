"""Paths in the values of a configuration."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

_TEXT = ("default_system", "run_name", "system_prompt", "add_tokens", "add_special_tokens")  # may begin as they like


def at_home(value: Any, key: str = "") -> Any:
    """A configuration with `~` and `~user` replaced where a value begins with them, as a shell does: in strings, in the parts of
    those that name several paths with commas, in lists and in blocks. Every later reader of a path finds the same one; without
    this, transformers replaces it in `output_dir` alone."""
    if isinstance(value, dict):
        return {k: at_home(v, str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [at_home(v, key) for v in value]
    if isinstance(value, str) and "~" in value and key not in _TEXT:
        return ",".join(_replaced(part) for part in value.split(","))
    return value


def _replaced(part: str) -> str:
    """With the spaces around it: `~/a, ~/b` names two."""
    bare = part.lstrip()
    return part[: len(part) - len(bare)] + os.path.expanduser(bare)


def is_folder(path: str) -> bool:
    """Whether there is a directory, also where the name is none that a directory can have."""
    try:
        return Path(path).is_dir()
    except (OSError, ValueError, RuntimeError):
        return False


def is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError, RuntimeError):
        return False
