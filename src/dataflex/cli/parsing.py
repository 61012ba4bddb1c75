"""Parsers: one for each command, with errors in the form of all others."""

from __future__ import annotations

import argparse
import sys
import textwrap
from typing import NoReturn

from dataflex import notices
from dataflex.cli.tree import Command

PROGRAM = "dataflex-cli"
_WIDTH = 100
OPTIONS_OF_LEVEL = (
    ("-q", "--quiet", "errors only"),
    ("-v", "--verbose", "also what the libraries print, and where an error comes from"),
)


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        notices.error(message)
        sys.exit(2)


def parser_of(command: Command, parser: argparse.ArgumentParser | None = None) -> argparse.ArgumentParser:
    """The parser of a command. parser: one to be filled in, of a tree of commands."""
    parser = parser or Parser(prog=f"{PROGRAM} {command.name}")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    command.load().configure(parser)
    parser.description = textwrap.fill(parser.description or "", _WIDTH)
    if command.has_levels:
        for short, long, meaning in OPTIONS_OF_LEVEL:  # taken from the line before it is parsed
            parser.add_argument(short, long, action="store_true", help=meaning)
    return parser


def examples(*lines: str) -> str:
    """An epilog. lines: command lines, or what they are for where they begin with #."""
    return "examples:\n" + "\n".join(f"  {line}" for line in lines)
