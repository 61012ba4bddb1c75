"""Which stored row each processed row was made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from dataflex.plan.plan import Domains


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
    domain: str = ""
    """The domain of these rows, where it is something else than the data set."""

    @cached_property
    def numbers(self) -> np.ndarray:
        """For each row that is used, its number in the file, int64[n]."""
        return stored_numbers(self.stored)[self.indices]

    @property
    def size(self) -> int:
        """Rows in the file."""
        return stored_rows(self.stored)


def stored_rows(dataset: Any) -> int:
    """Rows in the file of a data set that was read."""
    return len(dataset) if dataset._indices is None else int(dataset.data.num_rows)


def stored_numbers(dataset: Any) -> np.ndarray:
    """The number in the file of each row that was read. It is not the row's index where `num_samples` drew rows."""
    indices = dataset._indices
    return np.arange(len(dataset)) if indices is None else indices.column(0).to_numpy().astype(np.int64)


def raw_rows(origins: Sequence[Origin], sizes: Mapping[str, int] | None = None) -> tuple[np.ndarray, int]:
    """Stored numbers of all used rows, counted over the concatenated files, int64[N]; and the rows of all files. sizes: rows of
    the file of each data set, in the order of `dataset`; None: there are those of the origins, one each."""
    sizes = {origin.name: origin.size for origin in origins} if sizes is None else sizes
    starts = dict(zip(sizes, np.cumsum([0, *sizes.values()]).tolist(), strict=False))
    numbers = [origin.numbers + starts[origin.name] for origin in origins]
    return np.concatenate(numbers).astype(np.int64), sum(sizes.values())


def data_sets_of(origins: Sequence[Origin]) -> tuple[np.ndarray, tuple[str, ...]]:
    """The data set of each used row, as an index into their names, int32[N]; and these names."""
    names = tuple(dict.fromkeys(origin.name for origin in origins))
    codes = np.array([names.index(origin.name) for origin in origins], dtype=np.int32)
    return np.repeat(codes, [len(origin.indices) for origin in origins]), names


def domains_of(origins: Sequence[Origin]) -> Domains:
    """The domains that used rows are in: data sets, where they name no other."""
    sizes: dict[str, int] = {}
    for origin in origins:
        name = origin.domain or origin.name
        sizes[name] = sizes.get(name, 0) + len(origin.indices)
    return Domains(tuple(sizes), tuple(sizes.values()))
