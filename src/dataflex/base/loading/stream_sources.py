"""The rows of streams, as LLaMA-Factory's converters and processors take them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import IterableDataset

from dataflex.base.loading.carried import RAW_WEIGHTS
from dataflex.base.loading.domains.chunks import codes_of_rows, names_in_advance
from dataflex.base.loading.domains.labels import Assigned
from dataflex.base.loading.weight_column import WeightColumn
from dataflex.config.schema import DomainsKeys
from dataflex.data.streams import Sample

if TYPE_CHECKING:
    from jaxtyping import Int

_CHUNK = 1024  # rows of a data set that are divided at once
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


class FilteredStream:
    """A `Source`: the rows of one domain in a data set that is read from front to back. Every domain reads all of it.

    Rows are read in chunks, which are divided at once. The state is that of the reader before a chunk, and how many rows of the
    domain in that chunk were taken.

    Args:
        belongs: Which rows of a chunk are in the domain, bool[n].
    """

    def __init__(
        self,
        dataset: IterableDataset,
        convert: Any,
        weights: WeightColumn | None,
        processor: Any,
        belongs: Callable[[list[dict[str, Any]]], np.ndarray],
    ) -> None:
        self.dataset, self.convert, self.weights, self.processor = dataset, convert, weights, processor
        self.belongs = belongs

    def seek(self, state: Mapping[str, Any] | None) -> None:
        self._before = None if state is None else copy.deepcopy(state["before"])
        self.dataset.load_state_dict(copy.deepcopy(self._before))  # type: ignore[arg-type]
        self._rows, self._chunk, self._taken = iter(self.dataset), list[dict[str, Any]](), 0
        self._begun = False
        if state is not None:
            self._read_chunk(self._before)
            self._taken = int(state["taken"])

    def state(self) -> dict[str, Any]:
        return {"before": self._before, "taken": self._taken}

    def read(self, count: int) -> list[dict[str, Any]]:
        out: list[dict[str, Any]] = []
        while len(out) < count and (self._taken < len(self._chunk) or self._read_chunk(self._position())):
            found = self._chunk[self._taken : self._taken + count - len(out)]
            self._taken += len(found)
            out += [_converted(row, self.convert, self.weights) for row in found]
        return out

    def samples(self, rows: list[dict[str, Any]]) -> list[Sample]:
        return _samples(rows, self.processor, weighted=self.weights is not None)

    def _position(self) -> dict[str, Any] | None:
        """The state of the reader before the next chunk."""
        return self.dataset.state_dict() if self._begun else self._before

    def _read_chunk(self, before: dict[str, Any] | None) -> bool:
        """False at the end of the data."""
        rows = list(islice(self._rows, _CHUNK))
        if not rows:
            return False
        kept = self.belongs(rows)
        self._before, self._begun, self._taken = before, True, 0
        self._chunk = [row for row, own in zip(rows, kept, strict=True) if own]
        return True


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


def filtered_streams(
    name: str,
    opened: Callable[[], IterableDataset],
    convert: Any,
    weights: WeightColumn | None,
    processor: Any,
    spec: DomainsKeys,
) -> dict[str, FilteredStream]:
    """A stream for each domain of a data set that is read from front to back. opened: gives a reader of its rows."""

    def of(domain: int) -> FilteredStream:
        def belongs(rows: list[dict[str, Any]]) -> np.ndarray:
            return codes_of_rows(rows, name, spec) == domain

        return FilteredStream(opened(), convert, weights, processor, belongs)

    return {domain: of(code) for code, domain in enumerate(names_in_advance(spec))}


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
