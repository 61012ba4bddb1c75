"""Which row comes at which position: permutations, quotas, stages, and their delivery to ranks and loader workers."""

from __future__ import annotations

import json
import multiprocessing
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflex.data.feed import Feed
from dataflex.data.rows import SAMPLE_IDS, Rows
from dataflex.plan.permutation import Permutation, derive_key, generator, mix64
from dataflex.plan.plan import Domains, Plan
from dataflex.plan.quota import SCALE, Quota, normalise_carry, quantise
from dataflex.plan.stages import Pool, Stage, chosen_pool
from dataflex.plan.token_quota import TokenQuota, honoured

LENGTHS = (1, 2, 3, 7, 65536, 65537, 100003)
DOMAINS = Domains(("a", "b", "c"), (50, 30, 7))


# -- numbers ---------------------------------------------------------------------------------------------------------


def test_mix64_is_splitmix64() -> None:
    """The first outputs of the reference generator for the seeds 0 and 1234567."""
    assert int(mix64(0)) == 0xE220A8397B1DCDAF
    assert int(mix64(1234567)) == 6457827717110365317


def test_keys_and_generators_depend_on_every_part_and_on_their_order() -> None:
    keys = [derive_key(*parts) for parts in ((), (0,), (1,), (0, 0), (0, 1), (1, 0), (-1,), (2**64 - 2,), (0, 1, 0))]
    assert len(set(keys)) == len(keys)
    assert derive_key(-1) == derive_key(2**64 - 1)
    first = generator(3, 4).integers(2**62, size=5).tolist()
    assert generator(3, 4).integers(2**62, size=5).tolist() == first
    assert generator(4, 3).integers(2**62, size=5).tolist() != first


@pytest.mark.parametrize("n", LENGTHS)
def test_a_permutation_is_a_bijection_that_can_be_read_in_any_pieces(n: int) -> None:
    permutation = Permutation(n, 99)
    whole = permutation(np.arange(n))
    assert whole.dtype == np.int64
    assert np.array_equal(np.sort(whole), np.arange(n))
    order = np.random.default_rng(n).permutation(n)
    pieces = np.array_split(order, 5)
    fresh = Permutation(n, 99)
    assert np.array_equal(np.concatenate([fresh(piece) for piece in reversed(pieces)][::-1]), whole[order])
    assert fresh(np.empty(0, dtype=np.int64)).size == 0


@pytest.mark.parametrize("n", (7, 65536, 65537, 100003))
def test_another_key_gives_another_permutation(n: int) -> None:
    orders = [Permutation(n, key)(np.arange(n)) for key in range(4)]
    for i in range(4):
        for j in range(i):
            assert not np.array_equal(orders[i], orders[j])
            assert n == 7 or (orders[i] == orders[j]).sum() < 20  # about one by chance


def test_every_order_of_three_rows_comes_up() -> None:
    assert len({tuple(Permutation(3, key)(np.arange(3)).tolist()) for key in range(200)}) == 6


@pytest.mark.parametrize("n", (50, 65537))
def test_a_permutation_keeps_the_shape_of_what_it_is_asked(n: int) -> None:
    flat = Permutation(n, 5)(np.arange(24))
    for shape in ((24,), (4, 6), (2, 3, 4)):
        assert Permutation(n, 5)(np.arange(24).reshape(shape)).tolist() == flat.reshape(shape).tolist()
    assert [int(Permutation(n, 5)(np.asarray(i))) for i in range(24)] == flat.tolist()


def test_a_permutation_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one element"):
        Permutation(0, 1)


def test_the_order_is_the_one_earlier_versions_wrote() -> None:
    """A change of these numbers changes the data of every run in progress."""
    assert Permutation(10, 1)(np.arange(10)).tolist() == [8, 0, 6, 7, 9, 4, 2, 5, 1, 3]
    assert Permutation(100003, 1)(np.arange(6)).tolist() == [83481, 68337, 10559, 22030, 70356, 92685]
    plan = Plan(DOMAINS, seed=42)
    plan.append(0, plan.domain_pools(), [0.5, 0.3, 0.2])
    plan.append(7, plan.stages[0].pools, [0.2, 0.2, 0.6])
    assert plan.rows(0, 16).tolist() == [22, 76, 44, 83, 18, 52, 20, 85, 84, 70, 80, 82, 41, 81, 64, 86]


