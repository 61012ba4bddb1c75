"""The block `dataflex.offline`: how much a selection before training takes, and from what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dataflex.components.tools.files import read_array
from dataflex.config.parameters import bounded, typed_keys
from dataflex.config.schema import OfflineConfig
from dataflex.config.values import shown
from dataflex.errors import ConfigError, Mistakes, nearest

_OFFLINE: dict[str, Any] = {
    "budget": int, "keep_ratio": float, "store": str, "embeddings": str, "target_embeddings": str, "examples": int,
}  # fmt: skip


def read_offline(given: Any, mistakes: Mistakes) -> OfflineConfig:
    if not isinstance(given, Mapping):
        mistakes.note(ConfigError(f"dataflex.offline must be a block of keys, got {shown(given)}"))
        return OfflineConfig()
    strangers = [k for k in given if k not in _OFFLINE]
    for unknown in strangers:
        mistakes.note(ConfigError(f"dataflex.offline.{unknown}: unknown key{nearest(str(unknown), _OFFLINE)}"))
    known = {k: v for k, v in given.items() if k in _OFFLINE}
    values = typed_keys(known, _OFFLINE, "dataflex.offline", str, mistakes)
    if (known.get("budget") is None) == (known.get("keep_ratio") is None) and not strangers:
        mistakes.note(
            ConfigError("dataflex.offline needs either budget, the rows to select, or keep_ratio, their share")
        )
    if not 0 < values.get("keep_ratio", 1) <= 1:
        mistakes.note(ConfigError(f"dataflex.offline.keep_ratio must be in (0, 1], got {values.pop('keep_ratio')}"))
    bounded(values, {"budget": (1, None), "examples": (0, None)}, "dataflex.offline", str, mistakes)
    for name in ("embeddings", "target_embeddings"):
        if name in values:
            with mistakes.noting():
                _check_file(name, values[name])
    return OfflineConfig(**values)


def _check_file(name: str, path: str) -> None:
    try:
        found = read_array(name, path, dimensions=2)
        if not np.issubdtype(found.dtype, np.floating) or not found.size:
            raise ConfigError(f"{name} must hold numbers, and {path} holds {found.dtype}{list(found.shape)}")
    except ConfigError as error:
        raise ConfigError(f"dataflex.offline.{error}") from None
