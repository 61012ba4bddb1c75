"""Writes what the documentation has from the code: `refused.md`, and the tables of keys between markers.

python docs/generate.py            write
python docs/generate.py --check    exit with 1 if something is not up to date, and name it
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import Field, fields
from pathlib import Path
from string import Formatter
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from dataflex.config.refusals.record import Group, Refusal
from dataflex.config.refusals.table import GROUPS
from dataflex.config.schema.domains import DomainsKeys, WhereKeys
from dataflex.config.schema.keys import (
    BLOCKS,
    SLOT_KEYS,
    BlockKeys,
    ChoiceKeys,
    DoremiKeys,
    EvaluateKeys,
    GenerateKeys,
    OfflineConfig,
    PartKeys,
    WeightKeys,
)

DOCS = Path(__file__).parent

_REFUSED = """# What is refused

A combination that would be wrong, or would quietly have no effect, ends with exit status 2 and a line that names the key.
Checks that do not depend on each other are all made, and all that is refused is said at once.

This file is made by `python docs/generate.py` from the records in `src/dataflex/config/refusals`. Words in *italics* stand
for values of the run. A refusal that the configuration decides is made before anything is loaded. The others are marked
*later*: they wait for the data, a model, the ranks or a checkpoint.

Single values have the types of LLaMA-Factory's own dataclasses and the ranges of `config/llamafactory/ranges.py`
([configuration.md](configuration.md#values)). What of dataflex 1.1.0 is not part of this version is
refused by name ([migration.md](migration.md#what-is-refused)).
"""


def refused() -> str:
    """docs/refused.md."""
    return "\n".join([_REFUSED, *map(_section, GROUPS)])


def _section(group: Group) -> str:
    rows = dict.fromkeys(map(_row, group.refusals))  # equal lines of several records are one row
    note = [group.note, ""] if group.note else []
    return "\n".join([f"## {group.title}", "", *note, "| key | why | what instead | |", "|---|---|---|---|", *rows, ""])


def _row(refusal: Refusal) -> str:
    key = re.sub(r"{(\w+)}", r"<\1>", refusal.key)
    why, later = refusal.why.replace("{key}", refusal.key), "later" if refusal.when is None else ""
    return f"| `{key}` | {_prose(why)} | {_prose(refusal.instead)} | {later} |"


def _prose(template: str) -> str:
    """A template with its values as words in italics."""
    said = ""
    for text, name, _, conversion in Formatter().parse(template):
        said += _escaped(text)
        if name is not None:
            quote = "'" if conversion == "r" else ""
            last = re.split(r"[.\[]", name)[-1].rstrip("]")
            said += f"{quote}*{last}*{quote}"
    return said


def _escaped(text: str) -> str:
    return re.sub(r"([*|<])", r"\\\1", text)


def key_table(*models: type, more: Mapping[str, tuple[str, str]] | None = None) -> str:
    """Markdown: key, type, default and meaning of the fields of models. more: rows of blocks, {key: (type, meaning)}."""
    rows = [_key_row(field, get_type_hints(m, include_extras=True)[field.name]) for m in models for field in fields(m)]
    rows += [f"| `{key}` | {kind} | none | {meaning} |" for key, (kind, meaning) in (more or {}).items()]
    return "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows])


def _key_row(field: Field[Any], hint: Any) -> str:
    more = field.metadata["json_schema_extra"]
    default = more["unset"] or _default(field.default)
    return f"| `{field.name}` | {more['kind'] or _kind(hint)} | {default} | {field.metadata['description']} |"


def _default(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return f"`{value}`" if isinstance(value, str) else str(value)


def _kind(hint: Any) -> str:
    """A type in words."""
    if get_origin(hint) is Annotated:
        base, *marks = get_args(hint)
        if get_origin(base) is tuple:
            return "string with commas, or list"
        limits = [limit for mark in marks for limit in getattr(mark, "metadata", ())]
        least = next((limit.ge for limit in limits if hasattr(limit, "ge")), None)
        return f"integer >= {least}" if base is int else "number in (0, 1]"
    members = [member for member in get_args(hint) if member is not NoneType]
    if get_origin(hint) is Literal:
        return " or ".join([", ".join(f"`{m}`" for m in members[:-1]), f"`{members[-1]}`"])
    return {bool: "boolean", str: "string"}[hint] if hint in (bool, str) else _kind(members[0])


TABLES: Mapping[str, Callable[[], str]] = {
    "block": lambda: key_table(BlockKeys, more=BLOCKS),
    "select": lambda: key_table(*SLOT_KEYS["select"]),
    "mix": lambda: key_table(*SLOT_KEYS["mix"]),
    "weight": lambda: key_table(PartKeys),
    "weights": lambda: key_table(WeightKeys),
    "order": lambda: key_table(*SLOT_KEYS["order"]),
    "domains": lambda: key_table(DomainsKeys),
    "where": lambda: key_table(WhereKeys),
    "offline": lambda: key_table(OfflineConfig),
    "doremi": lambda: key_table(DoremiKeys),
    "evaluate": lambda: key_table(EvaluateKeys),
    "choice": lambda: key_table(ChoiceKeys),
    "generate": lambda: key_table(GenerateKeys),
}
_MARKED = re.compile(r"(<!-- keys: (\w+) -->\n).*?(<!-- end of keys -->)", re.DOTALL)


def with_tables(page: Path) -> str:
    """A page with its tables of keys as the code has them. Links within the page have no name of a file."""

    def table(found: re.Match[str]) -> str:
        return f"{found[1]}\n{TABLES[found[2]]().replace(f'({page.name}#', '(#')}\n\n{found[3]}"

    return _MARKED.sub(table, page.read_text(encoding="utf-8"))


def rendered() -> dict[Path, str]:
    """Every generated page, whole."""
    pages = {page: with_tables(page) for page in sorted(DOCS.glob("*.md")) if page.name != "refused.md"}
    return {DOCS / "refused.md": refused(), **{p: text for p, text in pages.items() if _MARKED.search(text)}}


def main(arguments: list[str]) -> int:
    stale = [p for p, text in rendered().items() if not p.exists() or p.read_text(encoding="utf-8") != text]
    for page in stale:
        if "--check" in arguments:
            print(f"{page.name} is not up to date: run python docs/generate.py")
        else:
            page.write_text(rendered()[page], encoding="utf-8")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
