"""The training rows of a run, with stable ids: concatenated domains, and a collator that carries the ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import xxhash
from torch.utils.data import Dataset

from dataflex.plan.plan import Domains

SAMPLE_IDS = "dataflex_sample_ids"
# The column, and the key of a batch, with the weight that the data itself gives every token; in rm, dpo and kto, every row.
GIVEN_WEIGHTS = "dataflex_weights"
# What a row holds that is not LLaMA-Factory's.
OURS = (SAMPLE_IDS, GIVEN_WEIGHTS)
# Larger data sets are fingerprinted by evenly spaced blocks of rows that hold about this many tokens in all.
_FINGERPRINT_TOKENS = 1 << 28
_BLOCK = 1000
# Labels that are looked at together, and the rows these may be.
_LABELS, _MOST_ROWS = 1 << 21, 1 << 14


@dataclass(frozen=True)
class ScatteredDomains(Domains):
    """Domains whose rows stand in any order, as where LLaMA-Factory merges data sets. They have no offsets of use."""

    codes: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int32), compare=False, repr=False)
    """The domain of each row, int32[N]."""

    def of(self, ids: np.ndarray) -> np.ndarray:
        return self.codes[np.asarray(ids)].astype(np.int64)


class Rows(Dataset):
    """Processed data sets (Hugging Face `Dataset`s) behind one index; a row is a dict and knows its id.

    An id is the row's index in the concatenation of the parts, in the order of `domains.names`.

    Attributes:
        parts: The data sets.
        stored: The number of each row in its data set as it is stored, int64[N]; None: unknown.
        raw: The number of each row among the stored rows of all data sets, int64[N]; None: unknown.
        raw_total: Stored rows of all data sets.
        data_sets: The data set of each row, as an index into names, int32[N], and these names; None: its domain.
        domains: Of the rows; a part each, or where there is one part, of rows in any order.
    """

    def __init__(
        self,
        parts: Sequence[Any],
        names: Sequence[str],
        raw: np.ndarray | None = None,
        raw_total: int = 0,
        stored: np.ndarray | None = None,
        data_sets: tuple[np.ndarray, tuple[str, ...]] | None = None,
        scattered: ScatteredDomains | None = None,
    ) -> None:
        self.parts, self.raw, self.raw_total, self.stored = list(parts), raw, raw_total, stored
        self.data_sets = data_sets
        self._tokens: np.ndarray | None = None
        self._learned: np.ndarray | None = None
        self._layout = Domains(tuple(names), tuple(len(p) for p in parts))
        self.domains: Domains = scattered or self._layout

    def __len__(self) -> int:
        return self.domains.total

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Rows in the order asked for, one read per part."""
        ids = np.asarray(indices, dtype=np.int64)
        owner = self._layout.of(ids)
        out: list[dict[str, Any]] = [{}] * len(ids)
        for d in np.unique(owner):
            where = np.flatnonzero(owner == d)
            local = (ids[where] - self._layout.offsets[d]).tolist()
            for index, row in zip(where, self.parts[d].__getitems__(local), strict=True):
                out[index] = {**row, SAMPLE_IDS: int(ids[index])}
        return out

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of each domain."""
        return self.domains.sizes

    @property
    def column_names(self) -> list[str]:
        return list(self.parts[0].column_names)

    def lengths(self) -> np.ndarray:
        """Tokens of each row, int32[N]; for pairs, of both sides together. Not to be written to."""
        if self._tokens is None:
            out = np.zeros(len(self), dtype=np.int32)
            for part, ids_of_part in zip(self.parts, self._id_ranges(), strict=True):
                for column in (c for c in self.column_names if c.endswith("input_ids")):
                    _add_lengths(part, column, out[ids_of_part])
            out.flags.writeable = False
            self._tokens = out
        return self._tokens

    def _id_ranges(self) -> list[slice]:
        """The ids of each part."""
        return [slice(int(a), int(b)) for a, b in pairwise(self._layout.offsets)]

    def by_domain(self, values: np.ndarray) -> list[int]:
        """The sums over the rows of each domain. values: a number for each row, int[N]."""
        if isinstance(self.domains, ScatteredDomains):
            codes = self.domains.codes
            return [int(values[codes == d].sum(dtype=np.int64)) for d in range(len(self.domains))]
        return [int(values[rows].sum(dtype=np.int64)) for rows in self._id_ranges()]

    def trainable_tokens(self) -> np.ndarray:
        """Tokens of each row that carry a loss, int32[N]; for pairs, of both sides together. The first token of a row is
        predicted from nothing and never counts. Not to be written to."""
        if self._learned is None:
            columns = [c for c in self.column_names if c.endswith("labels")]
            if columns:
                out = np.zeros(len(self), dtype=np.int32)
                for part, ids_of_part in zip(self.parts, self._id_ranges(), strict=True):
                    for column in columns:
                        _add_trainable(part, column, out[ids_of_part])
            else:  # pre-training: every token but the first is learned
                out = self.lengths() - np.int32(1)
                np.maximum(out, 0, out=out)
            out.flags.writeable = False
            self._learned = out
        return self._learned

    def fingerprints(self) -> dict[str, str]:
        """A hash of each domain's token ids and labels, row boundaries included; independent of how it is stored. Where rows of
        domains stand in any order, also one of all rows in theirs, under their common name."""
        found = {name: _fingerprint(part) for name, part in zip(self._layout.names, self.parts, strict=True)}
        if isinstance(self.domains, ScatteredDomains):
            whole, codes = self.parts[0], self.domains.codes
            own = {n: _fingerprint(whole.select(np.flatnonzero(codes == d))) for d, n in enumerate(self.domains.names)}
            order = xxhash.xxh3_128_hexdigest(codes.tobytes())
            found = {**{f"{name} in order": f"{each} {order}" for name, each in found.items()}, **own}
        return found

    def weight_fingerprints(self) -> dict[str, str]:
        """A hash of each part's own weights, apart from those of the rows, which are the same rows with other weights. Nothing
        where the data gives none."""
        given = [(n, p) for n, p in zip(self._layout.names, self.parts, strict=True) if GIVEN_WEIGHTS in p.column_names]
        return {name: _fingerprint(part, (GIVEN_WEIGHTS,)) for name, part in given}

    def weigh_something(self) -> bool:
        """Whether the data's own weight of something that is learned is above zero."""
        return any(_weighs_something(part) for part in self.parts)


