"""The file of a comparison: what varies, over which seeds, against which baseline, and what is kept equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic import ConfigDict, PositiveFloat

from dataflex.comparing.grids.axes import SET_HERE, Axis, cells_of, read_axes
from dataflex.comparing.grids.cells import Cell
from dataflex.config.files import CONFIG_SUFFIXES, read_file
from dataflex.errors import ConfigError, Mistakes, nearest
from dataflex.values import shown, words
from dataflex.values.validated import read_keys

SEEDS = (0, 1, 2)
Equal = Literal["steps", "tokens", "compute", "nothing"]
_BLOCKS = ("base", "vary", "baseline", "metrics")


@pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class GridKeys:
    """Keys of the file that hold a single value or a list."""

    output_dir: str = ""
    seeds: list[int] = field(default_factory=lambda: list(SEEDS))
    equal: Equal = "steps"
    budget: PositiveFloat | None = None
    share: bool = True


@dataclass(frozen=True)
class Grid:
    output_dir: Path
    axes: tuple[Axis, ...]
    cells: tuple[Cell, ...]
    seeds: tuple[int, ...]
    baseline: Mapping[str, str]
    """Variants by axis. Of every other axis, a cell is compared with the cell of the same variant."""
    equal: Equal
    budget: float | None
    """Seconds, or tokens; None: those of the dearest cell, or of the baseline."""
    metrics: tuple[str, ...]
    """Which figures are compared; none: all held-out losses."""
    share: bool
    """Whether runs begin with steps that they have in common, and take over what others have measured."""

    def baseline_of(self, cell: Cell) -> Cell:
        """The cell that `cell` is compared with; it may be the same one."""
        wanted = {**cell.choices, **self.baseline}
        return next(other for other in self.cells if other.choices == wanted)


def is_grid(raw: Mapping[str, Any]) -> bool:
    """Whether the keys are those of a comparison, not of a training."""
    return "vary" in raw


def read_grid(arguments: Sequence[str]) -> Grid:
    """arguments: `<file> [key=value ...]`. ConfigError with all mistakes of the file itself; those of its trainings are the
    task of `check_cells`."""
    raw = read_file(Path(arguments[0]), list(arguments[1:]))
    mistakes = Mistakes()
    if not is_grid(raw) and "base" not in raw:
        raise ConfigError(
            f"{arguments[0]}: vary is required, the keys that differ between runs; a file without it is for train"
        )
    beside = {key: value for key, value in raw.items() if key not in _BLOCKS}
    given = read_keys(GridKeys, beside, "", lambda path: path.lstrip("."), mistakes, _BLOCKS)
    keys = GridKeys(**given)
    if not keys.output_dir and "output_dir" not in mistakes.keys:
        mistakes.note(ConfigError("output_dir is required: the runs, and their comparison, are written below it"))
    _check_seeds(keys.seeds, mistakes)
    if keys.budget is not None and keys.equal not in ("tokens", "compute"):
        mistakes.note(ConfigError(f"budget has no effect with equal: {keys.equal}; use tokens or compute"))
    base = _base(raw.get("base"), mistakes)
    axes = read_axes(raw.get("vary"), mistakes)
    baseline = _baseline(raw.get("baseline"), axes, mistakes)
    metrics = _metrics(raw.get("metrics"), mistakes)
    cells = cells_of(base, axes, mistakes) if base is not None and axes else ()
    if len(cells) == 1:
        mistakes.note(ConfigError("vary gives a single combination, and there is nothing to compare it with"))
    mistakes.settle()
    # Seconds are compared there, so every run has to spend its own.
    share = keys.share and keys.equal != "compute"
    return Grid(
        Path(keys.output_dir), axes, cells, tuple(keys.seeds), baseline, keys.equal, keys.budget, tuple(metrics), share
    )


def _check_seeds(seeds: Sequence[int], mistakes: Mistakes) -> None:
    if not seeds:
        mistakes.note(ConfigError("seeds names no seed"))
    double = next((seed for seed in seeds if list(seeds).count(seed) > 1), None)
    if double is not None:
        mistakes.note(ConfigError(f"seeds: {double} is listed twice; equal seeds give equal runs"))
    outside = next((seed for seed in seeds if not 0 <= seed < 1 << 32), None)
    if outside is not None:
        mistakes.note(ConfigError(f"seeds must be in [0, 2^32), got {outside}"))


def _base(given: Any, mistakes: Mistakes) -> dict[str, Any] | None:
    """The keys of the training that all runs have in common, without those that compare sets."""
    found: Mapping[str, Any]
    if isinstance(given, str) and given.endswith(CONFIG_SUFFIXES):
        try:
            found = read_file(Path(given), [])
        except ConfigError as error:
            mistakes.note(ConfigError(f"base: {error}"))
            return None
    elif isinstance(given, Mapping) and given:
        found = given
    else:
        suffixes = ", ".join(CONFIG_SUFFIXES)
        mistakes.note(ConfigError(f"base must be a {suffixes} file of train, or its keys, got {shown(given)}"))
        return None
    if "vary" in found:
        mistakes.note(ConfigError("base has the key vary: it is a comparison itself; name a file of train"))
        return None
    if found.get("data_seed") is not None:
        mistakes.note(ConfigError("base.data_seed: the seeds of a comparison decide the data too; leave it out"))
    resume = found.get("resume_from_checkpoint")
    if resume and str(resume).lower() not in ("true", "false"):
        mistakes.note(
            ConfigError("base.resume_from_checkpoint: the runs of a comparison begin at step 0; leave it out")
        )
    return {str(k): v for k, v in found.items() if k not in SET_HERE}


def _baseline(given: Any, axes: Sequence[Axis], mistakes: Mistakes) -> dict[str, str]:
    """One variant of each axis that is named; by default the first variant of the first axis."""
    if given is None or not axes:
        return {axes[0].name: next(iter(axes[0].variants))} if axes else {}
    known = {axis.name: axis for axis in axes}
    if not isinstance(given, Mapping):
        first = f"{{{axes[0].name}: {next(iter(axes[0].variants))}}}"
        mistakes.note(ConfigError(f"baseline must name a variant by its axis, such as {first}, got {shown(given)}"))
        return {}
    found = {}
    for name, variant in given.items():
        axis, text = known.get(str(name)), "none" if variant is None else str(variant)
        if axis is None:
            mistakes.note(ConfigError(f"baseline.{name}: vary has no such axis{nearest(str(name), known)}"))
        elif text not in axis.variants:
            mistakes.note(ConfigError(f"baseline.{name}: {text!r} is no variant{nearest(text, axis.variants)}"))
        else:
            found[axis.name] = text
    return found


def _metrics(given: Any, mistakes: Mistakes) -> list[str]:
    if given is None:
        return []
    names = words(given)
    if not names or (isinstance(given, list) and len(names) < len(given)):
        mistakes.note(ConfigError(f"metrics must be a list of names, such as [loss], got {shown(given)}"))
    return names
