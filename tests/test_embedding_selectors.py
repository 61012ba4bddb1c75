"""rds, near, tsds: their decisions against literal transcriptions; delta_loss, token_length, custom; and all of them through
the real command line."""

from __future__ import annotations

import heapq
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparing import kill_and_resume
from harness import start, train, train_all
from selecting import context, table

from dataflex.components.contexts import Selection
from dataflex.components.requests import Embedding, TargetEmbedding
from dataflex.components.selectors.delta_loss import DeltaLossSelector
from dataflex.components.selectors.near import NearSelector
from dataflex.components.selectors.rds import RdsSelector
from dataflex.components.selectors.token_length import TokenLengthSelector
from dataflex.components.selectors.tsds import TsdsSelector, scale
from dataflex.components.selectors.tsds.density import Density
from dataflex.components.selectors.tsds.transport import transport
from dataflex.components.tools.embeddings import EmbeddingSelector, unit
from dataflex.components.tools.neighbours import closeness, nearest
from dataflex.components.tools.turns import Turns, take_turns, turns_among
from dataflex.config.load import parse
from dataflex.config.schema import Schedule
from dataflex.errors import ConfigError, DataflexError

Config = dict[str, Any]


def clusters(rows: int, seed: int, width: int = 16, kinds: int = 6) -> np.ndarray:
    """Vectors of length one in loose groups, some with near-duplicates."""
    centres = np.random.default_rng(0).standard_normal((kinds, width))
    rng = np.random.default_rng(seed)
    spread = np.linspace(0.05, 0.9, kinds)
    kind = rng.integers(kinds, size=rows)
    return unit(centres[kind] + spread[kind, None] * rng.standard_normal((rows, width)))


# -- neighbours and turns --------------------------------------------------------------------------------------------


def test_nearest_is_exact_in_any_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, queries = clusters(300, 1), clusters(70, 2)
    expected = np.argsort(-(queries @ rows.T), axis=1)[:, :20]
    for values in (1 << 26, 1700):
        monkeypatch.setattr("dataflex.components.tools.neighbours._VALUES", values)
        similarity, indices = nearest(queries, rows, 20)
        assert np.array_equal(indices, expected)
        assert np.allclose(similarity, np.take_along_axis(queries @ rows.T, expected, axis=1), atol=1e-6)
        values, closest = closeness(queries, rows, np.repeat([0, 1], [30, 40]))
        for task, own in enumerate((slice(0, 30), slice(30, 70))):
            assert np.allclose(values[:, task], (rows @ queries[own].T).max(axis=1))
            assert np.array_equal(closest[:, task], own.start + (rows @ queries[own].T).argmax(axis=1))


def replayed(ranking: list[list[int]], budget: int) -> list[tuple[int, int, int]]:
    """Row, turn and target of every row taken, one turn of one target at a time."""
    chosen: list[tuple[int, int, int]] = []
    for turn in range(len(ranking[0])):
        for target, own in enumerate(ranking):
            if all(own[turn] != row for row, _, _ in chosen) and len(chosen) < budget:
                chosen.append((own[turn], turn + 1, target))
    return chosen


def turns_by_hand(ranking: list[list[int]], budget: int) -> list[int]:
    return [row for row, _, _ in replayed(ranking, budget)]


def as_tuples(found: Turns | Selection) -> list[tuple[int, int, int]]:
    """The same of what the program says."""
    columns = (
        (found.rows, found.turn, found.target)
        if isinstance(found, Turns)
        else (found.chosen, found.turn, found.chosen_for)
    )
    assert all(values is not None and np.issubdtype(values.dtype, np.integer) for values in columns)
    return list(zip(*(np.asarray(values).tolist() for values in columns), strict=True))


def test_targets_take_turns() -> None:
    ranking = [[3, 1, 0], [3, 2, 4], [1, 3, 5]]
    for budget in range(1, 7):
        assert as_tuples(take_turns(np.array(ranking), budget)) == replayed(ranking, budget)
    rows, queries = clusters(200, 3), clusters(5, 4)
    whole = np.argsort(-(queries @ rows.T), axis=1).tolist()
    for budget in (1, 7, 100, 200):  # as deep as it takes
        assert as_tuples(turns_among(queries, rows, budget)) == replayed(whole, budget)


