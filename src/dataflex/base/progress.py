"""How far a run has come, for the line that says where it was stopped."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataflex.config import RunConfig
from dataflex.config.values import truth

STEP_FILE = "DATAFLEX_STEP_FILE"  # where the launcher of several ranks looks
GOES_ON = "DATAFLEX_GOES_ON"  # set where the command of a run is given again without overwrite_output_dir
SELECTION = "stopped: what was measured is kept; the same command goes on"


class _Reached:
    step: int | None = None


def reach(step: int) -> None:
    """`step` optimizer steps are done."""
    _Reached.step = step
    file = os.environ.get(STEP_FILE)
    if file and os.environ.get("LOCAL_RANK") == "0":
        Path(file).write_text(str(step), encoding="ascii")


def take(file: Path) -> None:
    """How far the ranks have come, from the file that they were given."""
    said = file.read_text(encoding="ascii") if file.is_file() else ""
    _Reached.step = int(said) if said.isdigit() else None


def of_training(config: RunConfig) -> str:
    """Where a training was stopped, and what the same command does next."""
    step = _Reached.step
    where = "stopped before the first step" if step is None else f"stopped at step {step}"
    return f"{where}; {_next(config.llamafactory, own_checkpoints=config.dataflex is not None)}"


def _next(keys: Mapping[str, Any], own_checkpoints: bool) -> str:
    asked, folder = keys.get("resume_from_checkpoint"), Path(str(keys.get("output_dir"))).expanduser()
    if asked and str(asked).lower() not in ("true", "false"):
        return f"the same command goes on from {asked}"
    newest = _newest(folder, own_checkpoints)
    if newest is None:
        return "the same command starts over: there is no checkpoint yet"
    if truth(keys.get("overwrite_output_dir"), "overwrite_output_dir") and GOES_ON not in os.environ:
        return f"the same command starts over; without overwrite_output_dir it goes on from {newest}"
    if keys.get("stage") == "rm":
        return "a reward model cannot be gone on with (LLaMA-Factory); start over with overwrite_output_dir"
    return f"the same command goes on from {newest}"


def _newest(folder: Path, own: bool) -> str | None:
    """The newest checkpoint by the file that is written last. Modules that know more take longer to import than a Ctrl-C may."""
    last = "dataflex/COMPLETE" if own else "trainer_state.json"
    steps = [path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*") if (path / last).is_file()]
    newest = max((int(step) for step in steps if step.isdigit()), default=None)
    return None if newest is None else f"checkpoint-{newest}"
