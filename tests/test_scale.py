"""Large pools and long runs: what is held, and how far an order is followed, does not grow with rows or steps."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, LargeList, Value

from dataflex.components.tools.sampling import lowest
from dataflex.data import rows
from dataflex.data.rows import Rows
from dataflex.plan.plan import Domains, Plan
from dataflex.plan.quota import SCALE
from dataflex.plan.stages import Stage, chosen_pool
from dataflex.record import selection_file
from dataflex.record import snapshot as state
from dataflex.record.exposure import Exposure
from dataflex.record.ledger import RunFiles
from dataflex.record.selection_file import SelectionRecord
from dataflex.signals.asking.ask import Signals
from dataflex.signals.asking.context import MeasureContext
from dataflex.signals.batching import token_batches
from dataflex.trainer.hooks import DynamicTrainer

ROWS = 10**8
SHARES = (0.3, 0.2, 0.15, 0.12, 0.1, 0.08, 0.05)
SEVEN = Domains(tuple("abcdefg"), tuple(round(ROWS * p) for p in reversed(SHARES)))
STEPS, BATCH = 50, 64
MIB = 1 << 20


def merged() -> Plan:
    plan = Plan(SEVEN, 3)
    plan.append(0, plan.merged_pool(), [1.0])
    return plan


def mixed() -> Plan:
    plan = Plan(SEVEN, 3)
    plan.append(0, plan.domain_pools(), SHARES)
    return plan


def chosen(ids: np.ndarray) -> Plan:
    plan = Plan(SEVEN, 3)
    plan.append(0, [chosen_pool(1, ids)], [1.0])
    return plan


def far(plan: Plan, epoch: int) -> Plan:
    """A plan whose only stage begins when `epoch` times as many rows were served as there are."""
    (first,) = plan.stages
    start = epoch * SEVEN.total
    cursors = tuple(round(p * start) for p in first.proportions)
    plan.stages = [Stage(40, start, first.pools, first.proportions, cursors, first.carry)]
    return plan


def traced(work: Callable[[], Any]) -> tuple[int, int]:
    """Peak bytes allocated during `work` and the number of blocks that it leaves."""
    tracemalloc.start()
    kept = work()
    peak = tracemalloc.get_traced_memory()[1]
    blocks = sum(s.count for s in tracemalloc.take_snapshot().statistics("filename"))
    tracemalloc.stop()
    assert kept is not None
    return peak, blocks


# -- the plan ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [0, 3])
@pytest.mark.parametrize("make", [merged, mixed])
def test_a_plan_over_a_hundred_million_rows_holds_next_to_nothing(make: Callable[[], Plan], epoch: int) -> None:
    def work() -> Plan:
        plan = far(make(), epoch)
        start = plan.stages[0].start
        for step in range(STEPS):
            plan.rows(start + step * BATCH, start + (step + 1) * BATCH)
        return plan

    peak, blocks = traced(work)
    assert peak < MIB and blocks < 5000


def test_a_plan_holds_of_a_selection_its_ids_alone() -> None:
    ids = np.arange(1, 2 * MIB, 2)
    plan = chosen(ids)
    peak, blocks = traced(lambda: [plan.rows(0, BATCH), plan.rows(10**7, 10**7 + BATCH), plan])
    assert peak < MIB and blocks < 5000
    served = plan.rows(0, len(ids))
    assert np.array_equal(np.sort(served), ids) and not np.array_equal(served, ids)
    assert not np.array_equal(plan.rows(len(ids), 2 * len(ids)), served)


def test_no_row_of_a_hundred_million_is_served_twice_in_an_epoch() -> None:
    """Over a window at the beginning, in the middle and at the end of the pool, and another order after it."""
    plan = merged()
    windows = [plan.rows(at, at + 200_000) for at in (0, ROWS // 2, ROWS - 200_000)]
    seen = np.concatenate(windows)
    assert len(np.unique(seen)) == len(seen) and seen.min() >= 0 and seen.max() < ROWS
    assert abs(seen.mean() / ROWS - 0.5) < 0.01  # all over the pool
    again = plan.rows(ROWS, ROWS + 200_000)
    assert len(np.unique(again)) == len(again) and not np.array_equal(again, windows[0])
    straddling = plan.rows(ROWS - 5, ROWS + 5)
    assert np.array_equal(straddling, np.concatenate([windows[2][-5:], again[:5]]))


def test_far_into_a_run_domains_are_within_a_row_of_their_share() -> None:
    plan = far(mixed(), 3)
    start = plan.stages[0].start
    ids = plan.rows(start, start + 50_000)
    owner = SEVEN.of(ids)
    realized = np.cumsum(owner[:, None] == np.arange(7), axis=0)
    asked = np.arange(1, len(ids) + 1)[:, None] * np.array(plan.stages[0].proportions)
    assert np.abs(realized - asked).max() < 1
    for d in range(7):  # rows of a domain come from its own epoch, each once
        own = ids[owner == d]
        epochs = (plan.stages[0].cursors[d] + np.arange(len(own))) // SEVEN.sizes[d]
        for epoch in np.unique(epochs):
            assert len(np.unique(own[epochs == epoch])) == np.count_nonzero(epochs == epoch)


# -- going on in the middle of a stage ---------------------------------------------------------------------------------


def long_stage(tokens: bool) -> Plan:
    rng = np.random.default_rng(5)
    domains = Domains(("a", "b", "c"), (3000, 70_000, 500))
    plan = Plan(domains, 9, lengths=rng.integers(1, 900, size=domains.total) if tokens else None)
    plan.append(0, plan.domain_pools(), [0.2, 0.5, 0.3])
    plan.append(7, plan.domain_pools(), [0.55, 0.15, 0.3])
    return plan


@pytest.mark.parametrize("position", [8, 4103, 4104, 20_000])
@pytest.mark.parametrize("tokens", [False, True])
def test_a_resumed_stage_goes_on_without_being_followed_from_its_start(tokens: bool, position: int) -> None:
    plan = long_stage(tokens)
    records = json.loads(json.dumps([stage.to_json() for stage in plan.stages_from(position)]))
    resumed = Plan(plan.domains, plan.seed, lengths=plan.lengths, stages=[Stage.from_json(r, {}) for r in records])
    stop = position + 9000
    assert np.array_equal(resumed.rows(position, stop), plan.rows(position, stop))
    (quota,) = resumed._quotas.values()
    assert len(quota.domains(position - 7, stop - 7)) == 9000 and quota._length - quota._first == 9000
    with pytest.raises(IndexError):
        quota.domains(position - 8, position)
    assert resumed.served(stop) == plan.served(stop)
    limits = [None, plan.served(stop)[1], None]
    assert resumed.first_reach(limits, stop + 50) == plan.first_reach(limits, stop + 50) is not None
    # and so does what follows: remainders, another stage, another checkpoint
    for p in (plan, resumed):
        p.append(stop, p.domain_pools(), [0.4, 0.35, 0.25])
    assert resumed.stages[-1].to_json() == plan.stages[-1].to_json()
    assert [s.to_json() for s in resumed.stages_from(stop - 3)] == [s.to_json() for s in plan.stages_from(stop - 3)]
    assert np.array_equal(resumed.rows(stop - 3, stop + 300), plan.rows(stop - 3, stop + 300))


@pytest.mark.parametrize("tokens", [False, True])
def test_what_was_before_a_checkpoint_can_still_be_asked_for(tokens: bool) -> None:
    plan = long_stage(tokens)
    resumed = Plan(plan.domains, plan.seed, lengths=plan.lengths, stages=plan.stages_from(5000))
    assert np.array_equal(resumed.rows(7, 6000), plan.rows(7, 6000))
    early = [None, plan.served(100)[1], None]
    assert resumed.first_reach(early, 6000) == plan.first_reach(early, 6000) is not None


@pytest.mark.parametrize("tokens", [False, True])
def test_counts_at_any_position_are_those_of_the_sequence(tokens: bool) -> None:
    plan = long_stage(tokens)
    (stage,) = plan.stages_from(7)
    quota = plan._quota(stage, 0)
    sequence = quota.domains(0, 9000).tolist()
    for length in (0, 1, 4095, 4096, 4097, 8192, 9000):
        assert quota.counts(length).tolist() == [sequence[:length].count(d) for d in range(3)]
    served = plan.rows(7, 7 + 8200)
    weights = np.ones(len(served)) if plan.lengths is None else plan.lengths[served]
    amounts = np.bincount(plan.domains.of(served), weights, minlength=3)
    owed = [c + p * int(amounts.sum()) - int(n) * SCALE for c, p, n in zip(stage.carry, stage.parts, amounts)]
    assert quota.remainder(8200) == owed


def test_stages_that_are_over_are_forgotten_with_their_rows() -> None:
    plan = Plan(SEVEN, 3)
    for step in range(10):
        plan.append(10 * step, [chosen_pool(step, np.arange(step, 1000))], [1.0])
    expected = plan.rows(55, 130).tolist()
    plan.forget(55)
    assert [s.index for s in plan.stages] == [5, 6, 7, 8, 9]
    plan.forget(55)
    plan.forget(3)  # before all that is left
    assert plan.rows(55, 130).tolist() == expected and len(plan.stages) == 5
    assert plan.append(200, plan.merged_pool(), [1.0]).index == 10


# -- rows --------------------------------------------------------------------------------------------------------------


def table(count: int, seed: int) -> dict[str, list[list[int]]]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 9, size=count)
    ids = [rng.integers(0, 50, size=n).tolist() for n in lengths]
    return {"input_ids": ids, "labels": [[-100 if t < 20 else t for t in row] for row in ids]}


@pytest.mark.parametrize("pairs", [False, True])
def test_tokens_are_counted_as_one_row_at_a_time_counts_them(pairs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of data sets in several pieces, of rows chosen from another data set, of long offsets, and of none."""
    monkeypatch.setattr(rows, "_MOST_ROWS", 7)
    columns = table(40, 0)
    if pairs:
        other = table(40, 1)
        columns = {
            f"{side}_{name}": v for side, c in (("chosen", columns), ("rejected", other)) for name, v in c.items()
        }
    plain = Dataset.from_dict(columns)
    long = plain.cast(Features({name: LargeList(Value("int64")) for name in columns}))
    parts = [plain, plain.select([9, 3, 3, 39, 0]), plain.select(range(10, 20)), plain.select([]), long]
    data = Rows(parts, list("abcde"))
    ends = [c for c in columns if c.endswith("input_ids")]
    learned = [c for c in columns if c.endswith("labels")]
    whole = [data[i] for i in range(len(data))]
    lengths, trainable = data.lengths(), data.trainable_tokens()
    assert lengths.tolist() == [sum(len(row[c]) for c in ends) for row in whole]
    assert trainable.tolist() == [sum(t != -100 for c in learned for t in row[c][1:]) for row in whole]
    assert lengths.dtype == trainable.dtype == np.int32 and data.lengths() is lengths
    with pytest.raises(ValueError, match="read-only"):
        lengths[0] = 1
    text = Rows([p.select_columns(ends) for p in parts], list("abcde"))
    assert text.trainable_tokens().tolist() == [max(n - 1, 0) for n in lengths.tolist()]


