"""`evaluate`"""

from __future__ import annotations

from argparse import ArgumentParser

from dataflex.cli.parsing import examples
from dataflex.cli.running.launched import add_configuration, launch_or_explain


def configure(parser: ArgumentParser) -> None:
    parser.description = (
        "Judge a finished model: loss, perplexity and bits per byte of held-out answers, multiple choice by the likelihood of"
        " the options, exact match of generated answers. `evaluate` in the file, or in its dataflex block, says by which data"
        " sets. The figures are written to dataflex/evaluation.json of output_dir."
    )
    add_configuration(parser, "evaluate.limit=100")
    parser.epilog = examples(
        "dataflex-cli evaluate evaluate.yaml",
        "dataflex-cli evaluate train.yaml model_name_or_path=runs/full output_dir=runs/full",
        "dataflex-cli evaluate train.yaml adapter_name_or_path=runs/lora output_dir=runs/lora",
    )


def run(parser: ArgumentParser, arguments: list[str]) -> int:
    return launch_or_explain("evaluate", parser, arguments)
