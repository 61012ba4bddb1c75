"""`report`"""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from dataflex import notices
from dataflex.cli.parsing import examples
from dataflex.errors import ConfigError

if TYPE_CHECKING:
    from dataflex.reading import Run
    from dataflex.report.tables import Table


def configure(parser: ArgumentParser) -> None:
    parser.description = (
        "What runs have decided, served, learned and cost, from their files: tables in the terminal, or one page of HTML that"
        " needs no network. Runs may be finished, stopped or going on; several are set side by side."
    )
    parser.add_argument("out", nargs="+", metavar="OUT", help="an output_dir of train, select or doremi")
    parser.add_argument("--html", metavar="FILE", type=Path, help="write a page instead")
    parser.add_argument("--title", help="of the page (the names of the runs)")
    parser.add_argument(
        "--follow", action="store_true", help="show it again whenever a run has gone on, until all have ended"
    )
    parser.epilog = examples(
        "dataflex-cli report runs/rds", "dataflex-cli report runs/plain runs/rds --html report.html"
    )


def run(parser: ArgumentParser, arguments: list[str]) -> int:
    options = parser.parse_args(arguments)
    if options.html is not None and options.html.is_dir():
        raise ConfigError(f"--html: {options.html} is a directory; name a file")
    if options.html is not None:
        _written_by_us(options.html)

    from dataflex.reading import open_runs

    while True:
        runs = open_runs(options.out)
        before = [_stamps(each) for each in runs]  # before reading, so that no change is missed
        _show(runs, options)
        running = [each for each in runs if each.status == "running"]
        if not options.follow or not running:
            return 0
        _wait(runs, before, running)


def _show(runs: list[Run], options: Namespace) -> None:
    noise: Table | str = ""
    if len(runs) > 1:
        from dataflex.comparing.existing import over_seeds

        noise = over_seeds(runs)
    if options.html is None:
        from rich.console import Console

        from dataflex.report.terminal import show_runs

        console = Console(highlight=False)
        if options.follow and console.is_terminal:
            console.clear()
        show_runs(runs, console, noise)
        return
    from dataflex.report.page import page
    from dataflex.writing import write_atomically

    title = options.title or ", ".join(run.name for run in runs)
    write_atomically(options.html, page(runs, title, noise=noise).encode(errors="replace"))
    notices.say(f"written to {options.html}")


def _wait(runs: list[Run], before: list[list[tuple[int, int]]], running: list[Run]) -> None:
    """Until a file of a run has changed, or a run has ended, be it without a word. before: what `_stamps` gave of each."""
    from dataflex.locking import LOCK, holder_of

    while [_stamps(each) for each in runs] == before:
        holders = [holder_of(each.path / LOCK) for each in running]
        if any(holder is None or holder.gone() for holder in holders):
            return
        time.sleep(1.0)


def _stamps(run: Run) -> list[tuple[int, int]]:
    from dataflex.locking import LOCK

    found = []
    for path in (run.path / LOCK, run.log.path, run.folder / "ledger.jsonl"):
        try:
            stat = path.stat()
            found.append((stat.st_mtime_ns, stat.st_size))
        except OSError:
            found.append((0, 0))
    return found


def _written_by_us(path: Path) -> None:
    """Raise ConfigError if the file is there and is no page of ours."""
    if path.is_file() and b"by DataFlex" not in path.read_bytes()[: 1 << 20]:
        raise ConfigError(f"--html: {path} exists and is no report; name another file")
