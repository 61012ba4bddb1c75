"""Errors a user can act on. The command line prints them as one line each, without a traceback."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class DataflexError(Exception):
    """Something went wrong while running; exit status 1."""

    exit_status = 1


class ConfigError(DataflexError):
    """The configuration cannot be run as written; exit status 2. The message names the key; of several mistakes, each has a
    line of its own."""

    exit_status = 2


class WriteError(DataflexError, OSError):
    """A file could not be written."""


class Mistakes:
    """Gathers what independent checks refuse, so that all of it is said at once."""

    def __init__(self) -> None:
        self._found: list[ConfigError] = []

    def __bool__(self) -> bool:
        return bool(self._found)

    @property
    def keys(self) -> set[str]:
        """The keys that are named so far."""
        return {_key(str(error)) for error in self._found}

    def note(self, error: ConfigError, *, once: bool = False) -> None:
        """Take in a mistake, or several, once each. once: not if another one of the same key is known."""
        lines = str(error).splitlines()
        for line in lines:
            if line not in map(str, self._found) and not (once and _key(line) in self.keys):
                self._found.append(error if len(lines) == 1 else ConfigError(line))

    @contextmanager
    def noting(self, *, once: bool = False) -> Iterator[None]:
        """A ConfigError inside ends the block and is noted; what follows the block goes on."""
        try:
            yield
        except ConfigError as error:
            self.note(error, once=once)

    def gather(self, refusals: Iterable[str], *, once: bool = False) -> None:
        """Note every message that a check yields, and the ConfigError that ends it, if one does."""
        with self.noting(once=once):
            for message in refusals:
                self.note(ConfigError(message), once=once)

    def settle(self) -> None:
        """Raise what was noted, if anything was."""
        if len(self._found) == 1:
            raise self._found[0]
        if self._found:
            raise ConfigError("\n".join(map(str, self._found))) from self._found[0]


def _key(message: str) -> str:
    """The key that a message begins with."""
    found = re.match(r"[^\s:]+", message)
    return found[0] if found else message


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