def test_tokens_are_counted_without_an_object_per_row() -> None:
    n, repeated = 200_000, 20
    piece = pa.table(
        {"input_ids": pa.ListArray.from_arrays(np.arange(0, 3 * n + 1, 3, dtype=np.int32), np.zeros(3 * n))}
    )
    data = Rows([Dataset(pa.concat_tables([piece] * repeated))], ["a"])
    peak, blocks = traced(data.lengths)
    assert peak < 4.5 * n * repeated + MIB and blocks < 5000
    plan = Plan(data.domains, 1, lengths=data.lengths())
    assert plan.lengths is data.lengths()  # and nothing is copied


# -- decisions ---------------------------------------------------------------------------------------------------------


def test_the_lowest_values_are_those_that_sorting_gives() -> None:
    rng = np.random.default_rng(0)
    for case in range(60):
        values = rng.integers(0, 6, size=30).astype(np.float64) if case % 2 else rng.standard_normal(30)
        values[rng.random(30) < 0.2] = np.inf
        values[rng.random(30) < case / 200] = np.nan
        for count in (0, 1, 7, 29, 30):
            assert lowest(values, count).tolist() == np.argsort(values, kind="stable")[:count].tolist()


@pytest.mark.parametrize("longest", [40, 40_000])
def test_batches_of_any_lengths_are_those_of_one_stable_order(longest: int) -> None:
    lengths = np.random.default_rng(0).integers(0, longest, size=300).astype(np.int32)
    lengths[7] = longest
    order = np.concatenate(token_batches(lengths, 64))
    assert order.tolist() == sorted(range(300), key=lambda i: -int(lengths[i]))


