"""What pools of 10^4 to 10^8 rows cost: the plan, reading the rows' lengths, and a decision over all of them."""

from __future__ import annotations

import json
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apart
import inside
import numpy as np
from measuring import forget_peak, in_use
from runner import table

BATCH, BATCHES = 64, 256
SHARES = (0.3, 0.2, 0.15, 0.12, 0.1, 0.08, 0.05)
FAR = 3  # epochs
MIB = 1 << 20
_KINDS = ("merged", "7 domains", "half, chosen", "7 domains, tokens")
_PIECE = 1_000_000  # rows of the stored table that larger ones repeat


# -- the plan ----------------------------------------------------------------------------------------------------------


def _make(kind: str, rows: int) -> Callable[[], Any]:
    """Builds a plan of its first stage; what the run has anyway (ids that were chosen, lengths) is there before."""
    from dataflex.plan.plan import Domains, Plan
    from dataflex.plan.stages import chosen_pool

    sizes = [round(rows * p) for p in SHARES]
    domains = Domains(tuple("abcdefg"), (rows - sum(sizes[1:]), *sizes[1:]))
    rng, lengths, ids = np.random.default_rng(0), None, np.empty(0, dtype=np.int64)
    if kind.endswith("tokens"):
        lengths = rng.integers(1, 2048, size=rows, dtype=np.int32)
    if kind.startswith("half"):
        ids = np.flatnonzero(rng.random(rows, dtype=np.float32) < 0.5)

    def make() -> Any:
        plan = Plan(domains, seed=0, lengths=lengths)
        if kind.startswith("half"):
            plan.append(0, [chosen_pool(1, ids)], [1.0])
        elif kind == "merged":
            plan.append(0, plan.merged_pool(), [1.0])
        else:  # not the sizes' own proportions, so that domains end at different times
            plan.append(0, plan.domain_pools(), SHARES[::-1])
        return plan

    return make


def _far(plan: Any) -> Any:
    """The plan of a run that has served as many rows as three times the pool holds, as a checkpoint of it gives it."""
    from dataflex.plan.plan import Plan
    from dataflex.plan.stages import Stage

    (first,) = plan.stages
    start = FAR * sum(len(pool) for pool in first.pools)
    cursors = tuple(round(p * start) for p in first.proportions)
    stage = Stage(7, start, first.pools, first.proportions, cursors, first.carry, first.unit)
    return Plan(plan.domains, plan.seed, lengths=plan.lengths, stages=[stage])


def _microseconds(plan: Any, at_once: int) -> float:
    """Processor time of the look-up of one global batch, on average; at_once: batches per look-up."""
    start = plan.stages[0].start + BATCH
    begin = time.process_time()
    for first in range(0, BATCHES, at_once):
        plan.rows(start + first * BATCH, start + (first + at_once) * BATCH)
    return 1e6 * (time.process_time() - begin) / BATCHES


def plan_of(kind: str, rows: int) -> list[str]:
    from dataflex.data.feed import STEPS_AT_ONCE

    make = _make(kind, rows)
    make().rows(0, BATCH)  # what a process does once
    begin = time.process_time()
    plan = make()
    plan.rows(0, BATCH)
    started = time.process_time() - begin
    single, as_read = _microseconds(plan, 1), _microseconds(make(), STEPS_AT_ONCE)
    later = _far(plan)
    later.rows(later.stages[0].start, later.stages[0].start + BATCH)
    late = _microseconds(later, STEPS_AT_ONCE)
    del plan, later
    tracemalloc.start()
    plan = make()
    _microseconds(plan, STEPS_AT_ONCE)
    peak = tracemalloc.get_traced_memory()[1]
    blocks = sum(s.count for s in tracemalloc.take_snapshot().statistics("filename"))
    held = plan.stages[0].pools[0].ids
    own = 0 if held is None else held.nbytes
    tracemalloc.stop()
    figures = f"{single:.0f}", f"{as_read:.1f}", f"{late:.1f}", f"{own / MIB:.1f}", f"{(peak - own) / MIB:.2f}"
    return [f"{kind}, {rows:.0e}".replace("e+0", "e"), f"{started:.4f}", *figures, f"{blocks}"]


def plans(largest: int) -> str:
    lines = []
    for kind in _KINDS:
        for power in range(4, largest + 1):
            if power <= 7 or not kind.endswith("tokens"):
                lines.append(apart.fresh(plan_of, kind, 10**power))
    header = ("pool", "to start, s", "alone, us", "as read, us", "at epoch 3, us", "ids, MiB", "else, MiB", "objects")
    return f"The plan: processor time for global batches of {BATCH} rows, and what it allocates.\n\n" + table(
        header, lines
    )


