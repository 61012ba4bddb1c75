"""The rows of streams, as LLaMA-Factory's converters and processors take them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import IterableDataset

from dataflex.base.loading.carried import RAW_WEIGHTS
from dataflex.base.loading.domains.labels import Assigned
from dataflex.base.loading.weight_column import WeightColumn
from dataflex.data.streams import Sample

if TYPE_CHECKING:
    from jaxtyping import Int

_WEIGHT = "dataflex_weight"  # what a message weighs, beside its role and its content


class StreamedData:
    """A `Source`: rows as LLaMA-Factory's converter gives them, samples as its processor makes them.

    The converter is applied here and not by `IterableDataset.map`, since the state of a mapped data set does not always lead
    back to the row it was taken at (datasets 4.0, data with known columns).
    """

    def __init__(self, dataset: IterableDataset, convert: Any, weights: WeightColumn | None, processor: Any) -> None:
        self.dataset, self.convert, self.weights, self.processor = dataset, convert, weights, processor
        self._rows: Any = iter(())

    def seek(self, state: Mapping[str, Any] | None) -> None:
        self.dataset.load_state_dict(copy.deepcopy(state))  # type: ignore[arg-type]
        self._rows = iter(self.dataset)

    def state(self) -> dict[str, Any]:
        return self.dataset.state_dict()

    def read(self, count: int) -> list[dict[str, Any]]:
        return [_converted(row, self.convert, self.weights) for row in islice(self._rows, count)]

    def samples(self, rows: list[dict[str, Any]]) -> list[Sample]:
        return _samples(rows, self.processor, weighted=self.weights is not None)


class StreamedDomain:
    """A `Source`: the rows of one domain in data sets on this machine, by their indices.

    Args:
        parts: Of each data set the stored rows (a Hugging Face `Dataset`), the indices of those of the domain, ascending,
            LLaMA-Factory's converter, and what says the weights of rows.
    """

    def __init__(
        self,
        parts: Sequence[tuple[Any, Int[np.ndarray, " rows"], Any, WeightColumn | None]],
        processor: Any,
    ) -> None:
        self.parts, self.processor = list(parts), processor
        self._ends = np.cumsum([len(indices) for _, indices, _, _ in self.parts]).tolist()
        self._next = 0

    def __len__(self) -> int:
        return int(self._ends[-1])

    def seek(self, state: Mapping[str, Any] | None) -> None:
        self._next = 0 if state is None else int(state["row"])

    def state(self) -> dict[str, Any]:
        return {"row": self._next}

    def read(self, count: int) -> list[dict[str, Any]]:
        out: list[dict[str, Any]] = []
        stop = min(self._next + count, len(self))
        for (stored, indices, convert, weights), end in zip(self.parts, self._ends, strict=True):
            begin = end - len(indices)
            wanted = indices[max(self._next - begin, 0) : max(stop - begin, 0)]
            if len(wanted):
                out += [_converted(row, convert, weights) for row in stored.__getitems__(wanted.tolist())]
        self._next = stop
        return out

    def samples(self, rows: list[dict[str, Any]]) -> list[Sample]:
        return _samples(rows, self.processor, weighted=self.parts[0][3] is not None)


def streams_of_domains(
    assigned: Assigned, readers: Mapping[str, tuple[Any, Any, WeightColumn | None]], processor: Any
) -> dict[str, StreamedDomain]:
    """A stream for each domain. It keeps at most four bytes a row; eight for a data set of more than 2^31 rows.

    readers: of each data set its stored rows, converter and weights."""
    out = {}
    kinds = {name: np.min_scalar_type(-len(codes)) for name, codes in assigned.codes.items()}
    for code, domain in enumerate(assigned.names):
        found = {name: np.flatnonzero(assigned.codes[name] == code).astype(kinds[name]) for name in readers}
        parts = [
            (stored, found[name], convert, weights)
            for name, (stored, convert, weights) in readers.items()
            if len(found[name])
        ]
        out[domain] = StreamedDomain(parts, processor)
    return out


def _converted(row: dict[str, Any], convert: Any, weights: WeightColumn | None) -> dict[str, Any]:
    """A row whose messages say what they weigh, so that a block's digest, which checkpoints hold, covers it."""
    out: dict[str, Any] = convert(row)
    if weights is not None:
        messages, each = _messages(out), weights.weights_of(row)
        each = each * len(messages) if weights.per == "row" else each
        # A row that the converter skips has no messages, and one of two answers is not for sft, which drops it.
        for message, weight in zip(messages, each, strict=len(out["_response"]) == 1):
            message[_WEIGHT] = weight
    return out


def _samples(rows: list[dict[str, Any]], processor: Any, *, weighted: bool) -> list[Sample]:
    examples = {column: [row[column] for row in rows] for column in rows[0]}
    if weighted:
        examples[RAW_WEIGHTS] = [[message.get(_WEIGHT, 1.0) for message in _messages(row)] for row in rows]
    made = processor.preprocess_dataset(examples)
    columns = list(made.keys())
    return [dict(zip(columns, values, strict=True)) for values in zip(*made.values(), strict=True)]


def _messages(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [*row["_prompt"], *row["_response"]]
