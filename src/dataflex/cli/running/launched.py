"""What train, select and doremi have in common: a configuration file, and keys that override what it says."""

from __future__ import annotations

import sys
from argparse import ArgumentParser


def add_configuration(parser: ArgumentParser, values: str = "max_steps=100") -> None:
    """The arguments, as they are shown. They are read by the loader of configurations, which knows the keys."""
    parser.usage = f"{parser.prog} CONFIG [key=value ...]"
    parser.add_argument("config", metavar="CONFIG", help="a .yaml, .yml or .json file")
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        help=f"keys that win over the file, with dots into a block ({values}). LLaMA-Factory's `--key value` works too, also"
        " without a file",
    )


def launch_or_explain(command: str, parser: ArgumentParser, arguments: list[str]) -> int:
    """Run a command; its help where it is asked for; the usage on stderr and 2 where there is nothing to run."""
    if not arguments:
        parser.print_usage(sys.stderr)
        return 2
    if arguments[0] in ("-h", "--help"):
        parser.print_help()
        return 0
    from dataflex.base.launching.launch import launch

    return launch(command, arguments)
