"""`schema`"""

from __future__ import annotations

import json
from argparse import ArgumentParser
from pathlib import Path

from dataflex import notices
from dataflex.cli.parsing import examples

_COMMANDS = ("train", "select", "doremi", "evaluate")


def configure(parser: ArgumentParser) -> None:
    parser.description = (
        "The JSON schema (draft 2020-12) of a configuration file, for editors and checks: LLaMA-Factory's keys, and the"
        " dataflex block with the parameters of every installed component."
    )
    parser.allow_abbrev = False
    parser.add_argument(
        "--for",
        dest="command",
        metavar="COMMAND",
        choices=_COMMANDS,
        default=_COMMANDS[0],
        help=f"the command that reads the file: {', '.join(_COMMANDS)} ({_COMMANDS[0]})",
    )
    parser.add_argument(
        "--output", metavar="FILE", type=Path, help="write the schema to a file, instead of printing it"
    )
    parser.epilog = examples(
        "dataflex-cli schema --output dataflex.schema.json",
        "dataflex-cli schema --for doremi --output doremi.schema.json",
    )


def run(parser: ArgumentParser, arguments: list[str]) -> int:
    options = parser.parse_args(arguments)

    from dataflex.base.commands.schema import schema
    from dataflex.writing import write_atomically

    text = json.dumps(schema(options.command), indent=1, ensure_ascii=False)
    if options.output is None:
        notices.show(text)
    else:
        write_atomically(options.output, f"{text}\n".encode())
    return 0