# -- quotas ----------------------------------------------------------------------------------------------------------

_SHARE = st.one_of(st.just(0.0), st.floats(1e-15, 1e-3), st.floats(1e-3, 1.0))
_STAGE = st.tuples(st.lists(_SHARE, min_size=12, max_size=12), st.integers(0, 40))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(k=st.integers(1, 12), stages=st.lists(_STAGE, min_size=1, max_size=4))
def test_no_domain_is_ever_a_whole_sample_from_its_share(k: int, stages: list[tuple[list[float], int]]) -> None:
    """At every position of every stage, in units of 1 / SCALE of a sample; what is carried on adds up to nothing."""
    carry = [0] * k
    for shares, length in stages:
        wanted = shares[:k] if sum(shares[:k]) > 0 else [1.0] + [0.0] * (k - 1)
        parts = quantise(wanted)
        assert sum(parts) == SCALE and min(parts) >= 0
        assert all(abs(p - w / sum(wanted) * SCALE) <= 1 for p, w in zip(parts, wanted, strict=True))
        carry = normalise_carry(carry, parts)
        assert sum(carry) == 0
        assert all(c == 0 for c, p in zip(carry, parts, strict=True) if p == 0)
        quota, realized = Quota(parts, carry), [0] * k
        sequence = quota.domains(0, length).tolist()
        for j, d in enumerate([None, *sequence]):
            if d is not None:
                realized[d] += 1
            owed = [c + p * j - r * SCALE for c, p, r in zip(carry, parts, realized, strict=True)]
            assert all(-SCALE < o < SCALE for o in owed), f"position {j}: {owed}"
        assert quota.counts(length).tolist() == realized
        assert quota.remainder(length) == owed and sum(owed) == 0
        carry = owed


def plan_of(k: int) -> Plan:
    return Plan(Domains(tuple(map(str, range(k))), (1000,) * k), seed=3)


@pytest.mark.parametrize(
    "shares",
    [[0.9, 0.07, 0.03], [0.3, 0.25, 0.2, 0.15, 0.1], [1 / 12] * 12, [0.45, *[0.05] * 11]],
    ids=["three", "five", "twelve-alike", "one-large"],
)
def test_counts_do_not_drift_over_many_short_stages(shares: list[float]) -> None:
    """200 stages of 7 positions with unchanged proportions: each domain is under one sample from its share throughout."""
    plan = plan_of(len(shares))
    for s in range(200):
        plan.append(7 * s, plan.domain_pools(), shares)
    parts = plan.stages[0].parts
    assert {stage.parts for stage in plan.stages} == {parts}
    for s, stage in enumerate(plan.stages):
        assert all(abs(n * SCALE - p * 7 * s) < SCALE for n, p in zip(stage.cursors, parts, strict=True)), f"stage {s}"


def test_counts_do_not_drift_while_proportions_change_a_little() -> None:
    """As a mixer that has settled: what a change leaves unpaid is under one more sample, and does not add up."""
    plan, asked = plan_of(12), np.zeros(12, dtype=np.int64)
    rng = np.random.default_rng(0)
    for s in range(200):
        stage = plan.append(7 * s, plan.domain_pools(), rng.uniform(0.98, 1.02, size=12).tolist())
        served = np.asarray(stage.cursors, dtype=np.int64)
        assert np.abs(served * SCALE - asked).max() < 2 * SCALE, f"stage {s}"
        asked += 7 * np.asarray(stage.parts, dtype=np.int64)


@pytest.mark.parametrize("k", [1, 5, 12])
def test_a_continued_stage_serves_the_rows_of_an_uninterrupted_one(k: int) -> None:
    whole, cut = plan_of(k), plan_of(k)
    whole.append(0, whole.domain_pools(), [1 / k] * k)
    for start in (0, 5, 6, 31, 64, 150):
        cut.append(start, cut.domain_pools(), [1 / k] * k)
    assert cut.rows(0, 300).tolist() == whole.rows(0, 300).tolist()


def test_a_quota_is_exact_where_the_share_is_a_whole_number() -> None:
    quota = Quota(quantise([0.5, 0.25, 0.25]), [0, 0, 0])
    assert [quota.counts(4 * n).tolist() for n in (1, 2, 25)] == [[2, 1, 1], [4, 2, 2], [50, 25, 25]]
    assert quota.domains(3, 9).tolist() == quota.domains(0, 9).tolist()[3:]


