"""The domains of rows that are read as they are served, where all that names them stands in the configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from dataflex.base.loading.domains.conditions import meets
from dataflex.base.loading.domains.labels import codes_in, encoded
from dataflex.config.refusals import domains as refused
from dataflex.config.schema import DomainsKeys
from dataflex.errors import nearest
from dataflex.values.domains import OTHER

if TYPE_CHECKING:
    from jaxtyping import Int16

Row = Mapping[str, Any]


def names_in_advance(spec: DomainsKeys) -> tuple[str, ...]:
    """The domains: those to keep, then `missing`, then `other`."""
    names = [*spec.keep, *([spec.missing] if spec.missing not in (None, *spec.keep) else [])]
    return (*names, OTHER) if spec.other == "merge" and OTHER not in names else tuple(names)  # type: ignore[arg-type]


def codes_of_rows(rows: Sequence[Row], data_set: str, spec: DomainsKeys) -> Int16[np.ndarray, " rows"]:
    """The domain of each row among `names_in_advance`; -1: it is left out, or meets a condition not.

    Raises ConfigError for a column that is not there, values that name nothing, and a row without a name if `missing` is
    not set."""
    met = np.ones(len(rows), dtype=bool)
    for index, condition in enumerate(spec.where):
        key = f"dataflex.domains.where[{index}]"
        values = _values(rows, condition.column, data_set, f"{key}.column")
        try:
            met &= meets(values, condition)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
            raise refused.NOT_COMPARED.error(
                key=key, name=data_set, column=condition.column, kind=values.type, condition=condition.said
            ) from None
    assert spec.column is not None
    values = _values(rows, spec.column, data_set, "dataflex.domains.column")
    try:
        labels = encoded(values)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        kind = values.type
        raise refused.NOT_TEXT.error(
            key="dataflex.domains.column", name=data_set, column=spec.column, kind=kind
        ) from None
    if spec.missing is None and ((labels.codes < 0) & met).any():
        raise refused.NAMELESS_IN_STREAM.error(what=spec.named_by, name=data_set)
    codes = codes_in(labels, names_in_advance(spec), spec)
    codes[~met] = -1
    return codes


def _values(rows: Sequence[Row], path: str, data_set: str, key: str) -> pa.ChunkedArray:
    first = path if path in rows[0] else path.partition(".")[0]
    if first not in rows[0]:
        raise refused.NO_COLUMN.error(key=key, name=data_set, column=path, near=nearest(path, rows[0]))
    inner = [] if first == path else path.split(".")[1:]
    try:
        return pa.chunked_array([pa.array([_at(row[first], inner) for row in rows])])
    except (pa.ArrowInvalid, pa.ArrowTypeError, ValueError) as error:
        raise refused.NOT_TEXT.error(key=key, name=data_set, column=path, kind=str(error).splitlines()[0]) from None


def _at(value: Any, keys: Sequence[str]) -> Any:
    """The value at a key of blocks, which may be JSON text; None where there is none."""
    for key in keys:
        if isinstance(value, str):
            value = json.loads(value) if value.strip() else None
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value
