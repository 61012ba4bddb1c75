"""`select`"""

from __future__ import annotations

from argparse import ArgumentParser

from dataflex.cli.parsing import examples
from dataflex.cli.running.launched import add_configuration, launch_or_explain


def configure(parser: ArgumentParser) -> None:
    parser.description = (
        "Ask the selector of a configuration once, with the model as it is, and write what it takes as data sets that"
        " LLaMA-Factory reads. `offline` in the dataflex block says how much."
    )
    add_configuration(parser, "dataflex.offline.budget=1000")
    parser.epilog = examples(
        "dataflex-cli select select.yaml",
        "dataflex-cli select select.yaml dataflex.offline.budget=1000",
    )


def run(parser: ArgumentParser, arguments: list[str]) -> int:
    return launch_or_explain("select", parser, arguments)
