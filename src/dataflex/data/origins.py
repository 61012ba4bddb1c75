"""Which stored row each processed row was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Origin:
    """A data set as it was read, and the rows of it that are used."""

    name: str
    attributes: Any
    """How LLaMA-Factory reads it (DatasetAttr)."""
    stored: Any
    """Its rows as they were read, a Hugging Face `Dataset`."""
    indices: np.ndarray
    """For each row that is used, its index in `stored`, int64[n]."""

    @cached_property
    def numbers(self) -> np.ndarray:
        """For each row that is used, its number in the file, int64[n]."""
        return stored_numbers(self.stored)[self.indices]

    @property
    def size(self) -> int:
        """Rows in the file."""
        return len(self.stored) if self.stored._indices is None else int(self.stored.data.num_rows)


def stored_numbers(dataset: Any) -> np.ndarray:
    """The number in the file of each row that was read. It is not the row's index where `num_samples` drew rows."""
    indices = dataset._indices
    return np.arange(len(dataset)) if indices is None else indices.column(0).to_numpy().astype(np.int64)


def raw_rows(origins: Sequence[Origin]) -> tuple[np.ndarray, int]:
    """Stored numbers of all used rows, counted over the concatenated files, int64[N]; and the rows of all files."""
    ends = np.cumsum([origin.size for origin in origins])
    numbers = [o.numbers + start for o, start in zip(origins, [0, *ends[:-1]], strict=True)]
    return np.concatenate(numbers).astype(np.int64), int(ends[-1])
