"""Comparing runs that are there: grouped by what differs in their configurations, and paired by seed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from dataflex.comparing.grids.cells import beside, settings_that_differ
from dataflex.comparing.grids.running import RECORD
from dataflex.comparing.results.comparison import Comparison, Method
from dataflex.comparing.results.figures import RESULTS, Figures, chosen, figures_of
from dataflex.comparing.results.statistics import ONE_SEED
from dataflex.comparing.results.tables import tables_of
from dataflex.errors import ConfigError, Mistakes, nearest
from dataflex.masking import masked
from dataflex.reading.run import Run, open_runs
from dataflex.report.tables import Table, does

_SEED = 42  # of transformers, where a file names none
# Keys in which runs of one method may differ.
_OF_A_RUN = (
    "seed", "data_seed", "output_dir", "run_name", "logging_dir", "overwrite_output_dir", "resume_from_checkpoint",
)  # fmt: skip
_ENDS_IN_SEED = re.compile(r"^(.*?)[-_.]?(?:seed)?[-_]?(\d+)$")


def methods_of(paths: Sequence[Path], baseline: str | None) -> tuple[list[Method], list[Run]]:
    """The methods that some runs are of, and the runs. baseline: the name of a method; None: that of the first run.

    ConfigError for a run that is not finished, one whose method or seed is not known, and two of one method with one seed."""
    runs = open_runs(_expanded(paths))
    mistakes, figures = Mistakes(), dict[Path, Figures]()
    for run in runs:
        with mistakes.noting():
            found = figures_of(run)
            if found is None:
                raise ConfigError(f"{run.path}: there is no {RESULTS}, so the run is not finished")
            figures[run.path] = found
    mistakes.settle()
    groups = _grouped(runs)
    if len(groups) == 1:
        raise ConfigError("these runs differ in nothing but their seeds, so there are no methods to compare")
    if baseline is not None and baseline not in groups:
        raise ConfigError(f"--baseline: there is no method {baseline!r}{nearest(baseline, groups)}")
    return _methods(groups, figures, baseline if baseline is not None else next(iter(groups))), runs


def over_seeds(runs: Sequence[Run]) -> Table | str:
    """What is noise in the difference of several runs, those that are finished: the table of `compare` over all their data sets
    where a method has several seeds, else a sentence. Empty: there is nothing to compare."""
    figures = {run.path: found for run in runs if (found := figures_of(run)) is not None}
    done = [run for run in runs if run.path in figures]
    if sum(any(chosen(list(found.metrics), ())) for found in figures.values()) < 2:
        return ""
    try:
        groups = _grouped(done)
    except ConfigError as error:
        return f"Not compared over seeds: {str(error).splitlines()[0]}"
    if all(len(own) == 1 for own in groups.values()):
        return f"{ONE_SEED.capitalize()}; dataflex-cli compare GRID.yaml trains several, and says what is noise."
    comparison = Comparison(_methods(groups, figures, next(iter(groups))), None)
    table = next(tables_of(comparison))
    note = f"{table.note} dataflex-cli compare with these directories has every data set."
    return replace(table, title=f"Over seeds: {table.title[0].lower()}{table.title[1:]}", note=note)


def _methods(
    groups: Mapping[str, Mapping[int, tuple[Run, dict[str, Any]]]], figures: Mapping[Path, Figures], base: str
) -> list[Method]:
    """base: the method that the others are compared with."""
    settings = settings_that_differ({name: next(iter(own.values()))[1] for name, own in groups.items()})
    seeds = tuple(sorted({seed for own in groups.values() for seed in own}))
    return [
        Method(name, base, {seed: figures[run.path] for seed, (run, _) in sorted(own.items())}, seeds, settings[name])
        for name, own in groups.items()
    ]


def _expanded(paths: Sequence[Path]) -> list[Path]:
    """The output directory of a comparison stands for its runs."""
    found: list[Path] = []
    for path in paths:
        try:
            found += [path / name for name in json.loads((path / RECORD).read_text(encoding="utf-8"))]
        except (OSError, ValueError):
            found.append(path)
    return found


def _grouped(runs: Sequence[Run]) -> dict[str, dict[int, tuple[Run, dict[str, Any]]]]:
    """By method and seed, the runs and their configurations without the keys of a single run."""
    configs = {run.path: _written(run) for run in runs}
    if any(config is None for config in configs.values()):
        configs = {run.path: _recorded(run) for run in runs}
    by_content: dict[str, list[tuple[int, Run, dict[str, Any]]]] = {}
    mistakes = Mistakes()
    for run in runs:
        config = configs[run.path]
        with mistakes.noting():
            seed, stem = (int(config.get("seed") or _SEED), "") if config is not None else _from_name(run)
            keys = {k: v for k, v in (config or {}).items() if k not in _OF_A_RUN}
            content = stem or json.dumps(keys, sort_keys=True, default=str)
            by_content.setdefault(content, []).append((seed, run, keys))
    mistakes.settle()
    names = _names({content: [run for _, run, _ in found] for content, found in by_content.items()}, by_content)
    groups: dict[str, dict[int, tuple[Run, dict[str, Any]]]] = {}
    for content, found in by_content.items():
        own = groups.setdefault(names[content], {})
        for seed, run, keys in found:
            if seed in own:
                mistakes.note(
                    ConfigError(f"{run.path} and {own[seed][0].path} are runs of one method with one seed ({seed})")
                )
            own[seed] = run, keys
    mistakes.settle()
    return groups


def _names(
    runs: Mapping[str, Sequence[Run]], found: Mapping[str, list[tuple[int, Run, dict[str, Any]]]]
) -> dict[str, str]:
    """Of each group: its directory, its components, the name of its first run without a seed, or the settings that only it has,
    whichever tells the groups apart."""
    folders = {content: {run.path.parent.name for run in own} for content, own in runs.items()}
    if all(len(names) == 1 for names in folders.values()):
        ways = [{content: next(iter(names)) for content, names in folders.items()}]
    else:
        ways = []
    ways.append({content: content if not own[0].record else does(own[0]) for content, own in runs.items()})
    ways.append({content: _without_seed(own) for content, own in runs.items()})
    for names in ways:
        if len(set(names.values())) == len(names) and not any(name.startswith("{") for name in names.values()):
            return names
    settings = settings_that_differ({content: own[0][2] for content, own in found.items()})
    return {
        content: ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in settings[content].items())
        or "the rest"
        for content in found
    }


def _without_seed(runs: Sequence[Run]) -> str:
    """The name of the first directory of a method; of several without the number in which it ends."""
    name = runs[0].path.name
    found = _ENDS_IN_SEED.match(name) if len(runs) > 1 else None
    return found[1] if found is not None and found[1] else name


def _written(run: Run) -> dict[str, Any] | None:
    """The configuration that a comparison has written beside a run."""
    try:
        found = yaml.safe_load(beside(run.path, ".yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return found if isinstance(found, dict) and str(found.get("output_dir")).endswith(run.path.name) else None


def _recorded(run: Run) -> dict[str, Any] | None:
    """What a run with a block has recorded; without one there is no record."""
    if not run.record:
        return None
    return {**masked(run.record.get("llamafactory") or {}), "dataflex": run.block}


def _from_name(run: Run) -> tuple[int, str]:
    """Seed and method of a run without a record, by its directory, such as plain-0."""
    found = _ENDS_IN_SEED.match(run.path.name)
    if found is None or not found[1]:
        raise ConfigError(
            f"{run.path}: a run without a dataflex block keeps no configuration; let its directory end in the seed, such as"
            f" {run.path.name}-0"
        )
    return int(found[2]), found[1]
