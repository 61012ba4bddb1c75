"""`<output_dir>/dataflex/run.log`: what LLaMA-Factory, transformers and the other libraries print while a run goes on."""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from dataflex.notices import say
from dataflex.version import __version__

DIRECTORY = "dataflex"


def log_path(output_dir: Path, rank: int) -> Path:
    """Every rank has a file of its own, the first one `run.log`."""
    return output_dir / DIRECTORY / ("run.log" if rank == 0 else f"run.rank{rank}.log")


class RunLog:
    """Appends whole lines, below one that says when this was. What cannot be written is lost, and the run goes on.

    hide: takes secrets out of a text."""

    def __init__(self, path: Path, hide: Callable[[str], str] = str) -> None:
        self.path, self.hide, self._broken = path, hide, False
        self._file: TextIO | None = None
        self._lock = threading.Lock()
        self.began: int | None = None
        """Bytes that were there before; None while nothing is written."""

    def write(self, lines: str) -> None:
        with self._lock, suppress(OSError, ValueError):
            file = self._opened()
            if file is not None:
                file.write(self.hide(lines))

    def fileno(self) -> int:
        file = self._opened()
        if file is None:
            raise io.UnsupportedOperation("fileno")
        return file.fileno()

    def discard(self) -> None:
        """Leave the file as it was before: the run was refused, and one line says why."""
        self.close()
        if self.began is None:
            return
        with suppress(OSError):
            if self.began:
                os.truncate(self.path, self.began)
            else:
                self.path.unlink()
                self.path.parent.rmdir()

    def close(self) -> None:
        with self._lock, suppress(OSError):
            if self._file is not None:
                self._file.close()
        self._file, self._broken = None, True

    def _opened(self) -> TextIO | None:
        if self._file is None and not self._broken:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                file = self.path.open("a", encoding="utf-8", errors="replace", buffering=1)
                self._file, self.began = file, file.tell()
                began = datetime.now().astimezone().isoformat(timespec="seconds")
                file.write(f"==== dataflex {__version__}, process {os.getpid()}, {began} ====\n")
            except OSError:
                self._broken = True
        return self._file


class Diverted(io.TextIOBase):
    """In the place of a stream: its whole lines go to `log`, and to `also` as they would have come. Of a line that is written
    over by carriage returns, as progress bars do it, the last state stays. Once `log` is closed, to the stream itself."""

    def __init__(self, stream: TextIO, log: RunLog, also: Callable[[str], Any] | None) -> None:
        self.stream, self.log, self.also = stream, log, also
        self.open, self._begun = True, ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.stream.encoding or "utf-8"

    @property
    def buffer(self) -> Any:
        """For those who write bytes: past the log."""
        return self.stream.buffer

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.log.fileno() if self.open else self.stream.fileno()

    def write(self, text: str) -> int:
        if not self.open:
            return self.stream.write(text)
        whole, newline, rest = (self._begun + text).rpartition("\n")
        self._begun = _last_state(rest)
        if newline:
            lines = "".join(f"{_last_state(line)}\n" for line in whole.split("\n"))
            self.log.write(lines)
            if self.also is not None:
                self.also(lines)
        return len(text)

    def flush(self) -> None:
        if not self.open:
            self.stream.flush()

    def end(self) -> None:
        """Give up the place; what is left of a line is written."""
        if self._begun:
            self.write("\n")
        self.open = False


def _last_state(line: str) -> str:
    """What a terminal would show of a line."""
    if "\r" not in line:
        return line
    return next((part for part in reversed(line.split("\r")) if part.strip()), "")


@contextmanager
def diverted(log: RunLog, terminal: Any, *, verbose: Callable[[TextIO], Callable[[str], Any]] | None) -> Iterator[None]:
    """Send what is printed, or logged to a stream, into `log`. Errors that a library logs go to `terminal` too. terminal: has
    `write` and `flush`. verbose: gives for a stream what else takes its lines; None: nothing."""
    before = sys.stdout, sys.stderr
    streams = [Diverted(s, log, None if verbose is None else verbose(s)) for s in before]
    errors: list[tuple[logging.Logger, logging.Handler]] = []
    moved: list[tuple[Any, Any, Diverted]] = []
    for logger, handler, place in _handlers_on(streams):
        moved.append((handler, handler.stream, place))
        handler.stream = place
        if verbose is None:
            shown = logging.StreamHandler(terminal)
            shown.setLevel(logging.ERROR)
            shown.setFormatter(handler.formatter)
            logger.addHandler(shown)
            errors.append((logger, shown))
    sys.stdout, sys.stderr = streams  # type: ignore[assignment]
    try:
        with _stdout_of_libraries_in(log) if verbose is None else nullcontext():
            yield
    finally:
        sys.stdout, sys.stderr = before
        for moved_handler, stream, place in moved:
            if moved_handler.stream is place:
                moved_handler.stream = stream
        for logger, shown_handler in errors:
            logger.removeHandler(shown_handler)
        for place in streams:
            place.end()
        log.close()


@contextmanager
def _stdout_of_libraries_in(log: RunLog) -> Iterator[None]:
    """What is printed past Python (gloo greets its peers). Stderr stays: a process that crashes has its last words there."""
    try:
        kept, to = os.dup(1), log.fileno()
    except OSError:
        yield
        return
    os.dup2(to, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _handlers_on(places: list[Diverted]) -> list[tuple[logging.Logger, Any, Diverted]]:
    """Handlers that write to the process's own output, each with its new place. Our own keep to the terminal, and those that look
    up `sys.stderr` each time need no change."""
    numbers = dict(enumerate(places, start=1))
    numbers |= {_number(place.stream, number): place for number, place in enumerate(places, start=1)}
    loggers = [logging.root, *(g for g in logging.root.manager.loggerDict.values() if isinstance(g, logging.Logger))]
    found = []
    for logger in loggers:
        for handler in logger.handlers if logger.name != "dataflex" else ():
            if isinstance(handler, logging.StreamHandler) and "stream" in vars(handler):
                place = numbers.get(_number(handler.stream, 0))
                if place is not None:
                    found.append((logger, handler, place))
    return found


def _number(stream: Any, otherwise: int) -> int:
    try:
        return int(stream.fileno())
    except (AttributeError, OSError, ValueError):
        return otherwise


@dataclass
class _Watched:
    path: Path | None = None
    size: int = 0


_watched = _Watched()


def watch(output_dir: Path) -> None:
    """Note how long the log is, for `say_where_more_is`."""
    path = log_path(output_dir, 0)
    _watched.path, _watched.size = path, _size(path)


def say_where_more_is() -> None:
    """Name the log if it has grown since `watch`."""
    if _watched.path is not None and _size(_watched.path) > _watched.size:
        say(f"{_watched.path} has more")


def say_after_traceback() -> None:
    """The same below the traceback that ends this process."""
    before = sys.excepthook

    def show(*error: Any) -> None:
        before(*error)
        say_where_more_is()

    sys.excepthook = show


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
