"""The rows of each domain, out of the data sets that were read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from datasets import Dataset, concatenate_datasets
from datasets.table import InMemoryTable

from dataflex.base.loading.carried import row_indices
from dataflex.base.loading.domains.clusters import labels_near_clusters, labels_of_clusters
from dataflex.base.loading.domains.conditions import rows_that_meet
from dataflex.base.loading.domains.files import labels_of_file
from dataflex.base.loading.domains.labels import Assigned, Labels, assign, codes_in, labels_of_column
from dataflex.base.loading.domains.lengths import labels_of_length
from dataflex.base.loading.reading import ReadData
from dataflex.base.loading_arguments import Loading
from dataflex.config.refusals import domains as refused
from dataflex.config.schema import DATA_SETS, DomainsKeys
from dataflex.data.origins import Origin, stored_rows
from dataflex.errors import ConfigError


@dataclass(frozen=True)
class DomainData:
    """The training data, domain by domain. The rows of a domain follow each other data set by data set, as they were read."""

    read: Mapping[str, ReadData]
    """The data sets, in the order of `dataset`."""
    parts: Mapping[str, Any]
    """The rows of each domain in LLaMA-Factory's own columns."""
    left_out: Mapping[str, int]
    """Rows that are in no domain, by what they say."""
    by_data_set: bool = False
    """Whether the data sets themselves are the domains."""

    def sources(self, domain: str, rows: Any) -> list[tuple[str, Any]]:
        """Where an error looks for the row that it is about: data sets, by name, and their rows. rows: those of the domain."""
        if self.by_data_set:
            return [(domain, rows)]
        return [(name, found.aligned) for name, found in self.read.items()]

    def origins(self, domain: str, part: Any) -> list[Origin]:
        """Where the rows of a domain come from, in their order, after tokenization. part: rows that carry their index."""
        found = row_indices(part)
        firsts = np.array([read.first for read in self.read.values()])
        owner = np.searchsorted(firsts, found, side="right") - 1
        return [
            Origin(
                name,
                read.attributes,
                read.stored,
                found[owner == index] - read.first,
                "" if self.by_data_set else domain,
            )
            for index, (name, read) in enumerate(self.read.items())
            if (owner == index).any()
        ]

    def stored_rows(self) -> dict[str, int]:
        """The rows of each data set as it is stored."""
        return {name: stored_rows(read.stored) for name, read in self.read.items()}


def split_domains(read: Mapping[str, ReadData], spec: DomainsKeys, loading: Loading) -> DomainData:
    """ConfigError where the data does not name domains as `spec` says. Called on every rank."""
    if spec == DATA_SETS:
        return DomainData(read, {name: found.aligned for name, found in read.items()}, {}, True)
    assigned = assigned_rows(read, spec, loading)
    return DomainData(read, rows_of_domains(read, assigned), assigned.left_out, by_data_set=spec.by == "dataset")


def rows_of_domains(read: Mapping[str, ReadData], assigned: Assigned) -> dict[str, Any]:
    """The rows of each domain, data set by data set."""
    return {domain: _of_domain(read, assigned.codes, index) for index, domain in enumerate(assigned.names)}


def assigned_rows(read: Mapping[str, ReadData], spec: DomainsKeys, loading: Loading) -> Assigned:
    """The domain of every row. ConfigError where the data does not name domains as `spec` says. Called on every rank."""
    if spec == DATA_SETS:
        codes = {name: np.full(len(found.aligned), d, dtype=np.int16) for d, (name, found) in enumerate(read.items())}
        return Assigned(tuple(read), codes, {})
    stored = {name: found.stored for name, found in read.items()}
    met, failed = rows_that_meet(stored, spec)
    if spec.by == "cluster":
        aligned = {name: found.aligned for name, found in read.items()}
        labels: Mapping[str, Labels] = labels_of_clusters(aligned, stored, met, spec, loading)
    else:
        labels = _labels(read, spec)
    if spec.by in ("length", "dataset"):
        spec = replace(spec, keep=spec.ranges if spec.by == "length" else tuple(read))
    assigned = assign(labels, stored, spec, met)
    return replace(assigned, left_out={**assigned.left_out, **failed})


def split_held_out(
    read: Mapping[str, ReadData], spec: DomainsKeys, names: Sequence[str], key: str, loading: Loading
) -> list[Any]:
    """Held-out rows of each domain in `names`, by what names the domains of the training data; None for one without a row.

    Rows of no domain are left out. ConfigError for a data set that does not say what its rows are of. key: what names them.
    Called on every rank."""
    try:
        if spec.by == "cluster":
            labels: Mapping[str, Labels] = labels_near_clusters(
                {name: found.aligned for name, found in read.items()}, spec, loading
            )
        else:
            labels = _labels(read, spec)
    except ConfigError as error:
        why = str(error).partition(": ")[2]
        raise refused.NOT_HELD_OUT.error(key=key, name=", ".join(read), why=why) from error
    codes = {name: codes_in(found, names, spec) for name, found in labels.items()}
    present = {index for found in codes.values() for index in np.unique(found).tolist()}
    return [_of_domain(read, codes, index) if index in present else None for index in range(len(names))]


def _labels(read: Mapping[str, ReadData], spec: DomainsKeys) -> Mapping[str, Labels]:
    """What names the domain of each row, by data set, where it is not what the row says."""
    if spec.by == "dataset":
        return {name: Labels(np.zeros(len(found.stored), dtype=np.int32), (name,)) for name, found in read.items()}
    if spec.by == "file":
        return labels_of_file({name: found.stored for name, found in read.items()}, spec)
    if spec.by == "length":
        return {name: labels_of_length(found.aligned, spec) for name, found in read.items()}
    return {name: labels_of_column(found.stored, name, spec) for name, found in read.items()}


def _of_domain(read: Mapping[str, ReadData], codes: Mapping[str, np.ndarray], index: int) -> Any:
    places = {name: np.flatnonzero(found == index) for name, found in codes.items()}
    parts = [take(read[name].aligned, rows) for name, rows in places.items() if len(rows)]
    return parts[0] if len(parts) == 1 else concatenate_datasets(parts)


def take(rows: Any, indices: np.ndarray) -> Any:
    """Some rows of a Hugging Face `Dataset`, as `select` gives them, which makes a Python object of every index.

    indices: ascending, int64[n], at least one.
    """
    if len(indices) == len(rows):
        return rows
    if indices[-1] - indices[0] + 1 == len(indices):
        return rows.select(range(int(indices[0]), int(indices[-1]) + 1))
    digest = xxhash.xxh3_64(indices.tobytes())
    digest.update(rows._fingerprint.encode())
    if rows._indices is not None:
        indices = rows._indices.column(0).to_numpy()[indices]
    table = pa.table({"indices": pa.array(indices.astype(np.uint64))})
    return Dataset(
        rows.data,
        info=rows.info.copy(),
        split=rows.split,
        indices_table=InMemoryTable(table),
        fingerprint=digest.hexdigest(),
    )
