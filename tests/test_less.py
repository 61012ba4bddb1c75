"""The gradient selectors through the real command line, and what they choose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparing import kill_and_resume
from harness import start, train, train_all
from selecting import LESS, LORA, context, table

from dataflex.components.selectors.icons import IconsSelector
from dataflex.components.selectors.less import LessSelector
from dataflex.config.load import parse
from dataflex.errors import ConfigError
from dataflex.signals.gradients.attention import multiplies_bf16

Config = dict[str, Any]


@pytest.fixture
def aimed(base: Config) -> Config:
    """LESS on three domains, aimed at held-out rows of two of them; LoRA, dropout on, gradients checkpointed."""
    return {**base, **LORA, "eval_dataset": "arithmetic_heldout,code_heldout", "dataflex": {"select": LESS}}


def with_select(config: Config, **changes: Any) -> Config:
    return {**config, "dataflex": {**config["dataflex"], "select": {**config["dataflex"]["select"], **changes}}}


@pytest.mark.parametrize("settings", ["lora", "full", "authors"])
def test_the_scores_of_a_run_are_those_of_the_paper(aimed: Config, tmp_path: Path, settings: str) -> None:
    """Against one backward pass per row in fp64, inside the run, with its own moments: the maximum over the two subtasks; and
    the highest scores are selected. authors: by the formula of their program instead of the run's own Adam."""
    full = with_select({**aimed, "finetuning_type": "full"}, parameters="all")
    config = {"lora": aimed, "full": full, "authors": with_select(aimed, adam_step="authors")}[settings]
    run = train({**config, "max_steps": 7}, tmp_path / "run", hooks=["less_by_hand:6"])
    by_hand = json.loads((run.ok.out / "by_hand.json").read_text())
    found = table(run, 6)
    expected = np.array([max(by_hand[str(i)]) for i in found["sample_id"]])
    assert len(expected) == 180 and all(len(pair) == 2 for pair in by_hand.values())
    assert np.abs(found["score"] - expected).max() <= 1e-4
    assert found["selected"].sum() == 16
    assert found["score"][found["selected"]].min() >= found["score"][~found["selected"]].max()
    assert "gradients of" in run.log and "exact, 2 subtasks" in run.log


def test_products_in_bf16_rank_rows_as_those_in_fp32(aimed: Config, tmp_path: Path) -> None:
    """A run in bf16 with either `gradient_precision`: nearly the same scores, and on a processor that multiplies bf16 not the
    same. fp32 is the choice that a resumed run must share."""
    runs = {
        way: start(with_select({**aimed, "bf16": True, "max_steps": 7}, gradient_precision=way), tmp_path / way)
        for way in ("run", "fp32")
    }
    fast, slow = (table(run.wait().ok, 6) for run in runs.values())
    assert np.array_equal(fast["sample_id"], slow["sample_id"])
    assert np.corrcoef(*(t["score"].argsort().argsort() for t in (fast, slow)))[0, 1] > 0.98
    assert np.array_equal(fast["score"], slow["score"]) != multiplies_bf16()
    recorded = [(run.out / "dataflex" / "config.yaml").read_text() for run in runs.values()]
    assert ["gradient_precision: fp32" in text for text in recorded] == [False, True]


def test_what_points_where_the_target_does_is_selected(aimed: Config, tmp_path: Path) -> None:
    """Aimed at arithmetic alone after a little training: arithmetic is what it takes, with every way of measuring."""
    aimed = {**aimed, "eval_dataset": "arithmetic_heldout", "max_steps": 9, "learning_rate": 5e-3}
    ways = {
        "adam": {},
        "sgd": {"gradient_type": "sgd"},
        "projected": {"proj_dim": 512},
        "sgd projected": {"gradient_type": "sgd", "proj_dim": 512},
        "icons": {"name": "icons"},
        "accumulated": {"accumulate": True},
    }
    runs = {
        way: start(with_select(aimed, warmup=4, **changes), tmp_path / way.replace(" ", "-"))
        for way, changes in ways.items()
    }
    for way, run in runs.items():
        found = table(run.wait().ok, 8)
        share = (found["domain"][found["selected"]] == "arithmetic").mean()
        assert share >= 0.9, (way, share)


EXACT_AND_PROJECTED: tuple[Config, ...] = ({}, {"proj_dim": 256, "gradient_type": "sgd"})


def test_one_and_two_ranks_decide_the_same_from_one_checkpoint(aimed: Config, tmp_path: Path) -> None:
    """Invariant 5, exact and projected."""
    for index, changes in enumerate(EXACT_AND_PROJECTED):
        check_from_one_checkpoint(with_select(aimed, **changes), tmp_path / str(index))


