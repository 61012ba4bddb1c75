"""Domains of rows by the number of their characters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataflex.base.loading.domains.columns import as_read
from dataflex.base.loading.domains.labels import Labels
from dataflex.config.schema import DomainsKeys

_MESSAGES, _SYSTEM = ("_prompt", "_response"), "_system"


def labels_of_length(aligned: Any, spec: DomainsKeys) -> Labels:
    """Which range between the edges the length of each row is in. aligned: rows in LLaMA-Factory's own columns."""
    edges = np.array(spec.edges, dtype=np.int64)
    codes = np.searchsorted(edges, characters(aligned), side="right").astype(np.int32)
    return Labels(codes, spec.ranges)


def characters(aligned: Any) -> np.ndarray:
    """Characters (code points) of the messages of each row, and of its system prompt, int64[n]. Of a pair, of both answers."""
    table = aligned.data
    found = np.zeros(table.num_rows, dtype=np.int64)
    for column in (*_MESSAGES, _SYSTEM):
        start = 0
        for chunk in table.column(column).chunks if column in table.column_names else ():
            found[start : start + len(chunk)] += _lengths(chunk) if column == _SYSTEM else _lengths_of_messages(chunk)
            start += len(chunk)
    return as_read(aligned, found)


def _lengths(texts: pa.Array) -> np.ndarray:
    if pa.types.is_null(texts.type):
        return np.zeros(len(texts), dtype=np.int64)
    return pc.utf8_length(texts).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)


def _lengths_of_messages(rows: pa.Array) -> np.ndarray:
    """rows: list<struct<content, role>>[n]"""
    counts = pc.list_value_length(rows).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    flat = pc.list_flatten(rows)
    if not len(flat) or pa.types.is_null(flat.type):
        return np.zeros(len(rows), dtype=np.int64)
    total = np.concatenate([[0], np.cumsum(_lengths(pc.struct_field(flat, ["content"])))])
    ends = np.cumsum(counts)
    return total[ends] - total[ends - counts]
