"""`version`"""

from __future__ import annotations

from argparse import ArgumentParser

from dataflex import notices
from dataflex.version import __version__


def configure(parser: ArgumentParser) -> None:
    parser.description = "Print the installed version."


def run(parser: ArgumentParser, arguments: list[str]) -> int:
    parser.parse_args(arguments)
    notices.show(f"dataflex {__version__}")
    return 0
