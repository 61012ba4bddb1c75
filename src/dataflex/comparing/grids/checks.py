"""What is checked before the first training of a grid begins."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from dataflex.base.checks.arguments import check_arguments, check_keys
from dataflex.comparing.grids.cells import Cell, Trial, holds_out
from dataflex.comparing.grids.grid import Grid
from dataflex.compat.flat import FLAT_KEYS
from dataflex.config import RunConfig, parse
from dataflex.errors import ConfigError, Mistakes
from dataflex.forecast.run import Forecast
from dataflex.masking import masked
from dataflex.values.nested import flat

_MISSING = "nothing"


def check_cells(grid: Grid) -> list[str]:
    """The notices of the trainings, each once. ConfigError with all that `train` would refuse: what all cells have in common
    once, and the rest with the names of its cells."""
    refused: dict[str, list[str]] = {}
    notices: dict[str, list[str]] = {}
    steps: dict[str, int | None] = {}
    for cell in grid.cells:
        keys = Trial(cell, grid.seeds[0], grid.output_dir).config()
        try:
            config = _checked(keys)
        except ConfigError as error:
            for line in str(error).splitlines():
                refused.setdefault(line, []).append(cell.name)
            continue
        for line in config.notices:
            notices.setdefault(line, []).append(cell.name)
        steps[cell.name] = Forecast(config, keys.get("dataflex") or {}).steps
    mistakes = Mistakes()
    mistakes.gather(_by_cells(refused, grid.cells))
    if not refused and grid.equal == "steps" and len(set(steps.values())) > 1:
        told = ", ".join(
            f"{name} {count if count is not None else 'an unknown number'}" for name, count in steps.items()
        )
        mistakes.note(
            ConfigError(f"equal: steps, but the optimizer steps differ ({told}); use equal: tokens, compute or nothing")
        )
    _check_environment(mistakes)
    mistakes.settle()
    if not any(holds_out(cell.keys) for cell in grid.cells):
        notices.setdefault("base: nothing is held out, so no run has a held-out loss; set eval_dataset", [])
    return list(_by_cells(notices, grid.cells))


def _checked(keys: Mapping[str, Any]) -> RunConfig:
    """As `train` checks a file: LLaMA-Factory's keys also where the block is refused."""
    try:
        config = parse(dict(keys))
    except ConfigError as error:
        mistakes = Mistakes()
        mistakes.note(error)
        with mistakes.noting(once=True):
            check_keys({k: v for k, v in keys.items() if k not in ("dataflex", *FLAT_KEYS)}, mistakes)
        mistakes.settle()
        raise
    return check_arguments(config)


def _by_cells(lines: Mapping[str, list[str]], cells: Sequence[Cell]) -> list[str]:
    """Lines with the names of the cells that they are of, unless these are all."""
    return [line if len(names) in (0, len(cells)) else f"{', '.join(names)}: {line}" for line, names in lines.items()]


def _check_environment(mistakes: Mistakes) -> None:
    if os.getenv("NNODES", "1") != "1":
        mistakes.note(ConfigError("NNODES: a run of compare takes one machine; leave it out, or set USE_RAY for many"))


def check_unmixed(trials: Sequence[Trial]) -> None:
    """Raise ConfigError where the directory of a trial holds another run: it is never overwritten, and never taken for this
    one."""
    mistakes = Mistakes()
    for trial in trials:
        if not trial.folder.is_dir() or not any(trial.folder.iterdir()):
            continue
        if trial.file.is_file():
            with mistakes.noting():
                _check_same(trial)
        else:
            mistakes.note(
                ConfigError(f"output_dir: {trial.folder} holds files of another command; choose another output_dir")
            )
    mistakes.settle()


def _check_same(trial: Trial) -> None:
    try:
        found = yaml.safe_load(trial.file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"output_dir: {trial.file} cannot be read ({error}); choose another output_dir") from None
    before, now = flat(found if isinstance(found, Mapping) else {}), flat(masked(trial.config()))
    for key in [*now, *before]:
        if before.get(key) != now.get(key) or (key in before) != (key in now):
            raise ConfigError(
                f"output_dir: {trial.folder} was made with {key}: {_said(before, key)}, and the file now says"
                f" {_said(now, key)}; choose another output_dir, or remove that run"
            )


def _said(keys: Mapping[str, Any], key: str) -> str:
    return str(keys[key]) if key in keys else _MISSING
