"""Columns of data sets as they are stored, and keys of the blocks in them, without a loop over rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataflex.base.loading.domains.json_text import JsonTextError, of_json_text
from dataflex.config.refusals import domains as refused
from dataflex.errors import nearest


def column_of(stored: Any, dataset: str, path: str, key: str) -> pa.ChunkedArray:
    """The values of a column, or of a key of the blocks in it, in the order of the file. Blocks may be stored as JSON text.

    Raises ConfigError for a column that the data set does not have, and for text that is no JSON.

    Args:
        stored: The data set, a Hugging Face `Dataset`.
        path: `column`, or `column.key.key`. A column whose own name has dots comes first.
        key: The key of the configuration that names the column.
    """
    schema = stored.data.schema
    first, *rest = [path] if path in schema.names else path.split(".")
    if first not in schema.names:
        raise refused.NO_COLUMN.error(key=key, name=dataset, column=path, near=nearest(path, _paths(schema)))
    values = stored.data.column(first)
    for place, inner in enumerate(rest):
        if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
            return _of_text(values, rest[place:], dataset, path, key)
        if not pa.types.is_struct(values.type):
            raise refused.NO_BLOCK.error(key=key, name=dataset, column=path, inner=inner, kind=values.type)
        if values.type.get_field_index(inner) < 0:
            raise refused.NO_COLUMN.error(key=key, name=dataset, column=path, near=nearest(path, _paths(schema)))
        values = pc.struct_field(values, [inner])
    if pa.types.is_nested(values.type):
        inner_paths = [found for found in _paths(schema) if found.startswith(f"{path}.")]
        near = f"; name one of its keys, such as {inner_paths[0]!r}" if inner_paths else ""
        raise refused.NESTED.error(key=key, name=dataset, column=path, near=near)
    return values


def _of_text(values: pa.ChunkedArray, keys: list[str], dataset: str, path: str, key: str) -> pa.ChunkedArray:
    try:
        found = of_json_text(values, keys)
    except JsonTextError as error:
        raise refused.NO_JSON.error(key=key, name=dataset, column=path, inner=keys[0], why=error) from None
    if found is None:
        raise refused.NO_KEY.error(key=key, name=dataset, column=path, inner=".".join(keys))
    return found


def as_read(stored: Any, values: np.ndarray) -> np.ndarray:
    """Values in the order of the file, in the order in which its rows were read (`num_samples` draws some)."""
    return values if stored._indices is None else values[stored._indices.column(0).to_numpy()]


def _paths(fields: Any, prefix: str = "") -> Iterator[str]:
    """The columns that hold single values, and such keys of blocks."""
    for field in fields:
        if pa.types.is_struct(field.type):
            yield from _paths(field.type, f"{prefix}{field.name}.")
        elif not pa.types.is_nested(field.type):
            yield f"{prefix}{field.name}"
