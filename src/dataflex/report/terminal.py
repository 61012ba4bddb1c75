"""Tables in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from dataflex.reading.run import Run
from dataflex.report.tables import Table, differences, overview, settings_table, tables_of
from dataflex.report.words import NONE, visible

TEXT = "text"
"""The column of rows' texts."""
_WIDE = 120
"""Columns of a terminal that shows texts beside figures."""
_GAP, _TEXT_LEAST = 2, 20


def show_runs(runs: Sequence[Run], console: Console, noise: Table | str = "") -> None:
    """noise: as of `differences`."""
    show_table(overview(runs), console)
    for run in runs:
        if len(runs) > 1:
            console.rule(visible(run.name), align="left", style="dim")
        for table in tables_of(run):
            show_table(table, console)
    if len(runs) > 1:
        console.rule("All runs", align="left", style="dim")
        for found in (*differences(runs, noise), settings_table(runs)):
            if found is not None and found.rows:
                show_table(found, console)


def show_table(table: Table, console: Console) -> None:
    """Figures to the right. Names and figures stay whole, headings and texts wrap. Columns that say nothing are left out. On a
    narrow terminal columns that have no room follow in a second part, and the texts of rows after them, one line each."""
    kept = [k for k in range(1, len(table.columns)) if any(row[k] != NONE for row in table.rows)]
    below = table.columns.index(TEXT) if TEXT in table.columns and console.width < _WIDE else None
    title = table.title
    for part in _parts(table, [k for k in kept if k != below], console.width):
        console.print(_part(table, part, title))
        title = ""
    if below is not None:
        console.print()
        for row in table.rows:
            line = Text(f"{visible(row[0])}  {visible(row[below])}")
            console.print(line, no_wrap="\n" not in line.plain, overflow="ellipsis")
    if table.note:
        console.print(Text(visible(table.note), style="dim"))
    console.print()


def _parts(table: Table, columns: Sequence[int], width: int) -> list[list[tuple[int, int]]]:
    """Columns side by side, each with its width, and the first one of the table in each part."""
    for heading_wraps in (False, True):
        widths = {k: _width(table, k, heading_wraps) + _GAP for k in (0, *columns)}
        if sum(widths.values()) <= width:
            break
    parts, left = [[0]], width - widths[0]
    for k in columns:
        if widths[k] > left and len(parts[-1]) > 1:
            parts.append([0])
            left = width - widths[0]
        parts[-1].append(k)
        left -= widths[k]
    return [[(k, widths[k] - _GAP) for k in part] for part in parts]


def _width(table: Table, k: int, heading_wraps: bool) -> int:
    """Characters that a column needs; texts wrap where that is too much."""
    heading = visible(table.columns[k])
    longest = max((len(visible(row[k])) for row in table.rows), default=0)
    if table.columns[k] in table.texts:
        longest = min(longest, _TEXT_LEAST)
    return max(longest, *map(len, heading.split() if heading_wraps else [heading]), 0)


def _part(table: Table, columns: Sequence[tuple[int, int]], title: str) -> RichTable:
    shown = RichTable(
        title=Text(visible(title)) if title else None,
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, _GAP, 0, 0),
    )
    for k, width in columns:
        name = table.columns[k]
        text = name in table.texts
        shown.add_column(
            visible(name),
            justify="left" if not k or text else "right",
            overflow="fold",
            width=None if text else width,
            header_style="dim",
        )
    for row in table.rows:
        shown.add_row(*(Text(visible(row[k])) for k, _ in columns))
    return shown
