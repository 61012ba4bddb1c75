"""The components that this installation has: built in, and of installed packages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from dataflex.components.contracts import Component
from dataflex.components.description import Description, describe
from dataflex.components.registry import FAMILIES, first_name, package_of, plug_ins, resolve
from dataflex.errors import ConfigError, nearest

KINDS = {"select": "selector", "mix": "mixer", "weight": "weighter", "order": "order"}
"""Families by the key of the block, and what one of them is called."""


@dataclass(frozen=True)
class Found:
    family: str
    name: str
    package: str | None
    """Name and version of the package that brings it; None: built in."""

    def load(self) -> type[Component]:
        """The class. ConfigError if it cannot be imported, or is no component."""
        return resolve(self.family, self.name, f"{KINDS[self.family]} {self.name}")

    def describe(self) -> Description:
        told, first = describe(self.family, self.name, self.load()), first_name(self.family, self.name)
        return told if first == self.name else replace(told, summary=f"Another name of `{first}`: {told.summary}")


def found_in(family: str) -> list[Found]:
    """Those of a family (select, mix, weight or order), by name."""
    built_in = [Found(family, name, None) for name in FAMILIES[family][0]]
    added = [Found(family, entry.name, package_of(entry)) for entry in plug_ins(family)]
    return sorted([*built_in, *added], key=lambda found: found.name)


def find(name: str, family: str | None = None) -> list[Found]:
    """The components of a name, which several families may have, or the class that `module:Class` names. ConfigError that
    begins with the name if there is none."""
    families = [family] if family else list(FAMILIES)
    if ":" in name:
        return [_class_of(name, families)]
    found = [f for each in families for f in found_in(each) if f.name == name]
    if not found:
        known = {f.name for each in families for f in found_in(each)}
        what = KINDS[family] if family else "component"
        hint = nearest(name, known) or "; dataflex-cli list shows all"
        raise ConfigError(f"unknown {what} {name!r}{hint}")
    return found


def component_names() -> list[str]:
    """Every name, once."""
    return sorted({found.name for family in FAMILIES for found in found_in(family)})


def _class_of(path: str, families: list[str]) -> Found:
    return next(_fitting(path, families), None) or Found(families[0], path, path.partition(":")[0])


def _fitting(path: str, families: list[str]) -> Iterator[Found]:
    """By the family whose base the class has."""
    for family in families:
        found = Found(family, path, path.partition(":")[0])
        try:
            found.load()
        except ConfigError:
            continue
        yield found
