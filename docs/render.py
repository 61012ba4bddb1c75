"""Renders what the documentation says of commands and components: docs/commands.md, and passages of docs/components.md.

    python docs/render.py            write both files
    python docs/render.py --check    exit status 1 if a file is not what would be written

A passage lies between `<!-- rendered: WHAT -->` and `<!-- end -->`, where WHAT is `table`, `parameters of FAMILY NAME` or
`departures of FAMILY NAME`.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from pathlib import Path

from dataflex.cli.components.found import Found
from dataflex.cli.parsing import parser_of
from dataflex.cli.tree import Command, grouped
from dataflex.components.description import Description, Parameter
from dataflex.components.registry import FAMILIES, first_name
from dataflex.values.as_yaml import written

DOCS = Path(__file__).parent
_PASSAGE = re.compile(r"(<!-- rendered: ([^\n]*?) -->\n).*?(<!-- end -->)", re.DOTALL)
_WIDTH = 125


# -- commands --------------------------------------------------------------------------------------------------------


def commands_page() -> str:
    parts = [
        "# Commands",
        "`dataflex-cli` alone lists the commands, and `dataflex-cli COMMAND --help` says what is on this page. `dataflex` is"
        " another name for it, and `python -m dataflex` is the same. The exit status is 0, 2 where what was asked cannot be done"
        " as written, 130 or 143 where a signal has stopped it, else 1.",
    ]
    for heading, commands in grouped().items():
        parts.append(f"## {heading}")
        parts += [_command(command) for command in commands]
    return (
        "\n\n".join(
            textwrap.fill(part, _WIDTH) if part[0] not in "#|<" and "\n" not in part else part for part in parts
        )
        + "\n"
    )


def _command(command: Command) -> str:
    parser = parser_of(command)
    usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
    parts = [f"### {command.name}", f"    {usage}", textwrap.fill(" ".join((parser.description or "").split()), _WIDTH)]
    rows = [
        f"| `{_spelled(action)}` | {_cell(action.help or '')} |"
        for action in parser._actions
        if not isinstance(action, argparse._HelpAction)
    ]
    if rows:
        parts.append("\n".join(["| argument | meaning |", "|---|---|", *rows]))
    if parser.epilog:
        parts.append(textwrap.indent(textwrap.dedent(parser.epilog.removeprefix("examples:\n")), "    "))
    return "\n\n".join(parts)


def _spelled(action: argparse.Action) -> str:
    shown = str(action.metavar or ("" if action.nargs == 0 else action.dest.upper()))
    if action.choices is not None:
        shown = ", ".join(map(str, action.choices))
    return f"{', '.join(action.option_strings)} {shown}".strip()


# -- components ------------------------------------------------------------------------------------------------------


def components_page(page: str) -> str:
    """The page with its passages as they should be."""
    return _PASSAGE.sub(lambda found: f"{found[1]}{_passage(found[2])}\n{found[3]}", page)


def _passage(what: str) -> str:
    if what == "table":
        return _table()
    kind, _, family, name = what.split()
    told = _told(family, name)
    return _parameters(told) if kind == "parameters" else _departures(told)


def _told(family: str, name: str) -> Description:
    return Found(family, name, None).describe()


def _table() -> str:
    rows = ["| kind | name | what it does | source | needs | measuring takes |", "|---|---|---|---|---|---|"]
    for family, (names, _, _) in FAMILIES.items():
        for name in names:
            told = _told(family, name)
            anchor = f"{family}-{first_name(family, name)}"
            cells = (
                f"[`{name}`](#{anchor})",
                told.summary,
                _source(told),
                ", ".join(told.needs) or "nothing",
                told.work,
            )
            rows.append(f"| {family} | {' | '.join(map(_cell, cells))} |")
    return "\n".join(rows)


def _source(told: Description) -> str:
    if told.paper is None:
        return "no paper"
    return f"arXiv {told.paper.arxiv}" if told.paper.arxiv else f"{told.paper.venue}, {told.paper.authors}"


def _parameters(told: Description) -> str:
    rows = [f"| `{p.name}` | {_cell(_kind(p))} | {_default(p)} | {_cell(p.meaning)} |" for p in told.parameters]
    return "\n".join(["| parameter | type | default | meaning |", "|---|---|---|---|", *rows])


def _kind(parameter: Parameter) -> str:
    choices = parameter.type.split(" | ")
    kind = ", ".join(f"`{choice}`" for choice in choices) if len(choices) > 1 else parameter.type
    return "; ".join((kind, *parameter.expectations))


def _default(parameter: Parameter) -> str:
    return "required" if parameter.required else f"`{written(parameter.default)}`"


def _departures(told: Description) -> str:
    paper = [f"Paper: {told.paper}."] if told.paper else []
    return "\n\n".join([*paper, told.departures])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


# -- both ------------------------------------------------------------------------------------------------------------


def rendered() -> dict[Path, str]:
    """What each file should hold."""
    components = DOCS / "components.md"
    return {
        DOCS / "commands.md": commands_page(),
        components: components_page(components.read_text(encoding="utf-8")),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    stale = [
        path for path, text in rendered().items() if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    for path in stale:
        if not check:
            path.write_text(rendered()[path], encoding="utf-8")
        print(f"{path.name}: {'is not what docs/render.py writes' if check else 'written'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
