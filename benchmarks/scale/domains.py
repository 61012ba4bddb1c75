"""What it costs to find the domains of 10^7 and 10^8 rows, before anything is tokenized."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import apart
import numpy as np
from measuring import forget_peak, in_use
from runner import table

NAMES = ("CommonCrawl", "C4", "GitHub", "StackExchange", "Wikipedia", "ArXiv", "Books")
SHARES = (0.52, 0.27, 0.06, 0.04, 0.04, 0.04, 0.03)
_PIECE = 1_000_000  # rows that larger tables repeat without a copy
_WAYS = ("column", "JSON text", "column and where", "file", "length")


def _stored(way: str, rows: int) -> Any:
    """A data set in memory, whose rows name their source and have a number; one chunk, as often as there are rows."""
    import pyarrow as pa
    from datasets import Dataset
    from datasets.table import InMemoryTable

    rng, piece = np.random.default_rng(0), min(rows, _PIECE)
    names = pa.array(NAMES).take(pa.array(rng.choice(len(NAMES), size=piece, p=SHARES)))
    columns: dict[str, Any] = {"source": names, "quality": pa.array(rng.integers(0, 10, size=piece))}
    if way == "JSON text":
        said = [json.dumps({"redpajama_set_name": name}) for name in names.to_pylist()]
        columns = {"meta": pa.array(said)}
    if way == "length":
        words = pa.array(["x" * 40, "x" * 80]).take(pa.array(rng.integers(0, 2, size=piece)))
        messages = pa.StructArray.from_arrays([words, words], ["content", "role"])
        lists = pa.ListArray.from_arrays(np.arange(piece + 1, dtype=np.int32), messages)
        columns = {"_prompt": lists, "_response": lists}
    chunks = {name: pa.chunked_array([values] * (rows // piece)) for name, values in columns.items()}
    return Dataset(InMemoryTable(pa.table(chunks)), fingerprint="benchmark")


def _spec(way: str, rows: int, folder: str) -> Any:
    from dataflex.config.schema import DomainsKeys, WhereKeys

    match way:
        case "JSON text":
            return DomainsKeys(by="column", column="meta.redpajama_set_name")
        case "column and where":
            return DomainsKeys(by="column", column="source", where=(WhereKeys(column="quality", min=3),))
        case "file":
            return DomainsKeys(by="file", path=f"{folder}/names-{rows}.parquet")
        case "length":
            return DomainsKeys(by="length", edges=(100,))
        case _:
            return DomainsKeys(by="column", column="source")


def finding_of(way: str, rows: int, folder: str) -> list[str]:
    """Seconds and bytes a row: the domain of each row, and the rows of each domain as a run keeps them."""
    import datasets
    import pyarrow.parquet as pq

    from dataflex.base.loading.reading import ReadData
    from dataflex.base.loading.split import assigned_rows, rows_of_domains

    datasets.disable_progress_bars()
    stored, spec = _stored(way, rows), _spec(way, rows, folder)
    if way == "file":
        pq.write_table(stored.data.table.select(["source"]).rename_columns(["domain"]), spec.path)
    read = {"corpus": ReadData(None, stored, stored)}
    before, begin = forget_peak(), time.process_time()
    assigned = assigned_rows(read, spec, None)
    found = time.process_time() - begin
    peak, held = in_use("VmHWM") - before, sum(codes.nbytes for codes in assigned.codes.values())
    begin = time.process_time()
    parts = rows_of_domains(read, assigned)
    split = time.process_time() - begin
    whole = in_use("VmHWM") - before
    indices = sum(part._indices.nbytes for part in parts.values() if part._indices is not None)
    assert sum(map(len, parts.values())) == rows - sum(assigned.left_out.values())
    if way == "file":
        Path(spec.path).unlink()
    per_row = (f"{peak * 1024 / rows:.1f}", f"{held / rows:.1f}")
    return [f"{found:.2f}", *per_row, f"{split:.2f}", f"{whole * 1024 / rows:.1f}", f"{indices / rows:.1f}"]


def finding(largest: int, folder: str) -> str:
    lines = [
        [way, f"1e{power}", *apart.fresh(finding_of, way, 10**power, folder)]
        for way in _WAYS
        for power in (largest - 1, largest)
    ]
    header = ("by", "rows", "domains, s", "peak, B/row", "kept, B/row", "rows of each, s", "peak, B/row", "kept, B/row")
    return (
        "The domain of each row (seven names; by length two ranges), and then the rows of each domain: processor time, peak of"
        " resident memory beyond the data itself, and what is kept. No step has a Python loop over rows.\n\n"
    ) + table(header, lines)