# -- reading the rows --------------------------------------------------------------------------------------------------


def _store(file: Path) -> None:
    """`_PIECE` sft rows of 4 to 11 tokens, as `datasets` stores them: a thousand rows to a record batch."""
    import pyarrow as pa

    rng = np.random.default_rng(0)
    schema = pa.schema({"input_ids": pa.list_(pa.int32()), "labels": pa.list_(pa.int64())})
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for _ in range(_PIECE // 1000):
            offsets = np.concatenate([[0], np.cumsum(rng.integers(4, 12, size=1000))]).astype(np.int32)
            ids = rng.integers(0, 1000, size=offsets[-1])
            columns = ids.astype(np.int32), np.where(ids < 500, -100, ids)
            arrays = [pa.ListArray.from_arrays(offsets, values) for values in columns]
            writer.write_batch(pa.record_batch(arrays, schema=schema))


def _rows(file: str, count: int) -> Any:
    """A data set of one memory-mapped table, repeated without a copy."""
    from datasets import Dataset, concatenate_datasets

    from dataflex.data.rows import Rows

    piece = Dataset.from_file(file)
    if count <= _PIECE:
        return Rows([piece.select(range(count)).flatten_indices() if count < _PIECE else piece], ["rows"])
    return Rows([concatenate_datasets([piece] * (count // _PIECE))], ["rows"])


def reading_of(file: str, count: int) -> list[str]:
    import datasets

    datasets.disable_progress_bars()
    rows = _rows(file, count)
    rows.__getitems__([0])
    line = [f"{count:.0e}".replace("e+0", "e")]
    for name in ("lengths", "trainable_tokens", "fingerprints"):
        before, begin = forget_peak(), time.process_time()
        getattr(rows, name)()
        line += [f"{time.process_time() - begin:.2f}", f"{(in_use('VmHWM') - before) * 1024 / count:.1f}"]
    rng, begin = np.random.default_rng(0), time.process_time()
    for _ in range(20):
        rows.__getitems__(rng.integers(0, count, size=BATCH).tolist())
    return [*line, f"{1000 * (time.process_time() - begin) / 20:.2f}"]


def reading(largest: int) -> str:
    with tempfile.TemporaryDirectory(prefix="dataflex-scale-") as folder:
        file = Path(folder) / "rows.arrow"
        _store(file)
        lines = [apart.fresh(reading_of, str(file), 10**power) for power in range(5, largest + 1)]
    names = ("lengths", "trainable", "fingerprint")
    header = ("rows", *(f"{name}, {what}" for name in names for what in ("s", "B/row")), f"{BATCH} rows, ms")
    return (
        "Reading sft rows of 4 to 11 tokens from a memory-mapped table: processor time, peak of resident memory beyond before"
        f" (pages of the table itself included), and the time to fetch {BATCH} rows.\n\n" + table(header, lines)
    )


# -- deciding ----------------------------------------------------------------------------------------------------------


def decision_of(block: dict[str, Any], count: int, folder: str) -> list[str]:
    """One decision of a selector as a run takes it, with values of its signals that are there already."""
    import datasets

    datasets.disable_progress_bars()
    decide, chosen = inside.decision(block, count, BATCH, folder)
    before, begin, wall = forget_peak(), time.process_time(), time.perf_counter()
    decide()
    wall, spent = time.perf_counter() - wall, time.process_time() - begin
    peak = in_use("VmHWM") - before
    (file,) = Path(folder).glob("dataflex/selections/*.parquet")
    per_row = f"{peak * 1024 / count:.1f}", f"{file.stat().st_size / count:.1f}"
    file.unlink()
    return [f"{len(chosen()):,}", f"{spent:.2f}", f"{wall:.2f}", *per_row]


def deciding(largest: int) -> str:
    lines = []
    for block in (
        {"select": {"name": "random", "interval": 100}},
        {"select": {"name": "loss", "focus": "high", "interval": 100}},
        {"select": {"name": "random", "interval": 100, "keep_ratio": 0.5}, "mix": {"name": "static"}},
    ):
        for power in range(5, min(largest, 7 if "loss" in block["select"].values() else 8) + 1):
            with tempfile.TemporaryDirectory(prefix="dataflex-scale-") as folder:
                found = apart.fresh(decision_of, block, 10**power, folder)
            lines.append([f"{json.dumps(block['select'])[1:-1]}".replace('"', ""), f"1e{power}", *found])
    header = ("select", "rows", "chosen", "processor s", "wall s", "peak, B/row", "file, B/row")
    return (
        "A decision, once the signals are measured: choosing, opening the pool and writing the selection of all rows."
        " Memory beyond the signals (8 bytes a row each) and the run's own marks (5 bytes).\n\n" + table(header, lines)
    )
