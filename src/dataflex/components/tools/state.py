"""States of selectors that a mixer asks once for every domain."""

from __future__ import annotations

from dataflex.components.contexts import SelectionContext


def domain_key(context: SelectionContext, name: str) -> str:
    """Key of `name` in the state: beside a mixer every domain has an entry of its own, "<domain>.<name>"."""
    return name if context.domain is None else f"{context.domain}.{name}"