def test_rds_over_one_task_and_over_two() -> None:
    rows, targets = clusters(60, 5), clusters(6, 6)
    similarity = rows @ targets.T
    signals = {"embedding": 3 * rows, "target_embedding": 2 * targets}
    one, _ = RdsSelector().select({}, signals, context(60, 9, target_sizes=(6,)))
    by_row = np.argsort(-similarity.T, axis=1)
    assert as_tuples(one) == replayed(by_row.tolist(), 9)
    assert one.scores is not None and np.allclose(one.scores, similarity.max(axis=1), atol=1e-6)
    assert one.score_from is not None and one.score_from.tolist() == similarity.argmax(axis=1).tolist()
    near, _ = NearSelector().select({}, signals, context(60, 9, target_sizes=(6,)))
    assert as_tuples(near) == as_tuples(one) and np.array_equal(near.score_from, one.score_from)
    two, _ = RdsSelector().select({}, signals, context(60, 9, target_sizes=(2, 4)))
    tasks = np.stack([similarity[:, :2].max(axis=1), similarity[:, 2:].max(axis=1)])
    by_task = replayed(np.argsort(-tasks, axis=1).tolist(), 9)
    of_task = [
        similarity[row, :2].argmax() if task == 0 else 2 + similarity[row, 2:].argmax() for row, _, task in by_task
    ]
    assert as_tuples(two) == [(row, turn, at) for (row, turn, _), at in zip(by_task, of_task, strict=True)]
    assert two.score_from is not None and two.score_from.tolist() == similarity.argmax(axis=1).tolist()
    signals["target_embedding"][:2] = np.nan  # a target row without tokens is left out, and with it its task
    rest, _ = RdsSelector().select({}, signals, context(60, 9, target_sizes=(2, 4)))
    assert as_tuples(rest) == [(row, turn, 2 + target) for row, turn, target in replayed(by_row[2:].tolist(), 9)]
    assert rest.score_from is not None and rest.score_from.tolist() == (2 + similarity[:, 2:].argmax(axis=1)).tolist()
    with pytest.raises(DataflexError, match="no row of the target"):
        RdsSelector().select({}, {**signals, "target_embedding": np.full((6, 16), np.nan)}, context(60, 9))


def test_near_reads_a_file_of_raw_rows(tmp_path: Path) -> None:
    np.save(tmp_path / "near.npy", np.array([[7, 3, -1], [4, 7, 9]]))
    near = NearSelector(indices_path=str(tmp_path / "near.npy"))
    assert near.needs() == frozenset() and near.reads_raw_rows()
    given = context(4, 3, raw_rows=np.array([3, 4, 7, 8]))
    assert as_tuples(near.select({}, {}, given)[0]) == [(2, 1, 0), (1, 1, 1), (0, 2, 0)]
    with pytest.raises(DataflexError, match=r"asked for 4 rows, but .* names only 3 of the 4"):
        near.select({}, {}, context(4, 4, raw_rows=np.array([3, 4, 7, 8])))
    near.check_rows(10)
    with pytest.raises(ConfigError, match=r"0 to 8 \(or -1: none\), .* has 9"):
        near.check_rows(9)
    np.save(tmp_path / "near.npy", np.array([[7, -2]]))
    with pytest.raises(ConfigError, match="has -2"):
        near.check_rows(9)


# -- transport -------------------------------------------------------------------------------------------------------


def density_by_hand(rows: np.ndarray, sigma: float, most: int) -> np.ndarray:
    squares = ((rows[:, None].astype(float) - rows[None]) ** 2).sum(axis=2)
    kernel = np.maximum(0.0, 1 - np.sort(squares, axis=1)[:, :most] / sigma**2)
    return np.asarray(kernel.sum(axis=1))


