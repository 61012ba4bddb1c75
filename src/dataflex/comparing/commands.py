"""`compare`: runs a grid, or looks at runs that are there, and says what differs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dataflex.base.processes.stopping import on_stop
from dataflex.comparing.existing import methods_of
from dataflex.comparing.fairness import fit
from dataflex.comparing.grids.cells import Cell, Trial, settings_that_differ
from dataflex.comparing.grids.checks import check_cells, check_unmixed
from dataflex.comparing.grids.grid import Grid
from dataflex.comparing.grids.running import Runs
from dataflex.comparing.results import output
from dataflex.comparing.results.comparison import Comparison, Method
from dataflex.comparing.results.figures import read_figures
from dataflex.errors import DataflexError
from dataflex.locking import alone_in
from dataflex.notices import say
from dataflex.reading.run import Run


def compare_grid(grid: Grid, runs: Runs, words: Sequence[str]) -> tuple[Comparison, bool]:
    """Train what is not done, and write the files of the comparison; whether all runs are done beside it. words: the command."""
    say(*check_cells(grid))
    on_stop(lambda: "stopped; the same command goes on")
    with alone_in(grid.output_dir):
        trials, failed = _trained(grid, runs)
        done = [trial for trial in trials if trial not in failed]
        comparison = Comparison(_methods(grid, done), grid.equal, grid.metrics)
        files = output.write(grid.output_dir, comparison, _named(done), words) if done else []
    if files:
        say(f"written: {', '.join(map(str, files))}")
    return comparison, not failed


def _trained(grid: Grid, runs: Runs) -> tuple[list[Trial], list[Trial]]:
    """All trials that are compared, and those that have failed."""
    steps: dict[str, int | None] = dict.fromkeys((cell.name for cell in grid.cells), None)
    if grid.equal in ("tokens", "compute"):
        first = [_trial(grid, cell, grid.seeds[0], None) for cell in grid.cells]
        check_unmixed(first)
        if failed := runs.run(first):
            names = ", ".join(trial.cell.name for trial in failed)
            raise DataflexError(
                f"equal: {grid.equal} needs one finished run of every cell, and that of {names} has failed"
            )
        measured = {trial.cell.name: found for trial in first if (found := read_figures(trial.folder)) is not None}
        fitted = fit(grid.equal, grid.budget, measured)
        steps |= fitted.steps
        unit = "tokens" if grid.equal == "tokens" else "seconds"
        told = ", ".join(f"{name} {steps[name] or measured[name].steps:,}" for name in steps)
        say(f"equal: {grid.equal}: {fitted.budget:,.4g} {unit} of each run; steps: {told}")
    trials = [_trial(grid, cell, seed, steps[cell.name]) for seed in grid.seeds for cell in grid.cells]
    check_unmixed(trials)
    return trials, runs.run(trials)


def _trial(grid: Grid, cell: Cell, seed: int, steps: int | None) -> Trial:
    return Trial(cell, seed, grid.output_dir, steps, counts_tokens=grid.equal == "tokens")


def planned(grid: Grid) -> list[Trial]:
    """The trials of a grid with the steps of the file."""
    return [_trial(grid, cell, seed, None) for seed in grid.seeds for cell in grid.cells]


def _methods(grid: Grid, trials: Sequence[Trial]) -> list[Method]:
    settings = settings_that_differ({cell.name: cell.keys for cell in grid.cells})
    methods = []
    for cell in grid.cells:
        own = {trial.seed: read_figures(trial.folder) for trial in trials if trial.cell is cell}
        runs = {seed: found for seed, found in own.items() if found is not None}
        methods.append(Method(cell.name, grid.baseline_of(cell).name, runs, grid.seeds, settings[cell.name]))
    return methods


def _named(trials: Sequence[Trial]) -> list[Run]:
    return [Run(trial.folder, trial.name) for trial in trials]


def compare_runs(
    paths: Sequence[Path], baseline: str | None, metrics: Sequence[str], out: Path | None, words: Sequence[str]
) -> Comparison:
    """Compare runs that are there. out: where to write the files; None writes none."""
    methods, runs = methods_of(paths, baseline)
    comparison = Comparison(methods, None, metrics)
    if out is not None:
        say(f"written: {', '.join(map(str, output.write(out, comparison, runs, words)))}")
    return comparison
