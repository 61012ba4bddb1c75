"""`env`"""

from __future__ import annotations

from argparse import ArgumentParser

from dataflex import notices
from dataflex.cli.parsing import examples


def configure(parser: ArgumentParser) -> None:
    parser.description = (
        "Versions, devices, plug-ins and trackers of this installation, and where versions differ from those that the tests"
        " run on. It names no paths, no environment variables and no settings, so it can be pasted into a report."
    )
    parser.epilog = examples("dataflex-cli env", "dataflex-cli env > report.md")


def run(parser: ArgumentParser, arguments: list[str]) -> int:
    parser.parse_args(arguments)

    from dataflex.base.environment import PACKAGES, deviations, report

    pairs = report()
    others = [line for line in deviations() if line.partition(" ")[0] not in PACKAGES]
    if others:
        pairs.append(("others that differ", ", ".join(others)))
    width = max(len(name) for name, _ in pairs)
    notices.show("\n".join(["```", *(f"{name:<{width}}  {value}" for name, value in pairs), "```"]))
    return 0