@pytest.mark.parametrize("most", [1, 5, 400])
@pytest.mark.parametrize("sigma", [0.2, 0.75, 1.5])
def test_density(most: int, sigma: float) -> None:
    rows = clusters(400, 7)
    found = Density(rows, sigma, most)(np.arange(400)[::-1])
    assert np.allclose(found[::-1], density_by_hand(rows, sigma, most), rtol=2e-5, atol=2e-5)


def test_density_over_lists_is_that_over_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = clusters(4000, 8, width=64, kinds=30)
    exact = Density(rows, 0.75, 100, exact=True)(np.arange(4000))
    monkeypatch.setattr("dataflex.components.selectors.tsds.density._ALL_PAIRS", 100)
    by_lists = Density(rows, 0.75, 100)
    compared = np.mean([len(near) for near in by_lists.lists.near]) / len(by_lists.lists.near)
    assert compared < 0.5  # it does leave out most
    assert np.allclose(by_lists(np.arange(4000)), exact, rtol=1e-3)


def transport_by_hand(
    d: np.ndarray, indices: np.ndarray, rho: np.ndarray, alpha: float, C: float
) -> tuple[np.ndarray, bool, float, np.ndarray]:
    """The greedy algorithm of the paper, one event of one target row at a time: the distribution, whether it stopped, what is
    left for the last candidates, and the mass that each target row sends to each row."""
    M, K = indices.shape
    share = 1 / rho[indices]
    heap = [(share[j, 0], 0, j) for j in range(M)]
    heapq.heapify(heap)
    travelled = [d[j, 0] * share[j, 0] for j in range(M)]
    rate, filled, s, stopped, at_the_end = [0.0] * M, [0] * M, 0.0, False, 0.0
    while heap:
        s, k, j = heapq.heappop(heap)
        rate[j] = d[j, k + 1] * s - travelled[j]
        if alpha / C * sum(rate) >= (1 - alpha) * M:
            stopped = True
            break
        filled[j] = k + 1
        if k + 1 < K - 1:
            heapq.heappush(heap, (s + share[j, k + 1], k + 1, j))
            travelled[j] += d[j, k + 1] * share[j, k + 1]
    sent = np.zeros((M, len(rho)))
    for j in range(M):
        left = 1 / M
        for k in range(filled[j]):
            sent[j, indices[j, k]] = share[j, k] / (M * s)
            left -= share[j, k] / (M * s)
        sent[j, indices[j, filled[j]]] = max(left, 0)
        at_the_end += max(left, 0) if filled[j] == K - 1 else 0
    out = sent.sum(axis=0)
    return out / out.sum(), stopped, at_the_end, sent


@pytest.mark.parametrize("C", [0.01, 0.5, 5.0, 500.0])
@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("first", [1, 2, 64])
def test_transport(monkeypatch: pytest.MonkeyPatch, C: float, alpha: float, first: int) -> None:
    """Against the algorithm step by step, however few neighbours are looked at first; and rho only where mass gets."""
    monkeypatch.setattr("dataflex.components.selectors.tsds.transport._FIRST_DEPTH", first)
    rows, targets = clusters(120, 9), clusters(7, 10)
    similarity, indices = nearest(targets, rows, 30)
    d = np.sqrt(np.maximum(2 - 2 * similarity.astype(float), 0))
    rho = density_by_hand(rows, 0.75, 40)
    asked: list[int] = []

    def density(at: np.ndarray) -> np.ndarray:
        asked.extend(at.tolist())
        return rho[at]

    found = transport(d, indices, 120, density, alpha=alpha, C=C)
    expected, stopped, at_the_end, sent = transport_by_hand(d, indices, rho, alpha, C)
    p = found.probabilities
    assert np.array_equal(found.sender < 0, p == 0)
    some = np.flatnonzero(p)
    assert np.allclose(sent[found.sender[some], some], sent.max(axis=0)[some], rtol=1e-9)
    assert p.sum() == pytest.approx(1, abs=1e-12) and np.allclose(p, expected, atol=1e-12)
    assert found.stopped == stopped and found.at_the_end == pytest.approx(at_the_end, abs=1e-12)
    assert len(asked) == len(set(asked))
    if C == 0.01 and alpha > 0 and first == 1:
        assert len(asked) < 30


