"""Tables in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from dataflex.reading.run import Run
from dataflex.report.tables import Table, comparison, overview, tables_of
from dataflex.report.words import visible


def show_runs(runs: Sequence[Run], console: Console) -> None:
    show_table(overview(runs), console)
    for run in runs:
        if len(runs) > 1:
            console.rule(visible(run.name), align="left", style="dim")
        for table in tables_of(run):
            show_table(table, console)
    if len(runs) > 1:
        console.rule("All runs", align="left", style="dim")
        for table in comparison(runs):
            show_table(table, console)


def show_table(table: Table, console: Console) -> None:
    """Figures to the right; a table that is wider than the terminal wraps its texts."""
    shown = RichTable(
        title=Text(visible(table.title)),
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    for index, name in enumerate(table.columns):
        text = not index or name in table.texts
        shown.add_column(visible(name), justify="left" if text else "right", overflow="fold", header_style="dim")
    for row in table.rows:
        shown.add_row(*(Text(visible(cell)) for cell in row))
    console.print(shown)
    if table.note:
        console.print(Text(visible(table.note), style="dim"))
    console.print()
