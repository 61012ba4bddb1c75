"""Everything a command says: one logger, one form, from rank 0.

Lines go to stderr as `dataflex: ...`, errors as `dataflex: error: ...`. What a command is asked for (`version`, the table of
`demo`) is its output and goes to stdout by `show`.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

LEVEL = "DATAFLEX_LOG_LEVEL"  # also read by the processes that a command starts
_QUIET, _VERBOSE = ("-q", "--quiet"), ("-v", "--verbose")

_logger = logging.getLogger("dataflex")


class _Handler(logging.StreamHandler[TextIO]):
    """Writes to `file`, or to what `sys.stderr` is at that moment."""

    file: Any = None

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = self.file or sys.stderr
        super().emit(record)


class _Form(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = "dataflex: error: " if record.levelno >= logging.ERROR else "dataflex: "
        return "\n".join(prefix + line for line in record.getMessage().splitlines())


def configure() -> None:
    """Set the level that the environment asks for."""
    level = logging.getLevelName(os.environ.get(LEVEL, "INFO").upper())
    _logger.setLevel(level if isinstance(level, int) else logging.INFO)


def take_level(arguments: list[str]) -> list[str]:
    """Set the level that `-q` or `-v` asks for, here and in processes to be started; the arguments without them."""
    if any(argument in _QUIET for argument in arguments):
        os.environ[LEVEL] = "ERROR"
    elif any(argument in _VERBOSE for argument in arguments):
        os.environ[LEVEL] = "DEBUG"
    configure()
    return [argument for argument in arguments if argument not in (*_QUIET, *_VERBOSE)]


def verbose() -> bool:
    """Whether the user has asked for details."""
    return _logger.isEnabledFor(logging.DEBUG)


def quiet() -> bool:
    """Whether the user wants errors alone."""
    return not _logger.isEnabledFor(logging.INFO)


def say(*lines: str) -> None:
    """Tell the user, once for all ranks."""
    _from_rank_0(logging.INFO, lines)


def detail(*lines: str) -> None:
    """Tell a user who has asked for details (`-v`), once for all ranks."""
    _from_rank_0(logging.DEBUG, lines)


def error(text: str) -> None:
    """An error, one line for each of its lines, from this rank."""
    _logger.error("%s", text)


def tell(line: str) -> None:
    """Tell the user, from this rank."""
    _logger.info("%s", line)


def show(text: str) -> None:
    """The output that a command is asked for."""
    print(text, flush=True)


def program() -> str:
    """How the user starts this command again: by its path, where a shell does not find it by its name."""
    started = Path(sys.argv[0])
    if started.name in ("dataflex-cli", "dataflex") and shutil.which(started.name) is None:
        return str(started)
    return "dataflex-cli"


@contextmanager
def into(file: Any) -> Iterator[None]:
    """Write to `file` meanwhile, which has `write` and `flush`."""
    before, _handler.file = _handler.file, file
    try:
        yield
    finally:
        _handler.file = before


def redirected() -> bool:
    """Whether lines go elsewhere than to stderr."""
    return _handler.file is not None


class Once:
    """Says every line a single time."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def say(self, line: str) -> None:
        if line not in self._said:
            say(line)
        self._said.add(line)


def first_line(error: BaseException) -> str:
    """The kind of an error and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def rank_label() -> str:
    """This rank and its machine, for people."""
    return f"rank {os.environ.get('RANK', '0')} ({socket.gethostname()})"


def _from_rank_0(level: int, lines: tuple[str, ...]) -> None:
    if os.getenv("RANK", "0") == "0":
        for line in lines:
            _logger.log(level, "%s", line)


_handler = _Handler()
_handler.setFormatter(_Form())
_logger.addHandler(_handler)
_logger.propagate = False
configure()
