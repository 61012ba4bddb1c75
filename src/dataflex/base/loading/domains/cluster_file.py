"""Clusters of rows as a file: the cluster of each row, and the centres that other rows are compared with.

The file is kept with the run, and in every checkpoint, so that a resumed run takes the same clusters. It is also a file for
`by: file`: its columns are `dataset`, `row` (the number of the stored row) and `domain`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataflex.base.loading_arguments import Loading
from dataflex.config.refusals import domains as refused
from dataflex.config.schema import DomainsKeys
from dataflex.record.ledger import CLUSTERS, DIRECTORY
from dataflex.writing import write_table

if TYPE_CHECKING:
    from jaxtyping import Float32, Int32, Int64

_METADATA = b"dataflex"
# How a difference is said.
_WORDS = {"k": "has k {there}, not {here}", "seed": "has seed {there}, not {here}"}


@dataclass(frozen=True)
class Clusters:
    """Clusters of the rows of some data sets."""

    made_of: Mapping[str, Any]
    """k, seed, the encoder, and digests of what the rows say: plain data that is equal where clusters are."""
    names: tuple[str, ...]
    centres: Float32[np.ndarray, "k dims"]
    codes: Mapping[str, Int32[np.ndarray, " rows"]]
    """By data set: the cluster of each row that was read; -1: it meets a condition not."""


def saved_clusters(loading: Loading, spec: DomainsKeys, made_of: Mapping[str, Any]) -> Clusters | None:
    """The clusters that were made of the same: of the checkpoint that the run resumes from, of the run, or of `path`.

    ConfigError for a file at `path` that is of something else."""
    for file in _own_files(loading):
        found = _read(file)
        if found is not None and found.made_of == made_of:
            return found
    if spec.path is None or not Path(spec.path).exists():
        return None
    found = _read(Path(spec.path))
    if found is None:
        raise refused.OTHER_CLUSTERS.error(path=spec.path, why="holds no clusters")
    if found.made_of != made_of:
        different = next(key for key in made_of if found.made_of.get(key) != made_of[key])
        words = _WORDS.get(different, f"is of {'another encoder' if different == 'encoder' else 'other rows'}")
        why = words.format(there=found.made_of.get(different), here=made_of[different])
        raise refused.OTHER_CLUSTERS.error(path=spec.path, why=why)
    return found


def clusters_of_run(loading: Loading, spec: DomainsKeys) -> Clusters | None:
    """The clusters that the run has, however they were made."""
    files = [*_own_files(loading), *([Path(spec.path)] if spec.path else [])]
    return next((found for file in files if (found := _read(file)) is not None), None)


def keep_clusters(
    loading: Loading, spec: DomainsKeys, found: Clusters, rows: Mapping[str, Int64[np.ndarray, " rows"]]
) -> None:
    """Write them with the run, and to `path`. rows: the stored number of each row that was read, by data set."""
    if not loading.training_args.should_save:
        return
    table = _table(found, rows)
    write_table(_own_file(loading), table)
    if spec.path is not None and not Path(spec.path).exists():
        write_table(Path(spec.path), table)


def _own_file(loading: Loading) -> Path:
    return Path(loading.training_args.output_dir) / DIRECTORY / CLUSTERS


def _own_files(loading: Loading) -> list[Path]:
    checkpoint = loading.training_args.resume_from_checkpoint
    return [*([Path(checkpoint) / DIRECTORY / CLUSTERS] if checkpoint else []), _own_file(loading)]


def _table(found: Clusters, rows: Mapping[str, Int64[np.ndarray, " rows"]]) -> pa.Table:
    codes = np.concatenate([found.codes[name] for name in rows])
    owner = np.repeat(np.arange(len(rows), dtype=np.int32), [len(numbers) for numbers in rows.values()])
    said = {
        "made_of": dict(found.made_of),
        "names": list(found.names),
        "dims": found.centres.shape[1],
        "centres": base64.b64encode(found.centres.astype("<f4").tobytes()).decode(),
    }
    columns = {
        "dataset": pa.DictionaryArray.from_arrays(owner, pa.array(list(rows), pa.string())),
        "row": pa.array(np.concatenate(list(rows.values())), pa.int64()),
        "domain": pa.DictionaryArray.from_arrays(
            pa.array(codes, mask=codes < 0), pa.array(list(found.names), pa.string())
        ),
    }
    return pa.table(columns).replace_schema_metadata({_METADATA: json.dumps(said).encode()})


def _read(file: Path) -> Clusters | None:
    """None where the file is not there, or is no file of clusters."""
    try:
        table = pq.read_table(file)
        said = json.loads((table.schema.metadata or {})[_METADATA])
        centres = np.frombuffer(base64.b64decode(said["centres"]), dtype="<f4").reshape(-1, said["dims"])
        names = tuple(said["names"])
    except (OSError, KeyError, ValueError):
        return None
    place = {name: index for index, name in enumerate(names)}
    codes, owner = (_codes(table[column], order) for column, order in (("domain", place), ("dataset", None)))
    data_sets = table["dataset"].unique().to_pylist()
    return Clusters(
        said["made_of"], names, centres, {name: codes[owner == index] for index, name in enumerate(data_sets)}
    )


def _codes(values: pa.ChunkedArray, place: Mapping[str, int] | None) -> Int32[np.ndarray, " rows"]:
    """Of each value its place, in the order in which values first appear where none is given; -1: null."""
    coded = values.cast(pa.string()).combine_chunks().dictionary_encode()
    names = coded.dictionary.to_pylist()
    order = np.array([*(place[name] if place is not None else i for i, name in enumerate(names)), -1], dtype=np.int32)
    return order[np.asarray(coded.indices.fill_null(len(names)))]
