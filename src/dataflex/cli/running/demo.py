"""`demo`"""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

from dataflex.cli.parsing import examples


def configure(parser: ArgumentParser) -> None:
    parser.description = (
        "Train a tiny model on real text, on the CPU, a few times: plain, with selection, with mixing, with weighting. It ends"
        " with what each of them is for, what lies within noise, and a report. No network, a minute or two."
    )
    parser.add_argument(
        "out", metavar="DIR", nargs="?", type=Path, default=Path("dataflex-demo"), help="folder (dataflex-demo)"
    )
    parser.add_argument(
        "--real",
        action="store_true",
        help="with a pretrained model of 135M parameters, fetched once (88 MB); about ten minutes on two cores",
    )
    parser.add_argument("--steps", type=int, help="optimizer steps of each run (120; with --real 12)")
    parser.add_argument("--seed", type=int, default=0, help="seed of data, model and training (0)")
    parser.add_argument("--discard", action="store_true", help="delete everything written, after the table")
    parser.epilog = examples("dataflex-cli demo", "dataflex-cli demo runs/demo --real")


def run(parser: ArgumentParser, arguments: list[str]) -> int:
    options = parser.parse_args(arguments)

    from dataflex.base.launching.launch import report
    from dataflex.demo.run import run_demo
    from dataflex.demo.scales import PRETRAINED, TINY
    from dataflex.errors import DataflexError

    try:
        scale = PRETRAINED if options.real else TINY
        run_demo(options.out, scale, options.steps, not options.discard, options.seed)
    except DataflexError as error:
        return report(error)
    return 0
