"""Values that runs of one comparison share: what one of them has measured of equal rows with an equal model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from dataflex.distributed.collectives import decide, rank
from dataflex.notices import say
from dataflex.signals.keeping.memory import SignalCache
from dataflex.writing import write_atomically

_OF_COMPONENTS = tuple(
    f"{what}dataflex.{slot}" for what in ("", "content of ") for slot in ("select", "mix", "weight", "order")
)


def measured_alike(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What runs must share, beside the state of their models, for equal values: the data, and not what is decided by it."""
    return {key: value for key, value in identity.items() if not key.startswith(_OF_COMPONENTS)}


class SharedCache:
    """Takes over all values, where a run has put them into the folder; else measures, and puts them there once they are whole.

    Args:
        cache: Where this run keeps its values.
        key: All that they depend on.
    """

    def __init__(self, cache: SignalCache, folder: Path, key: Mapping[str, Any]) -> None:
        self._cache, self.missing = cache, cache.missing
        text = json.dumps(key, sort_keys=True, default=str)
        self._file = folder / f"{xxhash.xxh3_128_hexdigest(text.encode())}.npy"
        if cache.missing.any() and decide(lambda: [self._file.is_file()])[0]:
            found = decide(lambda: np.load(self._file))
            cache.put(np.arange(len(found)), found)
            say(f"{len(found)} rows of {key['signal']} were measured by another run of this comparison")

    def put(self, indices: np.ndarray, values: np.ndarray) -> None:
        self._cache.put(indices, values)
        if rank() == 0 and not self.missing.any() and not self._file.is_file():
            content = BytesIO()
            np.save(content, self._cache.values())
            write_atomically(self._file, content.getvalue())

    def values(self) -> np.ndarray:
        return self._cache.values()
