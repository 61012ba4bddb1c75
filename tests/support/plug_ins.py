"""Packages that are found as if they were installed."""

from __future__ import annotations

import os
from pathlib import Path

from harness import TESTS

_SELECTOR = '''
from dataclasses import dataclass
from dataflex import Selection, Selector

@dataclass(frozen=True, kw_only=True)
class Last(Selector):
    """The last rows. They are in the order of the data.

    Departures:

    It has no authors.
    """

    wanted: str
    """A parameter without a default."""
    share: float = 0.5

    def check(self):
        self.require("share", 0 < self.share <= 1, "in (0, 1]")

    def select(self, state, signals, context):
        return Selection(list(range(context.rows))[-context.budget:]), state
'''


def install(folder: Path, name: str, version: str, entry_points: str = "") -> None:
    """A package without files below a folder of the Python path."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(entry_points)


def path_with(folder: Path) -> str:
    """PYTHONPATH of a command that finds it."""
    return os.pathsep.join([str(folder), str(TESTS.parent / "src")])


def plug_in(folder: Path) -> str:
    """A package with a selector `last`, one with a selector that cannot be imported, and one that wants to be `rds`;
    PYTHONPATH of a command that finds them."""
    (folder / "last_rows.py").write_text(_SELECTOR)
    (folder / "broken_rows.py").write_text("import a_package_that_is_not_there\n")
    install(folder, "last-rows", "1.2", "[dataflex.selectors]\nlast = last_rows:Last\nrds = last_rows:Last\n")
    install(folder, "broken-rows", "0.1", "[dataflex.selectors]\nbroken = broken_rows:Broken\n")
    return path_with(folder)
