"""`compare`"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from dataflex import notices
from dataflex.cli.parsing import examples
from dataflex.errors import ConfigError

if TYPE_CHECKING:
    from dataflex.comparing.results.comparison import Comparison

_OF_A_GRID, _OF_RUNS = ("jobs", "gpus", "dry_run"), ("baseline", "metrics", "out")


def configure(parser: ArgumentParser) -> None:
    parser.description = (
        "Say which method helped, by how much, and what is noise. With a file: train every combination of what varies, with"
        " several seeds, and compare. With directories: compare runs that are finished. The same command goes on where it was"
        " stopped."
    )
    parser.add_argument(
        "what",
        metavar="GRID_OR_RUN",
        nargs="+",
        help="a .yaml or .json file with `vary`, and key=value; or the output_dirs of finished runs",
    )
    parser.add_argument("--jobs", type=int, metavar="N", help="runs side by side (1)")
    parser.add_argument("--gpus", type=int, metavar="K", help="GPUs of each run (all that are visible)")
    parser.add_argument("--dry-run", action="store_true", help="show the runs and what differs, and start nothing")
    parser.add_argument("--baseline", metavar="METHOD", help="of runs: what the others are compared with (the first)")
    parser.add_argument("--metrics", metavar="NAME,...", help="of runs: what is compared (held-out losses)")
    parser.add_argument("--out", metavar="DIR", type=Path, help="of runs: write comparison.json, RESULTS.md and a page")
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    parser.epilog = examples(
        "dataflex-cli compare grid.yaml --dry-run",
        "dataflex-cli compare grid.yaml --jobs 2",
        "dataflex-cli compare runs/plain-0 runs/plain-1 runs/rds-0 runs/rds-1",
    )


def run(parser: ArgumentParser, arguments: list[str]) -> int:
    options = parser.parse_args(arguments)
    for name in ("jobs", "gpus"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise ConfigError(f"--{name} must be at least 1, not {getattr(options, name)}")

    from dataflex.config.files import CONFIG_SUFFIXES

    of_grid = options.what[0].endswith(CONFIG_SUFFIXES)
    for name in _OF_RUNS if of_grid else _OF_A_GRID:
        if getattr(options, name):
            kind = "finished runs; the file of a grid has its own keys" if of_grid else "the file of a grid"
            raise ConfigError(f"--{name.replace('_', '-')} is for {kind}")
    words = ["dataflex-cli", "compare", *arguments]
    if not of_grid:
        from dataflex.comparing.commands import compare_runs
        from dataflex.values import words as names_in

        paths = [Path(path) for path in options.what]
        _show(compare_runs(paths, options.baseline, names_in(options.metrics), options.out, words), options)
        return 0
    from dataflex.comparing.commands import compare_grid
    from dataflex.comparing.grids.grid import read_grid
    from dataflex.comparing.grids.running import Runs

    grid = read_grid(options.what)
    runs = Runs(grid.output_dir, options.jobs or 1, options.gpus, share=grid.share)
    if options.dry_run:
        from dataflex.comparing.preview import show_plan

        show_plan(grid, runs, as_json=options.json)
        return 0
    comparison, whole = compare_grid(grid, runs, words)
    _show(comparison, options)
    return 0 if whole else 1


def _show(comparison: Comparison, options: Namespace) -> None:
    if options.json:
        notices.show(json.dumps(comparison.to_json(), indent=2, default=str))
        return
    from rich.console import Console

    from dataflex.comparing.results.tables import tables_of
    from dataflex.report.terminal import show_table

    console = Console(highlight=False, file=sys.stdout)
    for table in tables_of(comparison):
        show_table(table, console)
    notices.say(*comparison.remarks())
