"""Commands that LLaMA-Factory has and we do not change."""

from __future__ import annotations

from argparse import ArgumentParser


def configure(parser: ArgumentParser) -> None:
    parser.description = "Passed on to LLaMA-Factory as it is, with all arguments."
    parser.usage = f"{parser.prog} [argument ...]"
    parser.add_argument(
        "arguments", metavar="argument", nargs="*", help="what LLaMA-Factory's command of this name takes"
    )


def run(parser: ArgumentParser, arguments: list[str]) -> int:
    from dataflex.base.processes import children

    return children.run(["-m", "llamafactory.cli", parser.prog.split()[-1], *arguments], ours=False)
