"""The scores that rows are ordered by, where they are numbers of stored rows: of a column of the data sets, or of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from dataflex.base.loading.domains.columns import column_of
from dataflex.base.loading.domains.files import values_of_file
from dataflex.config.refusals import loaded as refused
from dataflex.config.schema import OrderConfig
from dataflex.data.origins import Origin, raw_rows
from dataflex.errors import ConfigError

_COLUMN = "score"


def scores_of(spec: OrderConfig, origins: Sequence[Origin], sizes: Mapping[str, int]) -> np.ndarray:
    """The score of every used row, float64[N]. ConfigError for a row without a finite number.

    Args:
        origins: Where the rows come from, in their order.
        sizes: Rows of each data set as it is stored, in the order of `dataset`.
    """
    if spec.by == "column":
        return np.concatenate([_of_column(spec, origin) for origin in origins])
    assert spec.path is not None
    of_stored = np.full(sum(sizes.values()), np.nan)
    if spec.path.endswith(".npy"):
        of_stored[:] = _array(spec.path, len(of_stored))
    else:
        values, entries, rows = values_of_file(spec.path, spec.column or _COLUMN, sizes, "dataflex.order")
        of_stored[rows] = _numbers(values, f"dataflex.order.column: {spec.path}")[entries]
    raw, _ = raw_rows(origins, sizes)
    found = of_stored[raw]
    _check(found, origins, spec.column or _COLUMN, "path", None)
    return found


def _of_column(spec: OrderConfig, origin: Origin) -> np.ndarray:
    assert spec.column is not None
    values = column_of(origin.stored, origin.name, spec.column, "dataflex.order.column")
    found = _numbers(values, f"dataflex.order.column: {spec.column!r} of {origin.name!r}")[origin.numbers]
    _check(found, [origin], spec.column, "column", values)
    return found


def _numbers(values: pa.ChunkedArray, what: str) -> np.ndarray:
    """float64[n]; NaN for null. what: how a message begins where they are no numbers."""
    kind = values.type
    if not (
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind)
    ):
        raise ConfigError(f"{what} holds {kind}, which is no number to order by")
    return values.cast(pa.float64()).to_numpy(zero_copy_only=False)


def _array(path: str, total: int) -> np.ndarray:
    try:
        found = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise refused.NO_SCORES.error(path=path, why=f"cannot be read ({' '.join(str(error).split())})") from None
    if found.shape != (total,) or found.dtype.kind not in "fiu":
        why = f"must hold a number for each of the {total} stored rows, and has {found.dtype}{list(found.shape)}"
        raise refused.NO_SCORES.error(path=path, why=why)
    return found


def _check(found: np.ndarray, origins: Sequence[Origin], column: str, key: str, values: pa.ChunkedArray | None) -> None:
    """ConfigError for the first row without a finite score. values: of the column, in the order of the file."""
    if np.isfinite(found).all():
        return
    place = int(np.argmin(np.isfinite(found)))
    names = np.repeat([origin.name for origin in origins], [len(origin.indices) for origin in origins])
    row = int(np.concatenate([origin.numbers for origin in origins])[place])
    value = None if values is None else values[row].as_py()
    if value is None:
        raise refused.NO_SCORE.error(parameter=key, row=row, name=str(names[place]), column=column)
    raise refused.NOT_A_SCORE.error(parameter=key, row=row, name=str(names[place]), column=column, value=value)
