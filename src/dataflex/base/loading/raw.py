"""Keeps track of which stored row each processed row was made from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from llamafactory.data import loader

from dataflex.base import seams
from dataflex.base.refusals import ours, theirs
from dataflex.data.rows import Rows

# The column that carries the number of the stored row while rows are prepared.
NUMBER = "dataflex_raw_row"


@contextmanager
def numbered_rows() -> Iterator[list[Any]]:
    """Inside, every data set that LLaMA-Factory reads has a column NUMBER, the place of a row in what was read, which its
    processors carry over to the rows they keep. Yields the data sets as they were read, in that order.

    A row must give one row or none, so packing and the stages pt and kto are out.
    """
    stored: list[Any] = []
    align, choose = theirs(loader.align_dataset), theirs(loader._get_dataset_processor)

    @ours
    def align_dataset(dataset: Any, *args: Any, **kwargs: Any) -> Any:
        stored.append(dataset)
        return align(dataset, *args, **kwargs).add_column(NUMBER, np.arange(len(dataset)))

    @ours
    def get_processor(*args: Any, **kwargs: Any) -> Any:
        return _Numbered(choose(*args, **kwargs))

    with seams.replaced(
        (loader.__name__, "align_dataset", align_dataset), (loader.__name__, "_get_dataset_processor", get_processor)
    ):
        yield stored


def stored_numbers(dataset: Any) -> np.ndarray:
    """Of each row that was read, its number among those stored (they differ where `num_samples` drew rows)."""
    indices = dataset._indices
    return np.arange(len(dataset)) if indices is None else indices.column(0).to_numpy().astype(np.int64)


def stored_size(dataset: Any) -> int:
    return len(dataset) if dataset._indices is None else dataset.data.num_rows


def places_read(part: Any) -> np.ndarray:
    """The column NUMBER."""
    return np.asarray(part.with_format("arrow")[:][NUMBER])


def take_numbers(module: dict[str, Any], stored: list[Any]) -> dict[str, Any]:
    """What `load_domains` loaded inside `numbered_rows`, with the column NUMBER turned into `Rows.raw`."""
    rows, out = module["train_dataset"], dict(module)
    read = stored[: len(rows.parts)]
    ends = np.cumsum([stored_size(dataset) for dataset in read])
    numbers = [stored_numbers(dataset)[places_read(part)] for dataset, part in zip(read, rows.parts, strict=True)]
    raw = np.concatenate([own + start for own, start in zip(numbers, [0, *ends[:-1]], strict=True)])
    out["train_dataset"] = Rows(
        [p.remove_columns(NUMBER) for p in rows.parts], rows.domains.names, raw.astype(np.int64), int(ends[-1])
    )
    evaluation = module.get("eval_dataset")
    if isinstance(evaluation, dict):
        out["eval_dataset"] = {name: part.remove_columns(NUMBER) for name, part in evaluation.items()}
    elif evaluation is not None:
        out["eval_dataset"] = evaluation.remove_columns(NUMBER)
    if "held_out" in module:
        held = module["held_out"]
        out["held_out"] = Rows([part.remove_columns(NUMBER) for part in held.parts], held.domains.names)
    return out


class _Numbered:
    """A processor of LLaMA-Factory, given one row at a time to see which it drops."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    @ours
    def preprocess_dataset(self, examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        out: dict[str, list[Any]] = defaultdict(list)
        prepare = theirs(self.inner.preprocess_dataset)
        for place, number in enumerate(examples[NUMBER]):
            made = prepare({key: values[place : place + 1] for key, values in examples.items()})
            for key, values in made.items():
                out[key] += values
            out[NUMBER] += [number] * len(next(iter(made.values()), []))
        return out if out[NUMBER] else {}

    def print_data_example(self, example: dict[str, Any]) -> None:
        self.inner.print_data_example(example)