@pytest.mark.slow
@pytest.mark.parametrize("changes", [*EXACT_AND_PROJECTED, {"proj_dim": 9000}, {"gradient_type": "sgd"}])
def test_one_and_two_ranks_decide_the_same_in_bf16(aimed: Config, tmp_path: Path, changes: Config) -> None:
    """Rows are measured in the same batches, so bf16 rounds the same products."""
    check_from_one_checkpoint({**with_select(aimed, **changes), "bf16": True}, tmp_path)


def check_from_one_checkpoint(config: Config, folder: Path) -> None:
    """One and two ranks go on from it with the same decisions and rows."""
    select = {**config["dataflex"]["select"], "warmup": 4, "interval": 8}
    config = {**config, "dataflex": {"select": select}, "per_device_train_batch_size": 2}
    first = {**config, "save_strategy": "steps", "save_steps": 4}
    train(first, folder / "start", ranks=2, hooks=["kill_after:4"])
    resume = {**config, "resume_from_checkpoint": str(folder / "start" / "checkpoint-4")}
    one, two = train_all(
        start({**resume, "per_device_train_batch_size": 4}, folder / "1", hooks=["record_ids"]),
        start(resume, folder / "2", ranks=2, hooks=["record_ids"]),
    )
    assert two.ok.ids() == one.ok.ids()
    assert two.ledger() == one.ledger()
    assert np.abs(table(one, 4)["score"] - table(two, 4)["score"]).max() <= 1e-6


@pytest.mark.parametrize("ranks", [1, 2])
def test_gradients_leave_no_trace(aimed: Config, tmp_path: Path, ranks: int) -> None:
    """Invariant 3, dropout on: gradients measured and ignored against a run that measures nothing."""
    block = {"mix": {"name": "static", "proportions": [0.5, 0.3, 0.2]}}
    without, measured = train_all(
        start({**aimed, "dataflex": block}, tmp_path / "without", ranks=ranks),
        start(
            {**aimed, "dataflex": {**block, "select": LESS}}, tmp_path / "with", ranks=ranks, hooks=["ignore_scores"]
        ),
    )
    assert measured.ok.trace() == without.ok.trace()


@pytest.mark.parametrize(("ranks", "kill", "resumes_at"), [(1, "kill_after:7", 6), (2, "kill_in_gradients:10", 10)])
def test_kill_and_resume_is_exact(aimed: Config, tmp_path: Path, ranks: int, kill: str, resumes_at: int) -> None:
    """Invariant 4, also in the middle of a gradient pass: what was measured of it is measured again."""
    config = {**aimed, "save_strategy": "steps", "save_steps": 2}
    kill_and_resume(with_select(config, accumulate=True), tmp_path, kill, resumes_at, ranks)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{}, {"gradient_type": "sgd"}, {"gradient_type": "sgd", "proj_dim": 256}, {"proj_dim": 9000}]
)
def test_kill_and_resume_is_exact_in_bf16(aimed: Config, tmp_path: Path, changes: Config) -> None:
    """Invariant 4 where products of gradients are in bf16, killed in the middle of a gradient pass of two ranks."""
    config = {**with_select(aimed, **changes), "bf16": True, "save_strategy": "steps", "save_steps": 2}
    kill_and_resume(config, tmp_path, "kill_in_gradients:10", 10, 2)


def test_empty_moments_are_remarked_on(aimed: Config, tmp_path: Path) -> None:
    """Where warmup is left out there is one; where it is 0 the log and the ledger say what adam is worth then."""
    at_once, sgd = with_select(aimed, warmup=0), with_select(aimed, warmup=0, gradient_type="sgd")
    left_out = {**aimed, "max_steps": 12, "dataflex": {"select": {"name": "less", "interval": 4}}}
    first, second, third = train_all(
        start({**at_once, "max_steps": 5}, tmp_path / "at_once"),
        start({**sgd, "max_steps": 1}, tmp_path / "sgd"),
        start(left_out, tmp_path / "left_out"),
    )
    chosen = [r for r in first.ok.ledger() if r["component"] == "select:less"]
    assert [r["step"] for r in chosen] == [0, 4]
    assert "Adam's moments are empty" in chosen[0]["remarks"]["moments"] and "remarks" not in chosen[1]
    assert first.log.count("dataflex: select:less: no optimizer step has been taken") == 1
    assert "moments are empty" not in second.ok.log
    assert [r["step"] for r in third.ok.ledger() if r["component"] == "select:less"] == [10]
    assert "moments are empty" not in third.log


@pytest.mark.parametrize(
    ("select", "warmup"),
    [
        ({"name": "less"}, 10), ({"name": "icons"}, 10), ({"name": "cluster_less"}, 10), ({"name": "nice"}, 10),
        ({"name": "less", "gradient_type": "sgd"}, 0), ({"name": "less", "warmup": 0}, 0), ({"name": "less", "warmup": 3}, 3),
        ({"name": "greats"}, 0), ({"name": "greats", "gradient_type": "adam"}, 10), ({"name": "loss"}, 0),
    ],
)  # fmt: skip
def test_a_method_that_needs_a_warmup_brings_one(select: Config, warmup: int) -> None:
    rest = {"do_train": True, "eval_dataset": "e", "dataset": "d"}
    found = parse({**rest, "dataflex": {"select": {**select, "interval": 4}}}).dataflex
    assert found is not None and found.select is not None and found.select.schedule.warmup == warmup
    if set(select) == {"name"}:  # a file of dataflex 1.1.0 means what it meant
        flat = {"train_type": "dynamic_select", "component_name": select["name"], "update_step": 4}
        found = parse({**rest, **flat}).dataflex
        assert found is not None and found.select is not None and found.select.schedule.warmup == 0