def test_near_duplicates_share_what_one_row_gets() -> None:
    """40 copies of one row and a row by itself, as far from the target: half of the mass each."""
    rows = unit(np.array([[1.0, 0.2]] * 40 + [[1.0, -0.2]] + [[-1.0, 0.0]] * 500))
    one_target = unit(np.array([[1.0, 0.0]]))
    p = TsdsSelector(alpha=0.05, sigma=0.3, C=5.0, max_K=42).distribution(rows, one_target)[0].probabilities
    assert p[:40].sum() == pytest.approx(0.5, abs=0.02) and p[40] == pytest.approx(0.5, abs=0.02)
    alone, _ = TsdsSelector(alpha=0.05, sigma=0.0, C=5.0, max_K=42).distribution(rows, one_target)
    assert alone.probabilities[40] == pytest.approx(1 / 41, abs=1e-6)


def test_tsds_draws_what_it_says(tmp_path: Path) -> None:
    rows, targets = clusters(200, 11), clusters(4, 12)
    signals, given = {"embedding": rows, "target_embedding": targets}, context(200, 4000)
    drawn, _ = TsdsSelector(max_K=20).select({}, signals, given)
    p = drawn.scores
    assert p is not None
    share = np.bincount(drawn.chosen, minlength=200) / 4000
    assert abs(share - p).max() < 5 * np.sqrt(p.max() / 4000) and not share[p == 0].any()
    assert drawn.turn is None and drawn.chosen_for is not None and drawn.score_from is not None
    assert np.array_equal(drawn.chosen_for, drawn.score_from[drawn.chosen]) and (drawn.chosen_for >= 0).all()
    with pytest.raises(DataflexError, match="asked for 60 different rows, but only"):
        TsdsSelector(max_K=5, replacement=False).select({}, signals, context(200, 60))
    np.save(tmp_path / "p.npy", p)
    read = TsdsSelector(probs_path=str(tmp_path / "p.npy"))
    again, _ = read.select({}, {}, context(100, 50, raw_rows=np.arange(100, 200)))
    assert again.scores is not None and np.array_equal(again.scores, p[100:]) and again.chosen_for is None
    with pytest.raises(ConfigError, match="must hold 201 numbers"):
        read.check_rows(201)


def like_hidden_states(rows: int, seed: int) -> np.ndarray:
    """Vectors of length one as mean hidden states of a language model are: most of each is common to all."""
    centres, rng = np.random.default_rng(0).standard_normal((5, 48)), np.random.default_rng(seed)
    own = centres[rng.integers(5, size=rows)] + 0.8 * rng.standard_normal((rows, 48))
    return unit(np.hstack([own, np.full((rows, 1), 10.0)]))


