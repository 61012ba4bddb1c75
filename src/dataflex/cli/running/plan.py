"""`plan`"""

from __future__ import annotations

import json
from argparse import ArgumentParser
from typing import Any

from dataflex import notices
from dataflex.cli.parsing import examples


def configure(parser: ArgumentParser) -> None:
    parser.description = (
        "What a training will do: every mistake of the file, steps and tokens, what acts when, what is measured and how much"
        " work that is, how often data repeats, what is left at a default, and advice. No model is loaded."
    )
    parser.add_argument("config", metavar="CONFIG", help="a .yaml, .yml or .json file")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="keys that win over the file")
    parser.add_argument("--ranks", type=int, metavar="N", help="processes of the run (as the environment says, else 1)")
    parser.add_argument(
        "--measure",
        type=int,
        metavar="STEPS",
        help="train so many steps here, on few rows, and price every decision in minutes",
    )
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    parser.epilog = examples("dataflex-cli plan train.yaml", "dataflex-cli plan train.yaml max_steps=500 --measure 20")


def run(parser: ArgumentParser, arguments: list[str]) -> int:
    options = parser.parse_args(arguments)

    from dataflex.base.checks.arguments import check_arguments, load_checked
    from dataflex.config.files import read
    from dataflex.config.llamafactory.source import SourceError, SourceKeys
    from dataflex.config.load import load
    from dataflex.errors import ConfigError
    from dataflex.forecast.advice import advice
    from dataflex.forecast.run import Forecast

    for name in ("ranks", "measure"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise ConfigError(f"--{name} must be at least 1, not {getattr(options, name)}")
    asked, keys = [options.config, *options.overrides], SourceKeys()
    raw = read(asked)
    block = raw.get("dataflex")
    given: dict[str, Any] = dict(block) if isinstance(block, dict) else {}
    unchecked = []
    try:
        config = load_checked(load, asked, known=keys, writes=False)
        check_arguments(config, known=keys, writes=False)
    except SourceError as error:
        config = load(asked)
        unchecked.append(f"LLaMA-Factory's keys are not checked here, but by train: {error}")
    forecast = Forecast(config, given, options.ranks)
    lines = [*unchecked, *config.notices, *advice(forecast)]
    prices = None
    if options.measure is not None:
        from dataflex.forecast.measured import measure

        prices = measure(raw, forecast, options.measure)
    if options.json:
        record = forecast.to_json() | {"advice": lines, "prices": None if prices is None else prices.to_json()}
        notices.show(json.dumps(record, indent=2, default=str))
        return 0
    from rich.console import Console

    from dataflex.forecast.tables import tables_of
    from dataflex.report.terminal import show_table
    from dataflex.report.words import visible

    console = Console(highlight=False)
    for table in tables_of(forecast):
        show_table(table, console)
    if prices is not None:
        show_table(prices.table(), console)
    for line in lines:
        notices.show(f"- {visible(line)}")
    return 0
