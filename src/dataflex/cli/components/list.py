"""`list`"""

from __future__ import annotations

import json
from argparse import ArgumentParser
from dataclasses import fields
from typing import Any

from dataflex import notices
from dataflex.cli.parsing import examples

_FAMILIES = {"selectors": "select", "mixers": "mix", "weighters": "weight", "orders": "order"}
_SIGNALS = "signals"


def configure(parser: ArgumentParser) -> None:
    parser.description = (
        "One line for each component: its name, the most that measuring takes (none, text encoder, forward, forward and"
        " backward, generation), what a run must have for it, and what it does. Components of installed packages are marked."
    )
    parser.add_argument(
        "what",
        nargs="?",
        choices=(*_FAMILIES, _SIGNALS),
        help="one family, or the signals that a component may ask for",
    )
    parser.add_argument("--json", action="store_true", help="the same as a JSON list")
    parser.epilog = examples("dataflex-cli list", "dataflex-cli list mixers", "dataflex-cli list signals --json")


def run(parser: ArgumentParser, arguments: list[str]) -> int:
    options = parser.parse_args(arguments)
    if options.what == _SIGNALS:
        records = _signals()
        headings, columns = {"": records}, ["name", "written as", "families", "work", "value"]
    else:
        wanted = [options.what] if options.what else list(_FAMILIES)
        headings = {f"{name} (dataflex.{_FAMILIES[name]})": _components(_FAMILIES[name]) for name in wanted}
        records, columns = [r for group in headings.values() for r in group], ["name", "work", "needs", "summary"]
    if options.json:
        notices.show(json.dumps(records, indent=2))
    else:
        notices.show("\n\n".join(_table(heading, rows, columns) for heading, rows in headings.items()))
    return 0


def _components(family: str) -> list[dict[str, Any]]:
    from dataflex.cli.components.found import found_in
    from dataflex.errors import ConfigError

    records = []
    for found in found_in(family):
        record: dict[str, Any] = {"family": family, "name": found.name, "package": found.package}
        try:
            told = found.describe()
            record |= {"summary": told.summary, "work": told.work, "needs": list(told.needs)}
        except Exception as error:  # whatever a plug-in does: what else there is can still be listed
            if found.package is None:
                raise
            reason = str(error) if isinstance(error, ConfigError) else notices.first_line(error)
            record |= {"summary": reason, "work": "?", "needs": ["?"]}
        records.append(record)
    return records


def _signals() -> list[dict[str, Any]]:
    from dataflex.components.requests import REQUESTS

    records = []
    for kind in REQUESTS:
        if kind.slots:
            summary = " ".join((kind.__doc__ or "").split()).partition(". ")[0].removesuffix(".")
            written = kind.__name__ if fields(kind) else f'"{kind.name}"'  # type: ignore[arg-type]
            records.append(
                {
                    "name": kind.name,
                    "written as": written,
                    "families": list(kind.slots),
                    "work": kind.work,
                    "cost": kind.cost,
                    "value": summary,
                }
            )
    return records


def _table(heading: str, records: list[dict[str, Any]], columns: list[str]) -> str:
    rows = [[_cell(record, column) for column in columns] for record in records]
    rows.insert(0, [column.upper() for column in columns])
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([heading, *lines] if heading else lines)


def _cell(record: dict[str, Any], column: str) -> str:
    value = record[column]
    text = (", ".join(value) or "nothing") if isinstance(value, list) else str(value)
    marked = column == "summary" and record["package"]
    return f"{text} [plug-in: {record['package']}]" if marked else text