def test_tsds_scales_with_the_distances_of_the_data() -> None:
    """The numbers of 1.1.0 on such vectors: the transport never stops, alpha does nothing, and a good part of the mass goes to
    the rows that fit worst. By default it stops, nothing is left for those, and alpha decides how many rows are reached."""
    rows, targets = like_hidden_states(600, 1), like_hidden_states(12, 2)
    similarity, indices = nearest(targets, rows, 60)
    d = np.sqrt(np.maximum(2 - 2 * similarity.astype(float), 0))
    apart = np.sqrt(np.maximum(2 - 2 * np.sort(rows @ rows.T, axis=1)[:, -2].astype(float), 0))
    sigma, C = scale(rows, d)
    assert sigma == pytest.approx(np.median(apart), rel=1e-3)
    assert abs(C - np.median(d)) < 1e-12

    fixed = [TsdsSelector(sigma=0.75, alpha=a, C=5.0).distribution(rows, targets) for a in (0.6, 0.01)]
    assert np.array_equal(fixed[0][0].probabilities, fixed[1][0].probabilities)
    assert "11.4% of the mass is left for the farthest; raise alpha, lower C or sigma" in fixed[0][1]["transport"]
    assert "raise max_K" in fixed[0][1]["transport"] and "scale" not in fixed[0][1]

    reached = []
    for alpha in (0.3, 0.5, 0.9):
        gamma, remarks = TsdsSelector(alpha=alpha).distribution(rows, targets)
        p = gamma.probabilities
        near = np.unique(indices)
        found_sigma, found_C = scale(rows[near], d)
        rho = np.full(600, np.nan)
        rho[near] = density_by_hand(rows[near], found_sigma, 60)
        expected, stopped, at_the_end, _ = transport_by_hand(d, indices, rho, alpha, found_C)
        assert np.allclose(p, expected, atol=1e-6) and stopped and at_the_end == 0
        assert set(remarks) == {"scale"} and f"sigma {found_sigma:.3g} and C {found_C:.3g}" in remarks["scale"]
        reached.append(int(np.count_nonzero(p)))
    assert reached[0] > 1.3 * reached[1] > 2 * reached[2]
    once, _ = TsdsSelector(alpha=0.0).distribution(rows, targets)  # as even as can be is what alpha: 0 asks for
    assert np.count_nonzero(once.probabilities) == len(near)


def test_copies_do_not_make_the_scale_of_tsds_zero() -> None:
    rows = np.repeat(like_hidden_states(100, 1), 20, axis=0)
    sigma, _ = scale(rows, np.ones((2, 2)))
    single, _ = scale(rows[::20], np.ones((2, 2)))
    assert sigma == pytest.approx(single, abs=1e-4) and sigma > 0.1
    assert scale(rows[:20], np.zeros((1, 20))) == (0.0, 1.0)  # nothing but copies: every row counts alone


def test_files_of_1_1_keep_its_scale(tmp_path: Path) -> None:
    """The flat spelling, and a preset of a components file; numbers of one's own stay in all of them."""
    rest = {"do_train": True, "eval_dataset": "e", "dataset": "d"}
    ours = parse({**rest, "dataflex": {"select": {"name": "tsds", "interval": 5}}})
    flat = parse({**rest, "train_type": "dynamic_select", "component_name": "tsds", "update_step": 5})
    presets = {"selectors": {"own": {"name": "tsds", "params": {"alpha": 0.2}}}}
    (tmp_path / "components.yaml").write_text(json.dumps(presets))
    rest["components_cfg_file"] = str(tmp_path / "components.yaml")
    preset = parse({**rest, "train_type": "dynamic_select", "component_name": "own", "update_step": 5})
    found = [run.dataflex.select.component for run in (ours, flat, preset)]  # type: ignore[union-attr]
    assert found == [
        TsdsSelector(sigma=None, alpha=0.5, C=None),
        TsdsSelector(sigma=0.75, alpha=0.6, C=5.0),
        TsdsSelector(sigma=0.75, alpha=0.2, C=5.0),
    ]


@pytest.mark.parametrize("rows", [1, 2, 3, 25])
def test_tsds_over_few_rows(rows: int) -> None:
    p = TsdsSelector().distribution(clusters(rows, 1), clusters(3, 2))[0].probabilities
    assert p.sum() == pytest.approx(1) and (p >= 0).all()


# -- delta_loss and token_length -------------------------------------------------------------------------------------


@pytest.mark.parametrize("updates", [1, 2, 3, 5, 40])
def test_the_window_moves_from_the_first_rows_to_the_last(updates: int) -> None:
    selector, delta = DeltaLossSelector(window_size=0.2), np.linspace(1, 0, 100)
    windows = [selector.window(delta, context(100, 5, update=u, updates=updates)) for u in range(updates)]
    assert all(stop - start == 20 for start, stop in windows)
    assert windows == sorted(windows) and windows[0] == (0, 20)
    if updates > 1:
        assert windows[-1] == (79, 99)  # sigmoid(5) of the way
    fallen = np.where(np.arange(100) < 30, 1.0, -1.0)
    assert selector.window(fallen, context(100, 5, update=updates - 1, updates=updates))[1] <= 30


