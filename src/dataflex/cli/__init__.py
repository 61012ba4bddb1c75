"""The command line: which command is meant, and the exit status. What a command does stands in the file that `tree` names."""

from __future__ import annotations

import os
import signal
import sys

from dataflex import notices
from dataflex.base.processes import children
from dataflex.base.processes.stopping import exit_status, stoppable
from dataflex.cli.parsing import parser_of
from dataflex.cli.tree import COMMANDS, overview
from dataflex.errors import DataflexError, nearest

_HELP, _VERSION = ("help", "-h", "--help"), ("-v", "--version")


def main(arguments: list[str] | None = None) -> int:
    """Exit status of a command line, of this process if there are no arguments."""
    children.die_with_parent()
    argv = list(sys.argv[1:] if arguments is None else arguments)
    return stoppable(lambda: _run(argv), last=arguments is None)


def _run(argv: list[str]) -> int:
    name, rest = (argv[0], argv[1:]) if argv else ("help", [])
    if name in _HELP and not rest:
        notices.show(overview())
        return 0
    if name in _HELP:
        name, rest = rest[0], ["--help"]
    elif name in _VERSION:
        name, rest = "version", []
    if name not in COMMANDS:
        notices.error(f"unknown command {name!r}{nearest(name, COMMANDS)}")
        return 2
    command = COMMANDS[name]
    if command.has_levels:
        rest = notices.take_level(rest)
    try:
        return command.load().run(parser_of(command), rest)
    except DataflexError as error:
        notices.error(str(error))
        return error.exit_status
    except BrokenPipeError:  # of a command that prints: `head` has seen enough
        if command.has_levels:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes
        return exit_status(signal.SIGPIPE)
