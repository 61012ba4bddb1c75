"""Keys of JSON that a column holds as text, without a loop over rows."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as jsonl

from dataflex.errors import DataflexError

_BLOCK = 1 << 24  # bytes that are parsed at once, and that one value may have
# What a key may hold, the first that fits all rows; a key that holds blocks or lists fits none.
_KINDS = (pa.string(), pa.int64(), pa.float64(), pa.bool_())


class JsonTextError(DataflexError):
    """A value that is no JSON block."""


def of_json_text(values: pa.ChunkedArray, keys: Sequence[str]) -> pa.ChunkedArray | None:
    """What the text says at a key, or at a key of a block in it; null where there is none. A null or an empty text says
    nothing. None where no row has the key with a single value, or rows have values of several kinds.

    Raises JsonTextError for a value that is no JSON block."""
    for kind in _KINDS:
        try:
            found = pa.chunked_array([_parsed(_lines(chunk), keys, kind) for chunk in values.chunks], kind)
        except pa.ArrowInvalid:
            continue
        if len(found) == len(values) and found.null_count < len(found):
            return found
    _check(values)
    return None


def _lines(texts: pa.Array) -> pa.Buffer:
    """A line for each text; a line break within one is white space to JSON."""
    said = pc.utf8_trim_whitespace(texts.cast(pa.large_string()).fill_null("{}"))
    said = pc.if_else(pc.equal(said, ""), pa.scalar("{}", pa.large_string()), said)
    said = pc.replace_substring(pc.replace_substring(said, "\n", " "), "\r", " ")
    joined = pc.binary_join_element_wise(said, pa.scalar("", pa.large_string()), pa.scalar("\n", pa.large_string()))
    _, offsets, data = joined.buffers()
    return pa.py_buffer(b"") if data is None else data[: int(np.frombuffer(offsets, dtype=np.int64)[len(joined)])]


def _parsed(lines: pa.Buffer, keys: Sequence[str], kind: pa.DataType) -> pa.Array:
    if not lines.size:
        return pa.nulls(0, kind)
    for key in reversed(keys[1:]):
        kind = pa.struct([(key, kind)])
    found = jsonl.read_json(
        pa.BufferReader(lines),
        read_options=jsonl.ReadOptions(block_size=_BLOCK),
        parse_options=jsonl.ParseOptions(pa.schema([(keys[0], kind)]), unexpected_field_behavior="ignore"),
    ).column(0)
    for key in keys[1:]:
        found = pc.struct_field(found, [key])
    return found.combine_chunks()


def _check(values: pa.ChunkedArray) -> None:
    """The first value that is no block, row by row: it ends the run."""
    for row, value in enumerate(values):
        try:
            text = (value.as_py() or "").strip()
        except UnicodeDecodeError:
            raise JsonTextError(f"row {row} is not UTF-8") from None
        try:
            wrong = bool(text) and not isinstance(json.loads(text), dict)
        except ValueError:
            wrong = True
        if wrong:
            raise JsonTextError(f"row {row} holds {text[:40]!r}")