def test_delta_loss_keeps_its_baseline() -> None:
    selector = DeltaLossSelector(window_size=0.25)
    first = {"loss": np.full(40, 5.0)}
    _, state = selector.select({}, first, context(40, 10, update=0, updates=3))
    gained = {"loss": 5.0 - np.arange(40) / 40}
    drawn: list[int] = []
    for seed in range(200):
        given = context(40, 1, update=0, updates=3, rng=np.random.default_rng(seed))
        chosen, after = selector.select(state, gained, given)
        assert after is state and chosen.scores is not None and np.allclose(chosen.scores, np.arange(40) / 40)
        drawn += chosen.chosen.tolist()
    assert np.mean(np.array(drawn) >= 30) > 0.85  # 10 rows of weight 1 against 30 of 0.025: 93 %
    new = context(41, 5, ids=np.arange(41), updates=3, update=1)
    later, _ = selector.select(state, {"loss": np.append(gained["loss"], 1.0)}, new)
    assert later.scores is not None and np.isnan(later.scores[40])


def test_updates_of_a_run() -> None:
    for warmup, interval, updates, steps in [(2, 4, None, 12), (0, 5, 2, 12), (20, 4, None, 12), (2, 4, 9, 12)]:
        schedule = Schedule(warmup=warmup, interval=interval, updates=updates)
        assert schedule.turns(steps) == sum(schedule.due(step) for step in range(steps))


def test_token_length() -> None:
    lengths = np.array([3.0, 9.0, 1.0, 9.0])
    longest, _ = TokenLengthSelector().select({}, {"trainable_tokens": lengths}, context(4, 2))
    shortest, _ = TokenLengthSelector(count="all", order="shortest").select({}, {"tokens": lengths}, context(4, 2))
    assert longest.chosen.tolist() == [1, 3] and shortest.chosen.tolist() == [2, 0]


# -- through the real command line -----------------------------------------------------------------------------------


@pytest.fixture
def aimed(base: Config) -> Config:
    return {**base, "eval_dataset": "arithmetic_heldout", "save_strategy": "steps", "save_steps": 2}


@pytest.mark.parametrize(
    "select",
    [
        {"name": "rds"},
        pytest.param({"name": "near", "embedding_layer": 1}, marks=pytest.mark.slow),
        {"name": "tsds", "max_K": 10},
        {"name": "delta_loss", "updates": 2},
        pytest.param({"name": "token_length"}, marks=pytest.mark.slow),
    ],
    ids=lambda select: select["name"],
)
def test_kill_and_resume_is_exact(aimed: Config, tmp_path: Path, select: Config) -> None:
    config = {**aimed, "dataflex": {"select": {"warmup": 2, "interval": 4, **select}}}
    kill_and_resume(config, tmp_path, "kill_after:7", 6)
    whole = train(config, tmp_path / "again").ok
    assert np.isfinite(table(whole, 6)["score"]).all()


@pytest.mark.parametrize("name", ["rds", "near", "tsds"])
def test_rows_like_the_target_are_selected(aimed: Config, tmp_path: Path, name: str) -> None:
    """Arithmetic looks like nothing else in the pool, and it is the same on two ranks, and within each domain of a mixture."""
    block = {"select": {"name": name, "interval": 6}}
    one, two, mixed = train_all(
        start({**aimed, "dataflex": block}, tmp_path / "one"),
        start({**aimed, "per_device_train_batch_size": 2, "dataflex": block}, tmp_path / "two", ranks=2),
        start({**aimed, "dataflex": {**block, "mix": {"name": "static"}}}, tmp_path / "mixed"),
    )
    found = table(one.ok, 0)
    assert (found["domain"][found["selected"]] == "arithmetic").mean() > 0.9
    other = table(two.ok, 0)
    assert np.allclose(found["score"], other["score"], atol=1e-6)
    assert np.array_equal(found["selected"], other["selected"])
    third = table(mixed.ok, 0)
    if name != "tsds":  # which draws rows again and again
        counts = [int(third["selected"][third["domain"] == d].sum()) for d in ("code", "docs", "arithmetic")]
        assert counts == [30, 30, 30]


