"""The block `dataflex.offline`: how much a selection before training takes, and from what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dataflex.components.tools.files import read_array
from dataflex.config.schema import OfflineConfig, own_keys
from dataflex.errors import ConfigError, Mistakes
from dataflex.values import shown
from dataflex.values.validated import read_keys


def read_offline(given: Any, mistakes: Mistakes) -> OfflineConfig:
    if not isinstance(given, Mapping):
        mistakes.note(ConfigError(f"dataflex.offline must be a block of keys, got {shown(given)}"))
        return OfflineConfig()
    values = read_keys(OfflineConfig, given, "dataflex.offline", str, mistakes)
    either = (given.get("budget") is None) == (given.get("keep_ratio") is None)
    if either and set(given) <= set(own_keys(OfflineConfig)):
        mistakes.note(
            ConfigError("dataflex.offline needs either budget, the rows to select, or keep_ratio, their share")
        )
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
