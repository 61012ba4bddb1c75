"""Where a run shows its lines and its one bar: a terminal, or a file that lines are appended to."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, Protocol, TextIO

# Seconds between two drawings of the bar. A drawing takes about a millisecond.
_REDRAW = 0.5
_NO_CURSOR = ("", "dumb", "unknown")


class Screen(Protocol):
    live: bool
    """Whether there is a bar."""
    width: int | None
    """Characters of a line; None: as many as it takes."""

    def write(self, text: str) -> int:
        """Whole lines; above the bar where there is one."""

    def flush(self) -> None: ...

    def show(self, head: str, done: int, total: int, tail: Callable[[], str]) -> None:
        """Draw the bar, unless it was drawn a moment ago. tail: gives what stands behind it."""

    def close(self) -> None:
        """Take the bar away."""


class File:
    """stream: a file, or a terminal on which nothing can be drawn."""

    live = False

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.width: int | None = None

    def write(self, text: str) -> int:
        return self.stream.write(text)

    def flush(self) -> None:
        self.stream.flush()

    def show(self, head: str, done: int, total: int, tail: Callable[[], str]) -> None:
        pass

    def close(self) -> None:
        pass


class Terminal:
    """One bar at the bottom, and lines above it."""

    live = True

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column

        class Visible(Console):
            def show_cursor(self, show: bool = True) -> bool:
                """A run that is killed would leave a terminal without a cursor."""
                return False

        self.stream, self.clock = stream, clock
        self.console = Visible(file=stream, force_terminal=True, highlight=False, markup=False, emoji=False)
        self.width: int | None = self.console.width - len("dataflex: ")
        self._bar = Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis")),
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=5)),
            TextColumn("{task.fields[tail]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=self.console, auto_refresh=False, transient=True, expand=True,
            redirect_stdout=False, redirect_stderr=False,
        )  # fmt: skip
        self._task: Any = None
        self._drawn = float("-inf")

    def write(self, text: str) -> int:
        if self._task is None:
            return self.stream.write(text)
        from rich.text import Text

        self.console.print(Text(text.rstrip("\n")), soft_wrap=True)
        return len(text)

    def flush(self) -> None:
        self.stream.flush()

    def show(self, head: str, done: int, total: int, tail: Callable[[], str]) -> None:
        now = self.clock()
        if now - self._drawn < _REDRAW:
            return
        self._drawn = now
        if self._task is None:
            self._task = self._bar.add_task(head, total=total, tail="")
            self._bar.start()
        self._bar.update(self._task, description=head, completed=done, total=total, tail=tail(), refresh=True)

    def close(self) -> None:
        if self._task is not None:
            self._bar.stop()
            self._bar.remove_task(self._task)
            self._task = None


def screen_for(stream: TextIO, *, bar: bool) -> Screen:
    """bar: whether one is wanted where it can be drawn."""
    draws = stream.isatty() and os.environ.get("TERM", "") not in _NO_CURSOR
    return Terminal(stream) if bar and draws else File(stream)


def clear_line(stream: TextIO) -> None:
    """Take away the bar of a process that was killed."""
    if stream.isatty() and os.environ.get("TERM", "") not in _NO_CURSOR:
        stream.write("\r\x1b[2K")
