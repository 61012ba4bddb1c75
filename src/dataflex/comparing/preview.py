"""What a grid will run: names, steps, what differs, what is done. Nothing is started."""

from __future__ import annotations

import json

from dataflex import notices
from dataflex.comparing.commands import planned
from dataflex.comparing.grids.cells import settings_that_differ
from dataflex.comparing.grids.checks import check_cells, check_unmixed
from dataflex.comparing.grids.grid import Grid
from dataflex.comparing.grids.running import Runs
from dataflex.config import parse
from dataflex.forecast.run import Forecast
from dataflex.report.tables import Table
from dataflex.report.words import NONE, count


def show_plan(grid: Grid, runs: Runs, *, as_json: bool) -> None:
    """ConfigError as before a run."""
    lines = check_cells(grid)
    trials = planned(grid)
    check_unmixed(trials)
    settings = settings_that_differ({cell.name: cell.keys for cell in grid.cells})
    steps = {}
    for trial in trials[: len(grid.cells)]:
        keys = trial.config()
        steps[trial.cell.name] = Forecast(parse(keys), keys.get("dataflex") or {}).steps
    done = runs.done(trials)
    record = [
        {
            "run": trial.name,
            "folder": str(trial.folder),
            "steps": steps[trial.cell.name],
            "done": trial in done,
            "baseline": grid.baseline_of(trial.cell).name,
            "settings": settings[trial.cell.name],
        }
        for trial in trials
    ]
    notices.say(*lines)
    if as_json:
        notices.show(json.dumps({"equal": grid.equal, "runs": record}, indent=2, default=str))
        return
    from rich.console import Console

    from dataflex.report.terminal import show_table

    differ = list(dict.fromkeys(key for own in settings.values() for key in own))
    rows = [
        (
            trial.name,
            count(steps[trial.cell.name]),
            "done" if trial in done else "to do",
            *(str(settings[trial.cell.name].get(key, NONE)) for key in differ),
        )
        for trial in trials
    ]
    note = (
        "" if grid.equal in ("steps", "nothing") else f"Steps of the file; equal: {grid.equal} fits them to the runs."
    )
    table = Table("Runs", ("run", "steps", "state", *differ), rows, note, frozenset({"state", *differ}))
    show_table(table, Console(highlight=False))
