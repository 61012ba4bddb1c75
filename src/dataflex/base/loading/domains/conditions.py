"""Which rows meet the conditions of `dataflex.domains.where`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataflex.base.loading.domains.columns import as_read, column_of
from dataflex.config.refusals import domains as refused
from dataflex.config.schema import DomainsKeys, WhereKeys
from dataflex.errors import ConfigError

_KEY = "dataflex.domains.where"


def rows_that_meet(stored: Mapping[str, Any], spec: DomainsKeys) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Which rows of each data set meet all conditions, bool[n], and how many do not, by the first condition that they fail.

    A null meets none. ConfigError for a column that is not there, or whose values cannot be compared.

    Args:
        stored: The data sets, Hugging Face `Dataset`s.
    """
    met = {name: np.ones(len(rows), dtype=bool) for name, rows in stored.items()}
    left_out: dict[str, int] = {}
    for index, condition in enumerate(spec.where):
        key = f"{_KEY}[{index}]"
        for name, rows in stored.items():
            values = column_of(rows, name, condition.column, f"{key}.column")
            try:
                found = as_read(rows, meets(values, condition))
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
                raise refused.NOT_COMPARED.error(
                    key=key, name=name, column=condition.column, kind=values.type, condition=condition.said
                ) from None
            failed = int((met[name] & ~found).sum())
            if failed:
                left_out[condition.said] = left_out.get(condition.said, 0) + failed
            met[name] &= found
    for name, rows in met.items():
        if not rows.any():
            raise ConfigError(f"{_KEY} leaves no row of {name!r}")
    return met, left_out


def meets(values: pa.ChunkedArray, condition: WhereKeys) -> np.ndarray:
    """Which values meet a condition, bool[n]. Raises an error of Arrow for values that cannot be compared."""
    found = np.asarray(pc.is_valid(values))
    for bound, compare in ((condition.min, pc.greater_equal), (condition.max, pc.less_equal)):
        if bound is not None:
            if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
                raise pa.ArrowTypeError("no numbers")
            found = found & np.asarray(compare(values, pa.scalar(bound)).fill_null(False))
    if condition.equals is not None:
        given = condition.equals if isinstance(condition.equals, list) else [condition.equals]
        found = found & np.asarray(pc.is_in(values, value_set=pa.array(given).cast(values.type)))
    return found
