"""Errors a user can act on. The command line prints them as one line, without a traceback."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class DataflexError(Exception):
    """Something went wrong while running; exit status 1."""

    exit_status = 1


class ConfigError(DataflexError):
    """The configuration cannot be run as written; exit status 2. The message names the key."""

    exit_status = 2


class WriteError(DataflexError, OSError):
    """A file could not be written."""


def closest(word: str, choices: Iterable[str]) -> str:
    """A hint to append to an error: the one of `choices` that `word` may stand for, if there is one."""
    close = get_close_matches(word, sorted(set(choices)), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def nearest(word: str, choices: Iterable[str]) -> str:
    """A hint to append to an error: the closest of `choices` to `word`, else the whole list when it is short."""
    options = sorted(set(choices))
    hint = closest(word, options)
    if hint:
        return hint
    if options and len(options) <= 12:
        return f"; choose from {', '.join(options)}"
    return ""