@pytest.mark.parametrize("bad", [[], [0.0, 0.0], [-0.1, 1.1], [float("nan"), 1.0], [float("inf"), 1.0], [[0.5, 0.5]]])
def test_proportions_that_mean_nothing_are_refused(bad: list[Any]) -> None:
    with pytest.raises(ValueError, match="proportions"):
        quantise(bad)


# -- the plan --------------------------------------------------------------------------------------------------------


def six_stages(seed: int = 11, held: int = 6) -> Plan:
    """Whole domains, other proportions, chosen pools (one with a repeated id), a domain switched off and on again."""
    plan = Plan(DOMAINS, seed)
    whole = plan.domain_pools()
    chosen = (chosen_pool(2, np.arange(0, 50, 3)), chosen_pool(2, [50, 79, 61, 61]), chosen_pool(2, [86, 80, 83]))
    stages: list[tuple[int, Sequence[Pool], list[float]]] = [
        (0, whole, [0.5, 0.3, 0.2]),
        (41, whole, [0.2, 0.2, 0.6]),
        (97, chosen, [0.1, 0.8, 0.1]),
        (97, chosen, [0.4, 0.6, 0.0]),
        (150, chosen, [0.3, 0.3, 0.4]),
        (203, whole, [0.6, 0.3, 0.1]),
    ]
    for stage in stages[:held]:
        plan.append(*stage)
    return plan


def test_rows_are_a_pure_function_of_the_position() -> None:
    total = 400
    whole = six_stages().rows(0, total)
    assert whole.shape == (total,) and whole.dtype == np.int64
    rng = np.random.default_rng(0)
    reread = six_stages()
    for _ in range(40):
        start, stop = sorted(rng.integers(0, total + 1, size=2).tolist())
        assert np.array_equal(reread.rows(start, stop), whole[start:stop])
    assert [int(reread.rows(t, t + 1)[0]) for t in reversed(range(total))] == whole[::-1].tolist()
    assert not np.array_equal(six_stages(seed=12).rows(0, total), whole)
    assert reread.rows(5, 5).size == 0


@pytest.mark.parametrize("held", range(1, 7))
def test_a_plan_goes_on_from_its_last_stage_alone(held: int) -> None:
    """Through JSON and the ids of the chosen pools, as in a checkpoint; stages appended afterwards are the same too."""
    first = six_stages(held=held)
    last = first.stages[-1]
    ids = {of: rows.copy() for of, rows in last.arrays().items()}
    second = Plan(DOMAINS, 11, stages=[Stage.from_json(json.loads(json.dumps(last.to_json())), ids)])
    position = last.start + 37
    for plan in (first, second):
        plan.append(position, plan.stages[-1].pools, [0.25, 0.5, 0.25])
        plan.append(position + 20, (chosen_pool(9, [1, 2, 3]), *plan.domain_pools()[1:]), [0.1, 0.1, 0.8])
    assert second.rows(last.start, position + 90).tolist() == first.rows(last.start, position + 90).tolist()
    assert [s.to_json() for s in second.stages] == [s.to_json() for s in first.stages[held - 1 :]]
    assert second.served(position + 90) == first.served(position + 90)
    if last.start:
        with pytest.raises(IndexError, match="no stage covers"):
            second.rows(last.start - 1, last.start)


def test_no_row_repeats_before_its_pool_is_used_up() -> None:
    """Across four stages over the same pools, one with a domain switched off; each epoch is a permutation of its own."""
    plan = Plan(DOMAINS, 5)
    for start, shares in ((0, [0.2, 0.2, 0.6]), (33, [0.5, 0.5, 0.0]), (80, [0.3, 0.4, 0.3]), (81, [0.6, 0.2, 0.2])):
        plan.append(start, plan.domain_pools(), shares)
    rows = plan.rows(0, 700)
    for d, size in enumerate(DOMAINS.sizes):
        drawn = rows[DOMAINS.of(rows) == d].tolist()
        assert len(drawn) > 2 * size
        epochs = [drawn[i : i + size] for i in range(0, len(drawn), size)]
        assert all(len(set(epoch)) == len(epoch) for epoch in epochs)
        assert len(set(map(tuple, epochs))) == len(epochs)
        assert sorted(epochs[0]) == list(range(DOMAINS.offsets[d], DOMAINS.offsets[d + 1]))
        assert plan.served(700)[d] == len(drawn)


