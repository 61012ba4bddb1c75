"""How far a run has come, for the line that says where it was stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataflex.config import RunConfig
from dataflex.values import truth

STEP_FILE = "DATAFLEX_STEP_FILE"  # where the launcher of several ranks looks
GOES_ON = "DATAFLEX_GOES_ON"  # set where the command of a run is given again without overwrite_output_dir
EVALUATION = "stopped: nothing is written; the same command starts over"
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
    content = file.read_text(encoding="ascii") if file.is_file() else ""
    _Reached.step = int(content) if content.isdigit() else None


def of_training(config: RunConfig) -> str:
    """Where a training was stopped, and what the same command does next."""
    step = _Reached.step
    where = "stopped before the first step" if step is None else f"stopped at step {step}"
    return f"{where}; {_next(config.llamafactory, own_checkpoints=config.dataflex is not None)}"


def _next(keys: Mapping[str, Any], own_checkpoints: bool) -> str:
    asked, folder = keys.get("resume_from_checkpoint"), Path(str(keys.get("output_dir"))).expanduser()
    if asked and str(asked).lower() not in ("true", "false"):
        return f"the same command goes on from {asked}"
    found = _saved(folder, own_checkpoints)
    if not found:
        return "the same command starts over: there is no checkpoint yet"
    whole = [path for path in found if not _model_only(path)]
    overwrites = truth(keys.get("overwrite_output_dir"), "overwrite_output_dir") and GOES_ON not in os.environ
    if overwrites:
        goes_on = f"; without overwrite_output_dir it goes on from {whole[-1].name}" if whole else ""
        return f"the same command starts over{goes_on}"
    if keys.get("stage") == "rm":
        return "a reward model cannot be gone on with (LLaMA-Factory); start over with overwrite_output_dir"
    if not whole:
        return "no run goes on from checkpoints saved with save_only_model; start over with overwrite_output_dir"
    return f"the same command goes on from {whole[-1].name}"


def _saved(folder: Path, own: bool) -> list[Path]:
    """The checkpoints, the newest last, by the file that is written last. Modules that know more take longer to import than a
    Ctrl-C may."""
    last = "dataflex/COMPLETE" if own else "trainer_state.json"
    found = {
        path.name.removeprefix("checkpoint-"): path for path in folder.glob("checkpoint-*") if (path / last).is_file()
    }
    return [found[step] for step in sorted((s for s in found if s.isdigit()), key=int)]


def _model_only(checkpoint: Path) -> bool:
    """Of a run with a block: without one, LLaMA-Factory goes on from it with another optimizer."""
    try:
        return bool(json.loads((checkpoint / "dataflex" / "state.json").read_text()).get("model_only"))
    except (OSError, ValueError, AttributeError):
        return False