def test_a_selection_is_written_a_part_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    domains = Domains(("a", "b"), (6, 5))
    scores = np.array([0.5, np.nan, *range(9)])
    selected = np.array([10, 3, 3, 0])
    files, read = RunFiles(tmp_path, domains, writes=True), []
    for at_once in (100, 4):
        monkeypatch.setattr(selection_file, "ROWS_AT_ONCE", at_once)
        record = SelectionRecord(domains, [selected], scores, tokens=np.arange(11, dtype=np.int32))
        read.append(pq.ParquetFile(files.path / files.write_selection(at_once, record)))
    one, several = read
    assert (one.num_row_groups, several.num_row_groups) == (1, 3)
    assert several.read().to_pydict() == one.read().to_pydict() == {
        "sample_id": list(range(11)),
        "domain": ["a"] * 6 + ["b"] * 5,
        "score": [0.5, None, *map(float, range(9))],
        "selected": [i in (0, 3, 10) for i in range(11)],
        "rank": [4, None, None, 2, None, None, None, None, None, None, 1],
        "tokens": list(range(11)),
        "times": [1, 0, 0, 2, 0, 0, 0, 0, 0, 0, 1],
    }  # fmt: skip


def test_the_rows_of_a_selection_take_four_bytes_in_a_checkpoint(tmp_path: Path) -> None:
    plan = chosen(np.array([5, 99_999_999, 7]))
    snapshot = state.Snapshot(1, 0, 1, {}, plan.stages_from(0), {}, {})
    state.write_snapshot(tmp_path, snapshot, bytearray(b"{}\n"))
    with np.load(tmp_path / "dataflex" / "arrays.npz") as stored:
        assert [stored[name].dtype for name in stored] == [np.dtype(np.int32)]
    (stage,) = state.read_snapshot(tmp_path)[0].stages
    ids = stage.pools[0].ids
    assert ids is not None and ids.dtype == np.int64 and ids.tolist() == [5, 7, 99_999_999]
    assert state._narrow(np.array([5, 1 << 31])).dtype == np.int64


