"""`doremi`"""

from __future__ import annotations

from argparse import ArgumentParser

from dataflex.cli.parsing import examples
from dataflex.cli.running.launched import add_configuration, launch_or_explain


def configure(parser: ArgumentParser) -> None:
    parser.description = (
        "DoReMi in three trainings: a reference, a proxy that finds proportions, and the final model with these. What was"
        " finished is not trained again."
    )
    add_configuration(parser, "dataflex.doremi.steps=[proxy]")
    parser.epilog = examples("dataflex-cli doremi doremi.yaml")


def run(parser: ArgumentParser, arguments: list[str]) -> int:
    return launch_or_explain("doremi", parser, arguments)
