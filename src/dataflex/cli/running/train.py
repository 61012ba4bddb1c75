"""`train`"""

from __future__ import annotations

from argparse import ArgumentParser

from dataflex.cli.parsing import examples
from dataflex.cli.running.launched import add_configuration, launch_or_explain


def configure(parser: ArgumentParser) -> None:
    parser.description = (
        "Train on LLaMA-Factory, with the selector, mixer, weighters and order of the dataflex block of a configuration. Without"
        " a block it is LLaMA-Factory's own run."
    )
    add_configuration(parser, "dataflex.mix.interval=20")
    parser.epilog = examples(
        "dataflex-cli train example.yaml",
        "dataflex-cli train example.yaml learning_rate=5e-5 dataflex.mix.interval=20",
        "FORCE_TORCHRUN=1 NPROC_PER_NODE=4 dataflex-cli train example.yaml",
    )


def run(parser: ArgumentParser, arguments: list[str]) -> int:
    return launch_or_explain("train", parser, arguments)