def test_a_change_of_proportions_moves_no_row_within_its_domain() -> None:
    steady, changed = Plan(DOMAINS, 5), Plan(DOMAINS, 5)
    steady.append(0, steady.domain_pools(), [0.4, 0.3, 0.3])
    changed.append(0, changed.domain_pools(), [0.1, 0.1, 0.8])
    changed.append(13, changed.domain_pools(), [0.7, 0.2, 0.1])
    a, b = steady.rows(0, 300), changed.rows(0, 300)
    for d in range(3):
        one, other = a[DOMAINS.of(a) == d], b[DOMAINS.of(b) == d]
        common = min(len(one), len(other))
        assert common > 20 and one[:common].tolist() == other[:common].tolist()


def test_chosen_pools_are_drawn_from_alone_with_their_repetitions() -> None:
    ids = [3, 60, 3, 8, 60, 3]
    plan = Plan(DOMAINS, 1)
    plan.append(0, (chosen_pool(1, ids),), [1.0])
    rows = plan.rows(0, 12).tolist()
    assert Counter(rows[:6]) == Counter(rows[6:]) == Counter(ids)
    other = Plan(DOMAINS, 1)
    other.append(0, (chosen_pool(1, ids[::-1]),), [1.0])
    assert other.rows(0, 12).tolist() == rows  # the selector's order does not matter


def test_a_new_pool_starts_anew_and_a_kept_one_goes_on() -> None:
    plan = Plan(Domains(("a",), (100,)), 1)
    old, new = chosen_pool(1, np.arange(40)), chosen_pool(2, np.arange(40))
    plan.append(0, (old,), [1.0])
    assert plan.append(30, (old,), [1.0]).cursors == (30,)
    assert plan.append(50, (new,), [1.0]).cursors == (0,)
    rows = plan.rows(0, 90).tolist()
    assert sorted(rows[:40]) == sorted(rows[50:90]) == list(range(40))
    assert rows[:40] != rows[50:90]


def test_unshuffled_rows_come_in_order() -> None:
    merged = Plan(DOMAINS, 1, shuffle=False)
    merged.append(0, merged.merged_pool(), [1.0])
    assert merged.rows(0, 174).tolist() == [*range(87), *range(87)]
    mixed = Plan(DOMAINS, 1, shuffle=False)
    mixed.append(0, mixed.domain_pools(), [0.5, 0.25, 0.25])
    rows = mixed.rows(0, 40)
    assert rows[DOMAINS.of(rows) == 0].tolist() == list(range(20))
    assert rows[DOMAINS.of(rows) == 2].tolist() == [80 + i % 7 for i in range(10)]


