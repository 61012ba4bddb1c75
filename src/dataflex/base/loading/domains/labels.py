"""The name that each row of a data set gives its domain, and the domains that follow from these names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from dataflex.base.loading.domains.columns import as_read, column_of
from dataflex.config.domains import MOST
from dataflex.config.refusals import domains as refused
from dataflex.config.schema import DomainsKeys
from dataflex.data.origins import stored_numbers
from dataflex.errors import Mistakes, nearest
from dataflex.values.domains import OTHER

_BLOCK = 1 << 20  # rows that are looked at together


@dataclass(frozen=True)
class Labels:
    """The names of the rows of one data set, in the order in which they were read."""

    codes: np.ndarray
    """Of each row the index of its name, int32[n]; -1: it has none."""
    names: tuple[str, ...]

    def counts(self, met: np.ndarray) -> tuple[dict[str, int], int]:
        """The rows of each name that a row has, and the rows without one. met: which rows count, bool[n]."""
        found = np.zeros(len(self.names) + 1, dtype=np.int64)
        for start in range(0, len(self.codes), _BLOCK):
            codes = self.codes[start : start + _BLOCK][met[start : start + _BLOCK]]
            found += np.bincount(codes + 1, minlength=len(found))
        return {name: int(rows) for name, rows in zip(self.names, found[1:], strict=True) if rows}, int(found[0])


@dataclass(frozen=True)
class Assigned:
    """The domains of some data sets."""

    names: tuple[str, ...]
    codes: Mapping[str, np.ndarray]
    """By data set: of each row the index of its domain, int16[n]; -1: it is left out."""
    left_out: Mapping[str, int]
    """The rows that are left out, by the name that they have."""

    def of_domain(self, data_set: str, domain: str) -> np.ndarray:
        """Which rows of a data set a domain has, bool[n]."""
        return self.codes[data_set] == self.names.index(domain)


def labels_of_column(stored: Any, dataset: str, spec: DomainsKeys) -> Labels:
    """Values as text; null and an empty text are no name. ConfigError for a column that is not there, and for
    values that are no text."""
    assert spec.column is not None
    key = "dataflex.domains.column"
    values = column_of(stored, dataset, spec.column, key)
    try:
        found = encoded(values)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError):
        raise refused.NOT_TEXT.error(key=key, name=dataset, column=spec.column, kind=values.type) from None
    return Labels(as_read(stored, found.codes), found.names)


def encoded(values: pa.ChunkedArray) -> Labels:
    """Values as codes, in the order in which they first appear."""
    index: dict[str, int] = {}
    codes = np.empty(len(values), dtype=np.int32)
    start = 0
    for chunk in values.chunks:
        coded = chunk.cast(pa.string()).dictionary_encode()
        known = [
            -1 if not name.strip() else index.setdefault(name, len(index)) for name in coded.dictionary.to_pylist()
        ]
        own = np.asarray(coded.indices.fill_null(-1))
        codes[start : start + len(chunk)] = np.array([*known, -1], dtype=np.int32)[own]  # the last is that of a null
        start += len(chunk)
    return Labels(codes, tuple(index))


def assign(
    labels: Mapping[str, Labels],
    stored: Mapping[str, Any],
    spec: DomainsKeys,
    met: Mapping[str, np.ndarray] | None = None,
) -> Assigned:
    """The domains of the training data, from the names of its rows.

    They are those of `keep` in its order, then `missing` where it is not among them, then `other`. Without `keep` every
    name is one, in the order of the names. A domain has at least one row.

    Raises ConfigError for a name in `keep` that no row has, and for a row without a name if `missing` is not set.

    Args:
        stored: The data sets, Hugging Face `Dataset`s.
        met: By data set, which rows meet the conditions, bool[n]; None: all. Others are left out, and not counted.
    """
    met = {name: np.ones(len(found.codes), dtype=bool) for name, found in labels.items()} if met is None else met
    counts, nameless = dict[str, int](), dict[str, int]()
    for data_set, found in labels.items():
        of_names, nameless[data_set] = found.counts(met[data_set])
        for name, rows in of_names.items():
            counts[name] = counts.get(name, 0) + rows
    mistakes = Mistakes()
    if any(nameless.values()):
        if spec.missing is None:
            first = next(name for name, rows in nameless.items() if rows)
            row = int(stored_numbers(stored[first])[int(np.argmax((labels[first].codes < 0) & met[first]))])
            mistakes.note(refused.NAMELESS.error(what=spec.named_by, rows=sum(nameless.values()), row=row, name=first))
        else:
            counts[spec.missing] = counts.get(spec.missing, 0) + sum(nameless.values())
    key = f"dataflex.domains.{'edges' if spec.by == 'length' else 'keep'}"
    for name in spec.keep:
        if name not in counts:
            mistakes.note(refused.NOT_KEPT.error(key=key, kept=name, what=spec.named_by, near=nearest(name, counts)))
    names = _in_order(counts, spec)
    if len(names) > MOST:
        mistakes.note(refused.MANY.error(what=spec.named_by, count=len(names), most=MOST))
    mistakes.settle()
    codes = {name: codes_in(found, names, spec) for name, found in labels.items()}
    for name, own in codes.items():
        own[~met[name]] = -1
    merged = spec.other == "merge"
    left_out = {name: rows for name, rows in sorted(counts.items()) if name not in names and not merged}
    return Assigned(names, codes, left_out)


def codes_in(found: Labels, names: Sequence[str], spec: DomainsKeys) -> np.ndarray:
    """The domain of each row among `names`, int16[n]; -1: it has none of them."""
    place = {name: index for index, name in enumerate(names)}
    rest = place.get(OTHER, -1) if spec.keep and spec.other == "merge" else -1
    nameless = -1 if spec.missing is None else place.get(spec.missing, -1)
    of_names = np.array([*(place.get(name, rest) for name in found.names), nameless], dtype=np.int16)
    out = np.empty(len(found.codes), dtype=np.int16)
    for start in range(0, len(out), _BLOCK):  # an index array becomes one of int64
        out[start : start + _BLOCK] = of_names[found.codes[start : start + _BLOCK]]
    return out


def _in_order(counts: Mapping[str, int], spec: DomainsKeys) -> tuple[str, ...]:
    if not spec.keep:
        return tuple(sorted(counts))
    names = list(spec.keep)
    if spec.missing in counts and spec.missing not in names:
        names.append(str(spec.missing))
    if spec.other == "merge" and OTHER not in names and any(name not in names for name in counts):
        names.append(OTHER)
    return tuple(names)