def test_the_longest_rows_are_selected(base: Config, tmp_path: Path) -> None:
    run = train({**base, "dataflex": {"select": {"name": "token_length", "interval": 6}}}, tmp_path / "run").ok
    found = table(run, 0)
    assert found["score"][found["selected"]].min() >= np.sort(found["score"])[::-1][23]
    assert len(np.unique(found["score"])) > 5


def test_a_text_encoder(aimed: Config, tmp_path: Path) -> None:
    """Vectors of a sentence-transformers model, made once; arithmetic is found by them too; a wrong name is one line."""
    from test_embeddings import build_encoder

    encoder = build_encoder(tmp_path / "encoder", aimed["model_name_or_path"])
    select = {"name": "rds", "interval": 6, "embedding_model": str(encoder)}
    run, wrong = train_all(
        start({**aimed, "dataflex": {"select": select}}, tmp_path / "run"),
        start({**aimed, "dataflex": {"select": {**select, "embedding_model": "/nowhere"}}}, tmp_path / "wrong"),
    )
    first, second = table(run.ok, 0), table(run, 6)
    assert np.array_equal(first["score"], second["score"])  # the encoder does not train
    assert (first["domain"][first["selected"]] == "arithmetic").mean() > 0.9
    assert wrong.status != [0] and "embedding_model: '/nowhere' cannot be loaded" in wrong.log


OWN = """
from dataclasses import dataclass
import numpy as np
from dataflex import Selection, Selector

@dataclass(frozen=True, kw_only=True)
class Last(Selector):
    skip: int = 0

    def select(self, state, signals, context):
        return Selection(np.arange(context.rows)[::-1][self.skip : self.skip + context.budget]), state
"""


def test_custom_names_a_class(base: Config, tmp_path: Path) -> None:
    (tmp_path / "my_selector.py").write_text(OWN)
    select = {"name": "custom", "class": "my_selector:Last", "skip": 3, "interval": 6}
    runs = [
        start({**base, "dataflex": {"select": block}}, tmp_path / str(i), hooks=[f"import_from:{tmp_path}"])
        for i, block in enumerate([select, {**select, "class": None}, {**select, "class": "my_selector:First"}])
    ]
    run, none, wrong = train_all(*runs)
    assert np.flatnonzero(table(run.ok, 0)["selected"]).tolist() == list(range(153, 177))
    assert none.status == [2] and "dataflex.select.class must name the class of custom, as module:Class" in none.log
    assert wrong.status == [2] and "module 'my_selector' has no 'First'" in wrong.log


# -- files made elsewhere --------------------------------------------------------------------------------------------


