"""The order in which rows are served: shapes, courses of pools, and the plan that reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dataflex.components.contracts import Order
from dataflex.components.registry import ORDERS, resolve
from dataflex.errors import ConfigError
from dataflex.plan.course import Course, Shape
from dataflex.plan.permutation import Permutation, derive_key
from dataflex.plan.plan import Domains, Plan
from dataflex.plan.stages import Pool, Stage, chosen_pool

N = 1000
SHAPES: dict[str, dict[str, Any]] = {
    "sorting": {},
    "folding": {"layers": 3},
    "zigzag": {"layers": 4},
    "segment": {"front": 0.2, "back": 0.1},
    "stair": {},
    "saw": {},
    "shuffle": {},
}


def order(name: str, **parameters: Any) -> Order:
    found = resolve("order", name, name)(**parameters)
    assert isinstance(found, Order)
    return found


def shuffled(count: int, number: int) -> np.ndarray:
    return Permutation(count, derive_key(5, number))(np.arange(count)) if count else np.empty(0, dtype=np.int64)


# -- shapes, each by its definition --------------------------------------------------------------------------------------


def folded(ranks: list[int], layers: int) -> list[int]:
    return [rank for layer in range(layers) for rank in ranks[layer::layers]]


def zigzagged(ranks: list[int], layers: int) -> list[int]:
    parts = [ranks[layer::layers] for layer in range(layers)]
    return [rank for layer, part in enumerate(parts) for rank in (part[::-1] if layer % 2 else part)]


def in_sections(ranks: list[int], sections: int, radius: float, within: Callable[[list[int]], list[int]]) -> list[int]:
    count, out = len(ranks), list(ranks)
    half = round(radius * count)
    for j in range(1, sections):
        border = round(count * j / sections)
        out[border - half : border + half] = within(out[border - half : border + half])
    return out


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 20, 101])
def test_shapes_are_what_their_definitions_say(rows: int) -> None:
    ranks = list(range(rows))
    assert order("sorting").ranks(rows, shuffled).tolist() == ranks
    for layers in (1, 2, 3, 5):
        assert order("folding", layers=layers).ranks(rows, shuffled).tolist() == folded(ranks, layers)
        assert order("zigzag", layers=layers).ranks(rows, shuffled).tolist() == zigzagged(ranks, layers)
        for sections, radius in ((1, 0.3), (2, 0.225), (3, 0.075), (4, 0.12)):
            given = {"sections": sections, "radius": radius, "layers": layers}
            stair = in_sections(ranks, sections, radius, lambda part: folded(part, layers))  # noqa: B023
            saw = in_sections(ranks, sections, radius, lambda part: zigzagged(part, layers))  # noqa: B023
            assert order("stair", **given).ranks(rows, shuffled).tolist() == stair
            assert order("saw", **given).ranks(rows, shuffled).tolist() == saw


def test_the_ends_of_a_segment_have_the_scores_asked_for() -> None:
    found = order("segment", front=0.1, back=0.2).ranks(100, shuffled)
    front, middle, back = found[:10], found[10:80], found[80:]
    assert sorted(front) == list(range(10)) and sorted(back) == list(range(80, 100))
    assert all(part.tolist() != sorted(part) for part in (front, middle, back))
    turned = order("segment", front=0.1, back=0.2, front_is_high=True, back_is_high=False).ranks(100, shuffled)
    assert sorted(turned[:10]) == list(range(90, 100)) and sorted(turned[80:]) == list(range(20))
    same = order("segment", front=0.1, back=0.2, back_is_high=False).ranks(100, shuffled)
    assert sorted([*same[:10], *same[80:]]) == list(range(30))
    assert sorted(same[:10]) != list(range(10))  # both ends are drawn from the thirty together
    whole = order("segment", front=0.9, back=0.6).ranks(100, shuffled)
    assert sorted(whole[:60]) == list(range(60))  # 90 and 60 of 100 become 60 and 40
    assert sorted(order("segment", front=0.9, back=0.6).ranks(3, shuffled)) == [0, 1, 2]


@pytest.mark.parametrize("name", ORDERS)
def test_every_shape_is_a_permutation(name: str) -> None:
    for rows in range(1, 60):
        for window in (0, 1, 4, 100):
            found = Shape(order(name).ranks, window).over(rows, rows)
            assert sorted(found) == list(range(rows))


def test_a_window_shuffles_blocks_and_nothing_else() -> None:
    plain, found = Shape(order("folding").ranks).over(100, 1), Shape(order("folding").ranks, 10).over(100, 1)
    for begin in range(0, 100, 10):
        assert sorted(found[begin : begin + 10]) == sorted(plain[begin : begin + 10])
    assert np.mean(plain == found) < 0.3
    assert Shape(order("folding").ranks, 10).over(100, 2).tolist() != found.tolist()


@pytest.mark.parametrize(
    ("name", "given", "parameter"),
    [
        ("folding", {"layers": 0}, "layers"),
        ("stair", {"radius": 0.25}, "radius"),
        ("saw", {"sections": 0}, "sections"),
        ("saw", {"radius": -0.1}, "radius"),
        ("segment", {"front": 1.5}, "front"),
    ],
)
def test_parameters_out_of_range_are_refused(name: str, given: dict[str, Any], parameter: str) -> None:
    with pytest.raises(ConfigError, match=f"^{parameter} must be"):
        order(name, **given)


# -- what a plan serves ----------------------------------------------------------------------------------------------


def scores(seed: int = 0, rows: int = N) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=rows)


def plan(name: str, draws: int, values: np.ndarray, *, window: int = 0, begin: int = 0, rows: int = N) -> Plan:
    """One pool of `rows` rows of a run of `draws` draws, in an order from its draw `begin` on."""
    made = Plan(Domains(("all",), (rows,)), 11, shape=Shape(order(name, **SHAPES[name]).ranks, window))
    made.append(0, made.merged_pool(), [1.0])
    rank_anew(made, begin, draws, values)
    return made


def rank_anew(made: Plan, at: int, draws: int, values: np.ndarray) -> None:
    last = made.stages[-1]
    (pool,) = last.pools
    served = made.epoch_under_way(last, 0, at)
    begin = at if pool.course is None else pool.course.begin
    course = Course(ranked=np.argsort(values, kind="stable"), begin=begin, since=at, end=draws, served=served)
    made.append(at, [Pool(key=pool.key, start=pool.start, size=pool.size, course=course)], [1.0])


def ranks_of(values: np.ndarray) -> np.ndarray:
    out = np.empty(len(values), dtype=np.int64)
    out[np.argsort(values, kind="stable")] = np.arange(len(values))
    return out


def configured(made: Plan, rows: int, number: int, pool_key: int = 0) -> np.ndarray:
    assert made.shape is not None
    return made.shape.over(rows, derive_key(made.seed, 0x0DDE12, pool_key, 0, number))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("window", [0, 50])
def test_a_run_of_one_epoch_has_the_curve_configured(name: str, window: int) -> None:
    values = scores()
    made = plan(name, N, values, window=window)
    served = ranks_of(values)[made.rows(0, N)]
    assert np.corrcoef(served, configured(made, N, 0))[0, 1] == pytest.approx(1.0, abs=1e-12)
    assert served.tolist() == configured(made, N, 0).tolist()
    one_by_one = np.concatenate([made.rows(t, t + 1) for t in range(N)])
    assert one_by_one.tolist() == made.rows(0, N).tolist()


@pytest.mark.parametrize("name", SHAPES)
def test_a_run_of_a_part_of_a_pool_has_the_whole_curve_over_a_uniform_draw(name: str) -> None:
    values = scores()
    made = plan(name, 300, values)
    served = made.rows(0, 300)
    assert len(set(served.tolist())) == 300
    assert ranks_of(values[served]).tolist() == configured(made, 300, 0).tolist()
    assert abs(ranks_of(values)[served].mean() - N / 2) < 5 * N / np.sqrt(12 * 300)  # of all scores, not of the lowest
    assert sorted(made.rows(0, N)) == list(range(N))  # a run that goes on beyond its end serves the others


@pytest.mark.parametrize("name", SHAPES)
def test_every_epoch_has_the_whole_curve_and_the_last_one_too(name: str) -> None:
    values, draws = scores(), 2 * N + 400
    made = plan(name, draws, values)
    served = made.rows(0, draws)
    for number, length in enumerate((N, N, 400)):
        rows = served[number * N : number * N + length]
        assert len(set(rows.tolist())) == length
        assert ranks_of(values[rows]).tolist() == configured(made, length, number).tolist()


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("draws", [300, N, 2 * N + 400])
def test_ranking_anew_by_equal_scores_changes_nothing(name: str, draws: int) -> None:
    """At any draw, between epochs too, and with a warmup before."""
    values = scores()
    for begin in (0, 130):
        whole = plan(name, draws, values, window=7, begin=begin).rows(0, draws)
        made = plan(name, draws, values, window=7, begin=begin)
        for at in (170, 299, N - 1, N, N + 1, 2 * N + 17):
            if at < draws:
                rank_anew(made, at, draws, values)
        assert made.rows(0, draws).tolist() == whole.tolist()


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("draws", [N, 600])
def test_ranking_anew_keeps_the_shape_of_what_is_left(name: str, draws: int) -> None:
    """Of the positions left, that with the k-th smallest rank in the shape gets the row with the k-th smallest new score."""
    first, second, at = scores(0), scores(1), 370
    before = plan(name, draws, first).rows(0, draws)
    made = plan(name, draws, first)
    rank_anew(made, at, draws, second)
    served = made.rows(0, draws)
    assert served[:at].tolist() == before[:at].tolist()
    assert sorted(served) == sorted(before)  # the same rows, of a run that serves a part of them too
    shape = configured(made, draws, 0)[at:]
    assert ranks_of(second[served[at:]]).tolist() == ranks_of(shape.astype(float)).tolist()


def test_an_order_that_is_measured_every_interval_is_not_plain_sorting() -> None:
    """As a pattern laid anew over all rows left would be, of which only the head is served: the fault of dataflex 1.1.0."""
    values = scores()
    made = plan("saw", N, values)
    for at in range(100, N, 100):
        rank_anew(made, at, N, values)
    served = ranks_of(values)[made.rows(0, N)]
    assert served.tolist() == order("saw").ranks(N, shuffled).tolist()
    assert int(np.argmax(served != np.arange(N))) == round(N / 3) - round(0.075 * N) + 1


def test_warmup_rows_keep_their_order_and_the_curve_is_laid_over_the_rest() -> None:
    values = scores()
    without = Plan(Domains(("all",), (N,)), 11)
    without.append(0, without.merged_pool(), [1.0])
    served = plan("folding", N, values, begin=200).rows(0, N)
    assert served[:200].tolist() == without.rows(0, 200).tolist()
    assert ranks_of(values[served[200:]]).tolist() == order("folding").ranks(800, shuffled).tolist()
    assert sorted(served) == list(range(N))


@pytest.mark.parametrize("name", SHAPES)
def test_a_plan_goes_on_from_its_last_stage_alone(name: str) -> None:
    """Through JSON and arrays, as in a checkpoint, with what is decided later."""
    made = plan(name, 2500, scores(0))
    rank_anew(made, 1300, 2500, scores(1))
    last = made.stages[-1]
    stage = Stage.from_json(json.loads(json.dumps(last.to_json())), {k: v.copy() for k, v in last.arrays().items()})
    resumed = Plan(made.domains, made.seed, shape=made.shape, stages=[stage])
    for each in (made, resumed):
        rank_anew(each, 1700, 2500, scores(2))
    assert resumed.rows(1300, 2500).tolist() == made.rows(1300, 2500).tolist()


def test_chosen_pools_are_ordered_too_and_repeats_keep_their_number() -> None:
    ids = np.array([7, 3, 3, 9, 20, 4])
    made = Plan(Domains(("all",), (30,)), 3, shape=Shape(order("sorting").ranks))
    made.append(0, [chosen_pool(1, ids)], [1.0])
    (pool,) = made.stages[-1].pools
    values = -np.arange(30.0)
    course = Course(ranked=np.argsort(values[pool.rows(np.arange(6))], kind="stable"), end=6)
    made.append(0, [Pool(key=1, ids=pool.ids, course=course)], [1.0])
    assert made.rows(0, 6).tolist() == [20, 9, 7, 4, 3, 3]


def test_a_mixture_changes_the_speed_of_a_domain_and_not_its_order() -> None:
    sizes, values = (400, 200), scores(0, 600)
    made = Plan(Domains(("a", "b"), sizes), 5, shape=Shape(order("zigzag").ranks))
    first = made.append(0, made.domain_pools(), [0.5, 0.5])
    ends = made.expected_draws(0, 300)
    assert ends == [150, 150]
    pools = [
        Pool(key=p.key, start=p.start, size=p.size, course=Course(np.argsort(values[p.start :][: p.size]), end=end))
        for p, end in zip(first.pools, ends, strict=True)
    ]
    made.append(0, pools, [0.5, 0.5])
    straight = made.rows(0, 300)
    made.append(100, pools, [0.8, 0.2])
    turned = made.rows(0, 300)
    for own in (lambda rows: rows[rows < 400], lambda rows: rows[rows >= 400]):
        shared = min(len(own(straight)), len(own(turned)))
        assert own(straight)[:shared].tolist() == own(turned)[:shared].tolist()
    assert len(turned[turned < 400]) > len(straight[straight < 400])
    rows = straight[straight < 400]
    assert ranks_of(values[rows]).tolist() == order("zigzag").ranks(150, shuffled).tolist()


def test_expected_draws_are_at_most_one_too_many() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        domains = int(rng.integers(2, 6))
        made = Plan(Domains(tuple("abcdef"[:domains]), (50,) * domains), 1)
        made.append(0, made.domain_pools(), rng.dirichlet(np.ones(domains)).tolist())
        at = int(rng.integers(1, 90))
        made.append(at, made.domain_pools(), rng.dirichlet(np.ones(domains)).tolist())
        end = at + int(rng.integers(0, 300))
        expected, found = made.expected_draws(at, end), made.served(end)
        assert all(0 <= e - f <= 1 for e, f in zip(expected, found, strict=True))


def test_expected_draws_of_tokens_go_by_the_lengths_of_rows() -> None:
    lengths = np.concatenate([np.full(300, 10), np.full(300, 30)])
    made = Plan(Domains(("short", "long"), (300, 300)), 1, lengths=lengths)
    made.append(0, made.domain_pools(), [0.5, 0.5])
    expected, found = made.expected_draws(0, 200), made.served(200)
    assert np.abs(np.subtract(expected, found)).max() <= 2 and expected == [150, 50]


def test_the_order_is_the_one_earlier_versions_wrote() -> None:
    """A run in progress goes on with it: never change these numbers."""
    made = plan("segment", 12, np.arange(16.0), window=3, rows=16)
    assert made.rows(0, 16).tolist() == [7, 0, 2, 4, 9, 6, 12, 14, 13, 15, 11, 3, 8, 5, 10, 1]