def _fingerprint(part: Any, endings: tuple[str, ...] = ("input_ids", "labels", "kto_tags")) -> str:
    columns = sorted(c for c in part.column_names if c.endswith(endings))
    digest = xxhash.xxh3_128()
    digest.update(f"{len(part)}:{columns}".encode())
    blocks = list(range(0, len(part), _BLOCK))
    if not blocks:
        return digest.hexdigest()
    table = part.with_format("arrow")
    first = table[0:_BLOCK]
    tokens = sum(len(_flat(first[c])) for c in columns) or 1
    wanted = max(2, _FINGERPRINT_TOKENS // tokens)
    if len(blocks) > wanted:
        blocks = [blocks[i] for i in np.linspace(0, len(blocks) - 1, wanted).astype(int)]
    for start in blocks:
        block = table[start : start + _BLOCK]
        for column in columns:
            values = block[column]
            if _nested(values):
                digest.update(pc.list_value_length(values).to_numpy().astype(np.int32).tobytes())
            flat = np.asarray(_flat(values))
            digest.update(flat.astype(np.float32 if flat.dtype.kind == "f" else np.int32).tobytes())
    return digest.hexdigest()


def _weighs_something(part: Any) -> bool:
    columns = [c for c in (GIVEN_WEIGHTS, "labels") if c in part.column_names]
    table = part.select_columns(columns).with_format("arrow")
    for start in range(0, len(part), _BLOCK):
        block = table[start : start + _BLOCK]
        weights = _flat(block[GIVEN_WEIGHTS])
        if "labels" in columns and _nested(block[GIVEN_WEIGHTS]):
            weights = weights[_flat(block["labels"]) != -100]
        if weights.any():
            return True
    return False


def _add_lengths(part: Any, column: str, out: np.ndarray) -> None:
    """Add the length of each row's list. The tokens themselves are not read, only the list offsets.

    A data set may name rows of another one by their indices. Then all stored rows are looked at, which is far less work
    than gathering the lists.
    """
    stored, indices = part.data.column(column), part._indices
    into = out if indices is None else np.zeros(len(stored), dtype=out.dtype)
    start = 0
    for chunk in stored.chunks:
        into[start : start + len(chunk)] += pc.list_value_length(chunk).to_numpy(zero_copy_only=False)
        start += len(chunk)
    if indices is not None:
        out += into[indices.column(0).to_numpy()]


def _add_trainable(part: Any, column: str, out: np.ndarray) -> None:
    """Add the number of each row's labels that are not -100, the first label aside."""
    table = part.select_columns([column]).with_format("arrow")
    if not len(part):
        return
    block = _BLOCK  # of rows that are gathered by their indices, many at once take longer
    if part._indices is None:
        block = min(max(_LABELS * _BLOCK // max(len(_flat(table[0:_BLOCK][column])), 1), 1), _MOST_ROWS)
    for start in range(0, len(part), block):
        values = table[start : start + block][column]
        lengths = pc.list_value_length(values).to_numpy().astype(np.int64)
        ends = np.cumsum(lengths)
        active = _flat(values) != -100
        active[(ends - lengths)[lengths > 0]] = False
        counted = np.concatenate([[0], np.cumsum(active)])
        out[start : start + len(lengths)] += (counted[ends] - counted[ends - lengths]).astype(out.dtype)


def _flat(values: pa.ChunkedArray) -> np.ndarray:
    return (pc.list_flatten(values) if _nested(values) else values).to_numpy(zero_copy_only=False)


def _nested(values: pa.ChunkedArray) -> bool:
    return bool(pa.types.is_list(values.type) or pa.types.is_large_list(values.type))


class RowCollator:
    """Takes ids and given weights off the rows, lets LLaMA-Factory's collator do its work, and puts both into the batch.

    Weights are float32, for each of the batch's `input_ids` [B, T], 1 where the collator padded, or for each row [B]. Of rows
    without an id (evaluation data) the batch is the inner collator's.
    """

    def __init__(self, inner: Callable[[list[dict[str, Any]]], Any]) -> None:
        self.inner = inner

    def __call__(self, features: list[dict[str, Any]]) -> Any:
        batch = self.inner([without_ours(f) for f in features])
        if not features or SAMPLE_IDS not in features[0]:
            return batch
        batch[SAMPLE_IDS] = torch.tensor([f[SAMPLE_IDS] for f in features], dtype=torch.int64)
        if GIVEN_WEIGHTS in features[0]:
            batch[GIVEN_WEIGHTS] = self._padded([f[GIVEN_WEIGHTS] for f in features], batch)
        return batch

    def _padded(self, weights: list[Any], batch: Any) -> torch.Tensor:
        if isinstance(weights[0], float):
            return torch.tensor(weights, dtype=torch.float32)
        left = getattr(getattr(self.inner, "tokenizer", None), "padding_side", "right") == "left"
        out = torch.ones(batch["input_ids"].shape, dtype=torch.float32)
        for row, own in zip(out, weights, strict=True):
            own = torch.as_tensor(own, dtype=torch.float32)[: len(row)]  # neat packing cuts its padding off again
            row[len(row) - len(own) if left else 0 :][: len(own)] = own
        return out


def without_ours(row: dict[str, Any]) -> dict[str, Any]:
    """A row as LLaMA-Factory made it."""
    return {k: v for k, v in row.items() if k not in OURS}
