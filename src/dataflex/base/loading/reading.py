"""Data sets, read through LLaMA-Factory: as they are stored, and in its own columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llamafactory.data import loader

from dataflex.base import seams
from dataflex.base.loading.carried import NOTHING, RAW_ROW, RAW_WEIGHTS, Carried
from dataflex.base.loading.faults import reading
from dataflex.base.loading_arguments import Loading
from dataflex.errors import ConfigError, Mistakes

# `load_merged` replaces this function by one that calls it.
_read_one = loader._get_merged_dataset


@dataclass(frozen=True)
class ReadData:
    """A data set that was read."""

    attributes: Any
    """How LLaMA-Factory reads it (DatasetAttr)."""
    stored: Any
    """Its rows as they were read, a Hugging Face `Dataset`."""
    aligned: Any
    """The same rows in LLaMA-Factory's own columns, with the columns that they carry."""
    first: int = 0
    """The index that its first row carries."""


def read_stored(loading: Loading, name: str, key: str) -> tuple[Any, Any]:
    """How LLaMA-Factory reads one data set (DatasetAttr), and its rows as they are stored."""
    read: list[tuple[Any, Any]] = []

    def align_dataset(stored: Any, attributes: Any, *_: Any) -> Any:
        read.append((attributes, stored))
        return stored

    with reading(name, key, loading.data_args), seams.replaced((loader.__name__, "align_dataset", align_dataset)):
        _read_one([name], loading.model_args, loading.data_args, loading.training_args, loading.stage, return_dict=True)
    return read[0]


def read_data(loading: Loading, name: str, key: str, carried: Carried = NOTHING, first: int = 0) -> ReadData:
    """One data set, stored and in LLaMA-Factory's own columns. first: the index that its first row carries."""
    attributes, stored = read_stored(loading, name, key)
    with reading(name, key, loading.data_args, (stored, attributes)):
        column = carried.weight_column(name, attributes)
        weights = None if column is None else column.weights(stored)
        aligned = loader.align_dataset(stored, attributes, loading.data_args, loading.training_args)
    if weights is not None:
        aligned = aligned.add_column(RAW_WEIGHTS, weights)
    if carried.row_index:
        aligned = aligned.add_column(RAW_ROW, np.arange(first, first + len(stored)))
    return ReadData(attributes, stored, aligned, first)


def read_all(loading: Loading, names: Sequence[str], key: str, carried: Carried = NOTHING) -> dict[str, ReadData]:
    """{name: what was read}; one ConfigError for all that cannot be read. Indices that rows carry count over all of them."""
    mistakes, found, first = Mistakes(), dict[str, ReadData](), 0
    for name in names:
        with mistakes.noting():
            found[name] = read_data(loading, name, key, carried, first)
            first += len(found[name].aligned)
            if len(found[name].aligned) == 0:
                raise ConfigError(f"{key}: {name!r} is empty")
    mistakes.settle()
    return found