@pytest.fixture
def gappy(base: Config, tmp_path: Path) -> Config:
    """A data set of 20 rows of which LLaMA-Factory drops 3 (no answer), after one of 10."""
    data = tmp_path / "data"
    data.mkdir()
    info = {}
    for name, rows in (("first", 10), ("second", 20)):
        lines = [
            {
                "messages": [
                    {"role": "user", "content": f"question {i}"},
                    {"role": "assistant", "content": f"answer {i}"},
                ]
            }
            for i in range(rows)
        ]
        for i in (0, 4, 5) if name == "second" else ():
            lines[i]["messages"] = lines[i]["messages"][:1]
        (data / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
        tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
        info[name] = {
            "file_name": f"{name}.jsonl", "formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags,
        }  # fmt: skip
    (data / "dataset_info.json").write_text(json.dumps(info))
    return {**base, "dataset_dir": str(data), "dataset": "first,second", "max_steps": 2}


def test_files_are_about_the_rows_as_stored(gappy: Config, tmp_path: Path) -> None:
    """Stored rows 10, 14 and 15 are dropped, so row 29 is sample 26."""
    p = np.zeros(30)
    p[[3, 12, 29]] = 0.2, 0.3, 0.5
    np.save(tmp_path / "p.npy", p)
    np.save(tmp_path / "short.npy", np.full(27, 1 / 27))
    np.save(tmp_path / "near.npy", np.array([[29, 14, 3, 20], [12, 9, 10, -1]]))
    np.save(tmp_path / "far.npy", np.array([[30]]))

    def block(**select: Any) -> Config:
        return {**gappy, "dataflex": {"select": {"interval": 1, **select}}}

    tsds, short, near, far, held, packed = train_all(
        start(block(name="tsds", probs_path=str(tmp_path / "p.npy")), tmp_path / "tsds"),
        start(block(name="tsds", probs_path=str(tmp_path / "short.npy")), tmp_path / "short"),
        start(block(name="near", indices_path=str(tmp_path / "near.npy")), tmp_path / "near"),
        start(block(name="near", indices_path=str(tmp_path / "far.npy")), tmp_path / "far"),
        start({**block(name="tsds", probs_path=str(tmp_path / "p.npy")), "val_size": 0.3}, tmp_path / "held"),
        start({**block(name="tsds", probs_path=str(tmp_path / "p.npy")), "packing": True}, tmp_path / "packed"),
    )
    assert {i: s for i, s in enumerate(table(tsds.ok, 0)["score"]) if s} == {3: 0.2, 11: 0.3, 26: 0.5}
    assert sorted(np.flatnonzero(table(near.ok, 0)["selected"])) == [3, 9, 11, 26]
    scores = table(held.ok, 0)["score"]  # what is not held out keeps what it had
    assert 1 <= np.count_nonzero(scores) <= 3 and set(scores[scores > 0]) <= {0.2, 0.3, 0.5}
    assert short.status == [2] and "probs_path must hold 30 numbers, one per row of the data" in short.log
    assert far.status == [2] and "dataflex.select.indices_path must hold rows of the data, 0 to 29" in far.log
    assert packed.status == [2] and "packing joins rows" in packed.log


@pytest.mark.parametrize(
    ("select", "message"),
    [
        ({"name": "tsds", "probs_path": "none.npy"}, "dataflex.select.probs_path must be a file"),
        ({"name": "tsds", "probs_path": "config.yaml"}, "dataflex.select.probs_path must be an .npy file"),
        ({"name": "tsds", "sigma": 3}, "dataflex.select.sigma must be in [0, 2)"),
        ({"name": "tsds", "alpha": 1.5}, "dataflex.select.alpha must be in [0, 1]"),
        ({"name": "delta_loss", "window_size": 0}, "dataflex.select.window_size must be in (0, 1]"),
        ({"name": "token_length", "order": "long"}, "did you mean 'longest'"),
        ({"name": "rds", "pooling": "max"}, "dataflex.select.pooling: 'max' is not a choice"),
        ({"name": "rds"}, "rds needs a target"),
    ],
)
def test_bad_input(base: Config, tmp_path: Path, select: Config, message: str) -> None:
    if "probs_path" in select:
        select = {**select, "probs_path": str(tmp_path / "run" / select["probs_path"])}
    run = train({**base, "dataflex": {"select": {"interval": 4, **select}}}, tmp_path / "run")
    assert run.status == [2] and message in run.log


@dataclass(frozen=True, kw_only=True)
class Listing(EmbeddingSelector):
    """One that reads a file beside the embeddings."""

    stop_list: str

    def files(self) -> Mapping[str, str]:
        return {"stop_list": self.stop_list}

    def select(self, state: Any, signals: Any, context: Any) -> Any:
        raise NotImplementedError


def test_a_file_of_another_kind_does_not_stand_for_embeddings(tmp_path: Path) -> None:
    listing = Listing(stop_list=str(tmp_path / "list"))
    assert {type(r) for r in listing.needs()} == {Embedding, TargetEmbedding} and not listing.reads_raw_rows()
