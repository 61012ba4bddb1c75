"""Values as a configuration file has them."""

from __future__ import annotations

from typing import Any

import yaml


def plain(value: Any) -> Any:
    """Tuples as lists, which is what a file holds."""
    return [plain(part) for part in value] if isinstance(value, tuple) else value


def written(value: Any) -> str:
    """A value as YAML, in one line."""
    text = yaml.safe_dump(plain(value), default_flow_style=True, width=10_000, sort_keys=False, allow_unicode=True)
    return text.removesuffix("\n...\n").rstrip("\n")