def test_adam_step_without_adam_is_refused() -> None:
    with pytest.raises(ConfigError, match="adam_step must be left out with gradient_type: sgd, got 'authors'"):
        LessSelector(gradient_type="sgd", adam_step="authors")
    assert {r.adam_step for s in (LessSelector, IconsSelector) for r in s(adam_step="authors").needs()} == {"authors"}


def test_with_a_mixer_each_domain_keeps_its_own_best(aimed: Config, tmp_path: Path) -> None:
    block = {"select": LESS, "mix": {"name": "static", "proportions": [0.5, 0.3, 0.2]}}
    run = train({**aimed, "max_steps": 3, "dataflex": block}, tmp_path / "run", hooks=["record_ids"])
    found = table(run.ok, 2)
    for name in ("code", "docs", "arithmetic"):
        here = found["domain"] == name
        chosen, scores = found["selected"][here], found["score"][here]
        assert chosen.sum() == 30
        assert scores[chosen].min() >= scores[~chosen].max()


def test_rows_without_a_gradient_are_never_selected(aimed: Config, tmp_path: Path) -> None:
    """Rows without a trainable token have no score, are counted and left out; in the target too."""
    config = {**aimed, "eval_dataset": None, "max_steps": 3}
    config = with_select(config, target_dataset="arithmetic_heldout")
    run = train(config, tmp_path / "run", hooks=["nothing_to_learn:0,1,2,150"])
    found = table(run.ok, 2)
    scored = np.isfinite(found["score"])
    assert found["sample_id"][~scored].tolist() == [0, 1, 2, 150]
    assert not found["selected"][~scored].any() and found["selected"].sum() == 16
    assert run.history()[2]["dataflex/selection/without_score"] == 4


# -- the decisions alone ---------------------------------------------------------------------------------------------


def test_less_takes_the_maximum_over_subtasks() -> None:
    influence = np.array([[0.1, 0.2], [0.9, -1.0], [0.3, 0.3], [-0.5, 0.8]])
    selection, state = LessSelector().select({}, {"target_alignment": influence}, context(4, 2))
    assert selection.chosen.tolist() == [1, 3] and state == {}
    assert selection.scores is not None and selection.scores.tolist() == [0.2, 0.9, 0.3, 0.8]


def test_less_adds_up_influences_times_learning_rates() -> None:
    """A row without a value at one update keeps what it had."""
    less = LessSelector(accumulate=True)
    first, second = np.array([[1.0], [0.0], [0.5]]), np.array([[0.0], [4.0]])
    selection, state = less.select({}, {"target_alignment": first}, context(3, 1))
    assert selection.chosen.tolist() == [0]
    later = context(2, 1, ids=np.array([0, 2]), learning_rate=0.1)
    selection, state = less.select(state, {"target_alignment": second}, later)
    assert selection.scores is not None and selection.scores.tolist() == pytest.approx([0.5, 0.65])
    assert state["sums"][:, 0].tolist() == pytest.approx([0.5, 0.0, 0.65])
    assert state["ids"].tolist() == [0, 1, 2]


def test_a_learning_rate_of_zero_orders_nothing() -> None:
    """Before the first warm-up step there is nothing to add up: the influence itself decides, and nothing is kept of it."""
    less = LessSelector(accumulate=True)
    influence = np.array([[0.0], [3.0], [1.0]])
    selection, state = less.select({}, {"target_alignment": influence}, context(3, 1, learning_rate=0.0))
    assert selection.chosen.tolist() == [1] and not state["sums"].any()


def test_icons_counts_votes_and_breaks_ties_by_rank() -> None:
    influence = np.array([[0.9, 0.0, 0.1], [0.8, 0.9, 0.0], [0.1, 0.8, 0.9], [0.7, 0.7, 0.7], [0.0, 0.1, 0.8]])
    selection, _ = IconsSelector().select({}, {"target_alignment": influence}, context(5, 2))
    assert selection.scores is not None
    votes = np.floor(selection.scores).tolist()
    assert votes == [1, 2, 2, 0, 1]
    assert sorted(selection.chosen.tolist()) == [1, 2]
    selection, _ = IconsSelector().select({}, {"target_alignment": influence[:, :1]}, context(5, 3))
    assert selection.chosen.tolist() == [0, 1, 3]  # one task: its own order