def test_what_was_measured_is_let_go_when_parameters_change() -> None:
    class Stock:
        def training_step(self, *args: Any) -> str:
            return "trained"

    class Trainer(DynamicTrainer, Stock):  # type: ignore[misc]
        def __init__(self) -> None:
            self.weights, self.signals = None, Signals(context, None)  # type: ignore[arg-type]

    nothing: Any = None
    context = MeasureContext(SimpleNamespace(step=4), *[nothing] * 4, stage="sft", seed=0)  # type: ignore[arg-type]
    context.once("loss", lambda: np.zeros(3))
    assert len(context.of_step()) == 1
    assert Trainer().training_step(None, {}) == "trained" and context.of_step() == {}


def test_recording_a_decision_does_not_copy_those_before_it(tmp_path: Path) -> None:
    files = RunFiles(tmp_path, SEVEN, writes=True)
    files.start({})
    text = files.ledger_text
    for step in range(3):
        files.record({"step": step})
    assert files.ledger_text is text and bytes(text) == (files.path / "ledger.jsonl").read_bytes()


def test_touched_rows_are_merged_as_counting_them_one_by_one_does() -> None:
    rng, table, expected = np.random.default_rng(2), Exposure(SEVEN), {}
    for step in range(1, 30):
        ids = rng.integers(0, 60, size=rng.integers(0, 12)) * 1_000_000
        losses = rng.random(len(ids)).astype(np.float32)
        table.merge(ids, losses, -losses, np.full(len(ids), step))
        for i, loss in zip(ids.tolist(), losses, strict=True):
            expected[i] = (expected.get(i, (0,))[0] + 1, step, float(loss))
    assert table.ids.tolist() == sorted(expected)
    assert [expected[i][:2] for i in sorted(expected)] == list(zip(table.seen.tolist(), table.step.tolist()))
    assert [expected[i][2] for i in sorted(expected)] == table.loss.tolist() == (-table.weight).tolist()
    assert [a.dtype for a in (table.ids, table.seen, table.loss, table.step)] == ["int64", "int64", "float32", "int64"]
