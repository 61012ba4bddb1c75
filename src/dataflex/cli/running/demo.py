"""`demo`"""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

from dataflex.cli.parsing import examples


def configure(parser: ArgumentParser) -> None:
    parser.description = (
        "Train four tiny models on real text, on the CPU, and compare them: plain, with selection, with mixing, with"
        " weighting. No network, a few minutes."
    )
    parser.add_argument(
        "out", metavar="DIR", nargs="?", type=Path, default=Path("dataflex-demo"), help="folder (dataflex-demo)"
    )
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps of each run (60)")
    parser.add_argument("--seed", type=int, default=0, help="seed of data, model and training (0)")
    parser.add_argument("--discard", action="store_true", help="delete everything written, after the table")
    parser.epilog = examples("dataflex-cli demo", "dataflex-cli demo runs/demo --steps 24 --discard")


def run(parser: ArgumentParser, arguments: list[str]) -> int:
    options = parser.parse_args(arguments)

    from dataflex.base.launching.launch import report
    from dataflex.demo.run import run_demo
    from dataflex.errors import DataflexError

    try:
        run_demo(options.out, options.steps, not options.discard, options.seed)
    except DataflexError as error:
        return report(error)
    return 0
