"""`describe`"""

from __future__ import annotations

import json
import re
import textwrap
from argparse import ArgumentParser
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dataflex import notices
from dataflex.cli.parsing import examples

if TYPE_CHECKING:
    from dataflex.cli.components.found import Found
    from dataflex.components.description import Parameter

_WIDTH = 110


def configure(parser: ArgumentParser) -> None:
    parser.description = (
        "What a component does and where it is from, its parameters with type, default, range and meaning, what it needs and"
        " costs, how it differs from its authors' program, and a block to paste. All of it is read from the class."
    )
    parser.add_argument(
        "name",
        metavar="COMPONENT",
        help="a name of `dataflex-cli list`, or module:Class; all families that have it are shown",
    )
    parser.add_argument("--family", choices=("select", "mix", "weight", "order"), help="of this family only")
    parser.add_argument("--json", action="store_true", help="the same as a JSON list")
    parser.epilog = examples("dataflex-cli describe less", "dataflex-cli describe random --family mix --json")


def run(parser: ArgumentParser, arguments: list[str]) -> int:
    options = parser.parse_args(arguments)

    from dataflex.cli.components.found import find

    found = find(options.name, options.family)
    if options.json:
        notices.show(json.dumps([_record(each) for each in found], indent=2))
    else:
        notices.show("\n\n\n".join(_page(each) for each in found))
    return 0


def _record(found: Found) -> dict[str, Any]:
    from dataflex.values.as_yaml import plain

    told = found.describe()
    record = {name: value for name, value in vars(told).items() if name not in ("component", "parameters")}
    record["paper"] = asdict(told.paper) if told.paper else None
    record["parameters"] = [asdict(p) | {"default": plain(p.default)} for p in told.parameters]
    record |= {"package": found.package, "block": _block(found)}
    return record


def _block(found: Found) -> str:
    from dataflex.cli.blocks import block_lines

    lines = block_lines(found.family, found.name, found.load())
    return "\n".join(["dataflex:", *(f"  {line}" for line in lines)]) + "\n"


def _page(found: Found) -> str:
    from dataflex.cli.components.found import KINDS

    told = found.describe()
    origin = f", of {found.package}" if found.package else ""
    parts = [f"{told.name} ({KINDS[told.family]}{origin})\n\n{told.summary}."]
    if told.paper:
        parts.append(f"Paper: {told.paper}")
    if told.text:
        parts.append(told.text)
    parts += [
        "Parameters\n\n" + ("\n".join(map(_parameter, told.parameters)) or "  none"),
        "Needs: " + (", ".join(told.needs) or "nothing"),
        "Cost\n\n" + ("\n".join(f"  {line}" for line in told.cost) or "  no pass of its own"),
    ]
    if told.departures:
        parts.append("Departures from the authors\n\n" + textwrap.indent(_without_links(told.departures), "  "))
    parts.append("In a configuration\n\n" + _block(found).rstrip("\n"))
    return "\n\n".join(parts)


def _parameter(parameter: Parameter) -> str:
    from dataflex.values.as_yaml import written

    default = "required" if parameter.required else f"default {written(parameter.default)}"
    head = "; ".join([parameter.type, default, *parameter.expectations])
    lines = textwrap.wrap(f"{parameter.name}: {head}", _WIDTH, initial_indent="  ", subsequent_indent="      ")
    return "\n".join(
        lines + textwrap.wrap(parameter.meaning, _WIDTH, initial_indent="      ", subsequent_indent="      ")
    )


def _without_links(text: str) -> str:
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