def test_a_pool_of_a_hundred_million_rows_costs_no_memory() -> None:
    size = 10**8
    merged, mixed = (Plan(Domains(("a", "b"), (size, size)), 1) for _ in range(2))
    merged.append(0, merged.merged_pool(), [1.0])
    mixed.append(0, mixed.domain_pools(), [0.5, 0.5])
    tracemalloc.start()
    try:
        edge = merged.rows(2 * size - 500, 2 * size + 500)
        rows = mixed.rows(0, 1000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20
    assert len(set(edge[:500].tolist())) == len(set(edge[500:].tolist())) == 500
    assert edge.min() >= 0 and edge.max() < 2 * size
    assert (rows < size).sum() == 500 and len(set(rows.tolist())) == 1000


def test_stages_that_cannot_be_are_refused() -> None:
    plan = Plan(DOMAINS, 1)
    plan.append(10, plan.domain_pools(), [1.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="cannot follow"):
        plan.append(9, plan.domain_pools(), [1.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="pool 1 is empty"):
        plan.append(20, (Pool(0, 0, 5), Pool(0), Pool(0)), [0.5, 0.5, 0.0])
    with pytest.raises(ValueError, match="one proportion"):
        Stage(index=0, start=0, pools=(Pool(0, 0, 5),), proportions=(0.5, 0.5), cursors=(0,), carry=(0,))
    with pytest.raises(IndexError, match="no stage covers position 9"):
        plan.rows(9, 11)
    with pytest.raises(ValueError, match="one size per domain"):
        Domains(("a",), (1, 2))


# -- delivery --------------------------------------------------------------------------------------------------------


def pairs(features: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """A collator: the id of each row and the token it holds."""
    return [(f[SAMPLE_IDS], f["input_ids"][0]) for f in features]


def served(ranks: int, accumulation: int, workers: int = 0, rank: int = 0) -> tuple[Plan, Feed]:
    """Three domains whose row i holds the token 1000 + i, in global batches of 8."""
    offsets, sizes = DOMAINS.offsets, DOMAINS.sizes
    tokens = [[[1000 + int(o) + i] for i in range(n)] for o, n in zip(offsets, sizes, strict=False)]
    rows = Rows([Dataset.from_dict({"input_ids": t}) for t in tokens], DOMAINS.names)
    plan = Plan(rows.domains, 2)
    plan.append(0, plan.domain_pools(), [0.5, 0.3, 0.2])
    layout = {"per_device": 8 // ranks // accumulation, "accumulation": accumulation, "rank": rank, "ranks": ranks}
    return plan, Feed(rows, pairs, plan.rows, workers=workers, prefetch=3, **layout)


def read(feed: Feed, plan: Plan, position: int, steps: int) -> list[list[list[int]]]:
    """Ids of the next steps by micro-batch; checks the tokens and the counts per domain against the plan."""
    out = []
    for step in range(steps):
        batches, counts, _ = feed.next_step()
        assert all(token == 1000 + i for batch in batches for i, token in batch)
        batch = plan.rows(position + 8 * step, position + 8 * step + 8)
        assert counts.tolist() == np.bincount(DOMAINS.of(batch), minlength=3).tolist()
        out.append([[i for i, _ in batch] for batch in batches])
    return out


@pytest.mark.parametrize("ranks, accumulation", [(1, 1), (1, 4), (4, 1), (4, 2), (2, 2)])
def test_any_number_of_ranks_serves_the_same_global_batches(ranks: int, accumulation: int) -> None:
    steps, position = 12, 16
    by_rank = []
    for rank in range(ranks):
        plan, feed = served(ranks, accumulation, rank=rank)
        feed.open(position, steps)
        by_rank.append(read(feed, plan, position, steps))
    for step in range(steps):
        together = [i for micro in range(accumulation) for rank in range(ranks) for i in by_rank[rank][step][micro]]
        assert together == plan.rows(position + 8 * step, position + 8 * step + 8).tolist()


def flat(steps: Sequence[list[list[int]]]) -> list[int]:
    return [i for step in steps for batch in step for i in batch]


@pytest.mark.parametrize("workers", [0, 2])
def test_spans_can_be_reopened_in_the_middle_with_any_number_of_workers(workers: int) -> None:
    """What workers had read ahead is dropped with its counts, torch's own generator is never drawn from, none stays."""
    plan, feed = served(1, 2, workers)
    before, running = torch.get_rng_state(), set(multiprocessing.active_children())
    feed.open(0, 6)
    assert flat(read(feed, plan, 0, 2)) == plan.rows(0, 16).tolist()
    feed.open(40, 3)
    assert flat(read(feed, plan, 40, 3)) == plan.rows(40, 64).tolist()
    with pytest.raises(StopIteration):
        feed.next_step()
    plan.append(64, plan.domain_pools(), [0.0, 0.0, 1.0])
    feed.open(64, 2)
    assert flat(read(feed, plan, 64, 2)) == plan.rows(64, 80).tolist()
    assert (plan.rows(64, 80) >= 80).all()
    assert len(multiprocessing.active_children()) == len(running) + workers
    feed.close()
    assert set(multiprocessing.active_children()) == running
    assert torch.equal(torch.get_rng_state(), before)


def test_a_stage_cut_into_pieces_is_the_uncut_stage() -> None:
    """Unchanged proportions, up to 12 domains: remainders are honoured as they are, wherever a stage is cut."""
    rng = np.random.default_rng(11)
    for _ in range(60):
        k = int(rng.integers(2, 13))
        parts = quantise(rng.dirichlet(np.ones(k)))
        carry, pieces = [0] * k, []
        for length in rng.integers(1, 30, size=40):
            assert normalise_carry(carry, parts) == carry
            quota = Quota(parts, carry)
            pieces.append(quota.domains(0, int(length)).copy())
            carry = quota.remainder(int(length))
        order = np.concatenate(pieces)
        assert np.array_equal(order, Quota(parts, [0] * k).domains(0, len(order)))


def test_remainders_no_order_can_honour_are_shrunk() -> None:
    """Two domains owed 0.8 each and a first position that both must have: the bound comes first."""
    parts = quantise([0.5, 0.5 - 2e-6, 1e-6, 1e-6])
    owed = [SCALE * 8 // 10, SCALE * 8 // 10, -SCALE * 8 // 10, -SCALE * 8 // 10]
    carry = normalise_carry(owed, parts)
    assert sum(carry) == 0 and carry != owed
    counts = np.zeros(4, dtype=object)
    for j, d in enumerate(Quota(parts, carry).domains(0, 500).tolist(), start=1):
        counts[d] += 1
        assert all(abs(c + p * j - int(n) * SCALE) < SCALE for c, p, n in zip(carry, parts, counts, strict=True))


# -- tokens ----------------------------------------------------------------------------------------------------------


def token_plan(k: int, seed: int, longest: int, rows: int = 40) -> Plan:
    """k domains of rows between 1 and `longest` tokens, one of them that long."""
    lengths = np.random.default_rng(seed).integers(1, longest + 1, size=k * rows)
    lengths[seed % len(lengths)] = longest
    return Plan(Domains(tuple(map(str, range(k))), (rows,) * k), seed, lengths=lengths)


def lags(plan: Plan, stop: int) -> list[list[int]]:
    """What each domain is owed at each position of the latest stage up to `stop`, in units of 1 / SCALE of a token."""
    stage, lengths = plan.stages[-1], plan.lengths
    assert lengths is not None
    work, out = [0] * len(plan.domains), [list(stage.carry)]
    for i in plan.rows(stage.start, stop):
        work[int(plan.domains.of(i))] += int(lengths[i])
        out.append([c + p * sum(work) - w * SCALE for c, p, w in zip(stage.carry, stage.parts, work, strict=True)])
    return out


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    k=st.integers(2, 12),
    seed=st.integers(0, 1000),
    longest=st.sampled_from([1, 3, 50, 2000]),
    stages=st.lists(_STAGE, min_size=1, max_size=4),
)
def test_no_domain_is_ever_more_than_a_row_from_its_share_of_tokens(
    k: int, seed: int, longest: int, stages: list[tuple[list[float], int]]
) -> None:
    """At every position of every stage, with the remainders carried in; what is carried on is what was owed."""
    plan, position, owed = token_plan(k, seed, longest), 0, [0] * k
    for shares, length in stages:
        wanted = shares[:k] if sum(shares[:k]) > 0 else [1.0] + [0.0] * (k - 1)
        stage = plan.append(position, plan.domain_pools(), wanted)
        assert sum(stage.carry) == 0 and (stage.unit, stage.start) == ("tokens", position)
        kept = normalise_carry(owed, stage.parts, lambda _: True)
        assert list(stage.carry) == kept or not honoured(kept, stage.parts, partial(plan._lengths, stage), longest)
        position += length
        found = lags(plan, position)
        assert all(-longest * SCALE < lag <= longest * SCALE for row in found for lag in row)
        owed = found[-1]
        assert plan._progress(stage, position)[1] == owed and sum(owed) == 0


def by_definition(parts: list[int], carry: list[int], rows: list[list[int]], length: int) -> list[int]:
    """WF2Q as it is written down, in fractions: of the rows that may come, the one asked for in full the soonest."""
    next_row, work, order = [0] * len(parts), [0] * len(parts), []
    for _ in range(length):
        total, finish = sum(work), {}
        for d, (p, c) in enumerate(zip(parts, carry, strict=True)):
            if p and Fraction(c + p * total, SCALE) >= work[d]:
                finish[d] = (Fraction((work[d] + rows[d][next_row[d]]) * SCALE - c, p), d)
        d = min(finish, key=lambda d: finish[d])
        work[d] += rows[d][next_row[d]]
        next_row[d] += 1
        order.append(d)
    return order


@pytest.mark.parametrize("seed", range(40))
def test_tokens_are_shared_as_the_rule_says(seed: int) -> None:
    """Ties included: few lengths, and shares that are alike."""
    rng = np.random.default_rng(seed)
    k = int(rng.integers(2, 7))
    rows = rng.integers(1, [3, 30, 500][seed % 3], size=(k, 600)).tolist()
    parts = quantise(np.ones(k) if seed % 4 == 0 else rng.dirichlet(np.ones(k)))
    before = TokenQuota(parts, [0] * k, lambda d, first, count: np.array(rows[d][first : first + count]))
    carry = before.remainder(int(rng.integers(0, 20))) if seed % 2 else [0] * k
    quota = TokenQuota(parts, carry, lambda d, first, count: np.array((rows[d] * 2)[first : first + count]))
    assert quota.domains(0, 90).tolist() == by_definition(parts, carry, rows, 90)


def test_tokens_are_not_samples() -> None:
    """Half the tokens from rows of 30 and half from rows of 10: three of the short ones for each long one."""
    plan = Plan(Domains(("long", "short"), (50, 50)), 1, lengths=np.repeat([30, 10], 50))
    plan.append(0, plan.domain_pools(), [0.5, 0.5])
    assert np.bincount(plan.domains.of(plan.rows(0, 80))).tolist() == [20, 60]


@pytest.mark.parametrize("k", [2, 5, 12])
def test_a_stage_of_tokens_cut_into_pieces_is_the_uncut_stage(k: int) -> None:
    shares = np.random.default_rng(k).dirichlet(np.ones(k)).tolist()
    whole, cut, position = token_plan(k, 4, 700), token_plan(k, 4, 700), 0
    whole.append(0, whole.domain_pools(), shares)
    for length in np.random.default_rng(k).integers(0, 20, size=60).tolist():
        cut.append(position, cut.domain_pools(), shares)
        position += length
    assert cut.rows(0, position).tolist() == whole.rows(0, position).tolist()
    assert cut._progress(cut.stages[-1], position) == whole._progress(whole.stages[-1], position)


def test_a_plan_in_tokens_goes_on_from_its_last_stage_and_reads_any_piece() -> None:
    plan = token_plan(3, 8, 90)
    for start, shares in ((0, [0.5, 0.3, 0.2]), (31, [0.1, 0.6, 0.3]), (77, [0.3, 0.0, 0.7])):
        plan.append(start, plan.domain_pools(), shares)
    whole = plan.rows(0, 300)
    last = Stage.from_json(json.loads(json.dumps(plan.stages[-1].to_json())), {})
    resumed = Plan(plan.domains, 8, lengths=plan.lengths, stages=[last])
    assert resumed.rows(77, 300).tolist() == whole[77:].tolist()
    assert [int(resumed.rows(t, t + 1)[0]) for t in range(299, 76, -7)] == whole[299:76:-7].tolist()
    assert resumed.append(200, plan.domain_pools(), [0.4, 0.4, 0.2]).to_json() == (
        plan.append(200, plan.domain_pools(), [0.4, 0.4, 0.2]).to_json()
    )


def test_the_order_in_tokens_is_the_one_earlier_versions_wrote() -> None:
    """A change of these numbers changes the data of every run in progress."""
    plan = Plan(DOMAINS, seed=42, lengths=np.arange(87) % 11 + 1)
    plan.append(0, plan.domain_pools(), [0.5, 0.3, 0.2])
    plan.append(7, plan.stages[0].pools, [0.2, 0.2, 0.6])
    assert plan.rows(0, 16).tolist() == [22, 83, 44, 18, 76, 20, 52, 85, 41, 84, 80, 33, 82, 70, 81, 8]


def owed_in_tokens(parts: list[int], carry: list[int], rows: np.ndarray) -> np.ndarray:
    """At each of as many positions as there are rows of a domain, int64[positions + 1, k]; row i of domain d has rows[d][i]
    tokens."""
    order = TokenQuota(parts, carry, reader(rows)).domains(0, rows.shape[1])
    work = np.zeros((len(order) + 1, len(parts)), dtype=np.int64)
    for d in range(len(parts)):
        where = np.flatnonzero(order == d)
        work[where + 1, d] = rows[d][: len(where)]
    work = work.cumsum(axis=0)
    return np.array(carry) + np.array(parts) * work.sum(axis=1, keepdims=True) - work * SCALE


def reader(rows: np.ndarray) -> Callable[[int, int, int], np.ndarray]:
    return lambda d, first, count: np.take(rows[d], np.arange(first, first + count), mode="wrap")


@pytest.mark.parametrize("seed", range(24))
def test_remainders_in_tokens_are_honoured_if_and_only_if_they_can_be(seed: int) -> None:
    """Any remainders, of few large domains and some that get almost nothing."""
    rng = np.random.default_rng(seed)
    k, longest, length = int(rng.integers(3, 9)), 100, 20_000
    rows = rng.integers(1, longest + 1, size=(k, length)) if seed % 2 else np.full((k, length), longest)
    parts = quantise(rng.dirichlet(np.full(k, 0.2)))
    raw = rng.permutation(np.resize([1.0, -1.0], k)) * rng.uniform(0.7, 1, size=k)
    raw -= raw.mean()
    carry = [int(c) for c in raw / np.abs(raw).max() * rng.uniform(0.7, 1) * longest * SCALE]
    carry = normalise_carry(carry, parts, lambda _: True)
    worst = np.abs(owed_in_tokens(parts, carry, rows)).max()
    assert honoured(carry, parts, reader(rows), longest) == (worst <= longest * SCALE)
    settled = normalise_carry(carry, parts, lambda c: honoured(c, parts, reader(rows), longest))
    assert sum(settled) == 0 and (settled == carry) == (worst <= longest * SCALE)
    assert np.abs(owed_in_tokens(parts, settled, rows)).max() <= longest * SCALE


def test_remainders_in_tokens_that_no_order_can_honour_are_shrunk() -> None:
    """Two domains owed most of a longest row each, of which both have such a row next."""
    parts, rows = quantise([0.5, 0.5 - 2e-6, 1e-6, 1e-6]), np.full((4, 500), 100)
    owed = [SCALE * 90, SCALE * 90, -SCALE * 90, -SCALE * 90]
    assert not honoured(owed, parts, reader(rows), 100)
    carry = normalise_carry(owed, parts, lambda c: honoured(c, parts, reader(rows), 100))
    assert carry == [c * 27 // 64 for c in owed]
    assert not honoured([101 * SCALE, -101 * SCALE, 0, 0], parts, reader(rows), 100)


# -- rows that may come so often and no more -------------------------------------------------------------------------


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    tokens=st.booleans(),
    limits=st.lists(st.one_of(st.none(), st.integers(1, 90)), min_size=3, max_size=3),
    starts=st.lists(st.integers(0, 60), min_size=1, max_size=3),
)
def test_it_is_known_beforehand_where_a_domain_is_exhausted(
    seed: int, tokens: bool, limits: list[int | None], starts: list[int]
) -> None:
    """Against counting the rows one by one; over stages, since cursors go on."""
    plan = token_plan(3, seed, 40) if tokens else Plan(Domains(("a", "b", "c"), (40,) * 3), seed)
    rng = np.random.default_rng(seed)
    for start in np.cumsum([0, *starts[1:]]).tolist():
        plan.append(start, plan.domain_pools(), rng.dirichlet(np.ones(3)).tolist())
    first, stop = plan.stages[-1].start, plan.stages[-1].start + int(rng.integers(0, 200))
    counts, expected = Counter(plan.domains.of(plan.rows(0, first)).tolist()), None
    for position, d in enumerate(plan.domains.of(plan.rows(first, stop)).tolist(), start=first + 1):
        counts[d] += 1
        if expected is None and counts[d] == limits[d]:
            expected = (position, d)
    assert plan.first_reach(limits, stop) == expected


def test_one_pool_reaches_its_count_after_as_many_rows() -> None:
    plan = Plan(DOMAINS, 1)
    plan.append(5, plan.merged_pool(), [1.0])
    assert plan.first_reach([100], 104) is None and plan.first_reach([None], 1000) is None
    assert plan.first_reach([100], 105) == plan.first_reach([100], 300) == (105, 0)


def test_the_stages_from_a_position_on_are_enough() -> None:
    """The latest one alone is not, where it begins later."""
    plan = six_stages()
    for position in (0, 40, 41, 96, 97, 149, 203, 260):
        kept = plan.stages_from(position)
        assert kept[0].index == plan.stage_at(position).index and kept[-1].index == plan.stages[-1].index
        assert Plan(DOMAINS, 11, stages=kept).rows(position, 400).tolist() == plan.rows(position, 400).tolist()
    assert Plan(DOMAINS, 11).stages_from(3) == []
