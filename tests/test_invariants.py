"""The invariants of docs/architecture.md, through the real command line. What runs here is tiny but nothing is replaced."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from comparing import assert_same_continuation, close, kill_and_resume
from harness import plain, start, train, train_all
from selecting import SELECT

Config = dict[str, Any]

MIX = {"mix": {"name": "odm", "warmup": 1, "interval": 3, "proportions": [0.5, 0.3, 0.2]}}
WEIGHT = {"weight": {"name": "loss", "strategy": "linupper", "warmup": 2}}
RUNS: dict[str, Config] = {"select": SELECT, "mix": MIX, "weight": WEIGHT, "all": {**SELECT, **MIX, **WEIGHT}}


def test_static_is_the_plain_run_to_the_bit(base: Config, tmp_path: Path) -> None:
    """Invariant 1, for `train_type: static` and for no block at all."""
    stock, static, nothing = train_all(
        plain(base, tmp_path / "plain"),
        start({**base, "train_type": "static"}, tmp_path / "static"),
        start(base, tmp_path / "nothing"),
    )
    assert len(stock.ok.trace()) == 12
    assert static.ok.trace() == stock.trace()
    assert nothing.ok.trace() == stock.trace()


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("ranks", [1, 2])
def test_uniform_weights_are_the_plain_run(
    base: Config, ground: Path, tmp_path: Path, ranks: int, accumulation: int
) -> None:
    """Invariant 2: the loss and gradient scale of LLaMA-Factory, with accumulation and several ranks."""
    still = str(ground / "still")
    config = {**base, "model_name_or_path": still, "gradient_accumulation_steps": accumulation, "max_steps": 6}
    weighted = {**config, "dataflex": {"weight": {"name": "loss", "strategy": "uniform"}}}
    close(
        *train_all(start(weighted, tmp_path / "uniform", ranks=ranks), plain(config, tmp_path / "plain", ranks=ranks))
    )


def test_uniform_weights_reach_the_same_parameters(base: Config, ground: Path, tmp_path: Path) -> None:
    """Invariant 2: with plain SGD and no clipping, the final parameters agree to 1e-5."""
    from safetensors.torch import load_file

    still = str(ground / "still")
    config = {**base, "model_name_or_path": still, "optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 0.1}
    weighted = {**config, "dataflex": {"weight": {"name": "loss", "strategy": "uniform"}}}
    ours, stock = train_all(start(weighted, tmp_path / "uniform"), plain(config, tmp_path / "plain"))
    before = load_file(ground / "still" / "model.safetensors")
    first, second = (load_file(r.ok.out / "model.safetensors") for r in (ours, stock))
    assert first.keys() == second.keys()
    for name, value in second.items():
        assert (first[name] - value).abs().max() <= 1e-5
    assert any(not value.equal(before[name]) for name, value in second.items())


def test_selecting_everything_in_order_is_the_plain_run_unshuffled(base: Config, ground: Path, tmp_path: Path) -> None:
    """Invariant 2: 180 rows, 45 steps of 4: one interval serves them all, in order."""
    config = {**base, "model_name_or_path": str(ground / "still"), "disable_shuffling": True, "max_steps": 45}
    selected = {**config, "dataflex": {"select": {"name": "random", "interval": 45}}}
    ours, stock = train_all(
        start(selected, tmp_path / "select", hooks=["record_ids"]), plain(config, tmp_path / "plain")
    )
    close(ours, stock)
    assert [i for ids in ours.ids().values() for i in ids] == list(range(180))


@pytest.mark.parametrize("ranks", [1, 2])
def test_scoring_leaves_no_trace(base: Config, tmp_path: Path, ranks: int) -> None:
    """Invariant 3, dropout on: scores computed and ignored against no scoring at all."""
    block = {"mix": {"name": "static", "proportions": [0.5, 0.3, 0.2]}}
    scored = {**block, "scoring_tokens": 8192, "select": {"name": "loss", "warmup": 1, "interval": 2}}
    without, with_scores = train_all(
        start({**base, "dataflex": block}, tmp_path / "without", ranks=ranks, hooks=["count_forwards"]),
        start({**base, "dataflex": scored}, tmp_path / "with", ranks=ranks, hooks=["ignore_scores", "count_forwards"]),
    )
    assert with_scores.ok.trace() == without.ok.trace()
    assert without.forwards()["eval"] == 0
    assert with_scores.forwards()["eval"] == 6 * 2 // ranks  # six updates of two batches, dealt to the ranks


@pytest.mark.parametrize("name", RUNS)
def test_kill_and_resume_is_exact(base: Config, tmp_path: Path, name: str) -> None:
    """Invariant 4, dropout on: killed after step 7, on from the checkpoint of step 6 (a boundary of select)."""
    config = {**base, "save_strategy": "steps", "save_steps": 2, "dataflex": RUNS[name]}
    kill_and_resume(config, tmp_path, "kill_after:7", 6)


# Each row differs from its neighbours in several of: what runs, ranks, workers, accumulation, scope, where it dies.
PAIRS = [
    ("all", 2, 0, 1, "running", "kill_after:7", 3, 6),
    ("all", 1, 2, 4, "running", "kill_while_saving:8", 4, 4),
    ("select", 2, 2, 1, "running", "kill_while_scoring:10", 5, 10),
    ("mix", 2, 2, 4, "running", "kill_after:10", 5, 10),
    ("weight", 2, 0, 4, "global", "kill_after:5", 3, 3),
    ("weight", 1, 2, 4, "running", "kill_after:9", 4, 8),
    ("all", 1, 0, 4, "global", "kill_after:10", 5, 10),
]


@pytest.mark.parametrize(
    ("name", "ranks", "workers", "accumulation", "scope", "kill", "save_steps", "resumes_at"), PAIRS
)
def test_kill_and_resume_is_exact_across_settings(
    base: Config,
    tmp_path: Path,
    name: str,
    ranks: int,
    workers: int,
    accumulation: int,
    scope: str,
    kill: str,
    save_steps: int,
    resumes_at: int,
) -> None:
    """Invariant 4, pairwise: on and off a boundary, in the middle of a save and of a scoring pass."""
    kill_and_resume(
        matrix_config(base, name, workers, accumulation, scope, save_steps), tmp_path, kill, resumes_at, ranks
    )


def matrix_config(base: Config, name: str, workers: int, accumulation: int, scope: str, save_steps: int) -> Config:
    block = {slot: dict(spec) for slot, spec in RUNS[name].items()}
    if "weight" in block:
        block["weight"]["scope"] = scope
    return {
        **base,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": accumulation,
        "dataloader_num_workers": workers,
        "save_strategy": "steps",
        "save_steps": save_steps,
        "dataflex": block,
    }


MATRIX = [
    (name, ranks, workers, accumulation, scope, kill)
    for name, ranks, workers, accumulation, scope, kill in itertools.product(
        RUNS, (1, 2), (0, 2), (1, 4), ("running", "global"), ("kill_after:6", "kill_after:8", "kill_while_saving:9")
    )
    if scope == "running" or (accumulation > 1 and "weight" in RUNS[name])
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "ranks", "workers", "accumulation", "scope", "kill"), MATRIX)
def test_kill_and_resume_matrix(
    base: Config, tmp_path: Path, name: str, ranks: int, workers: int, accumulation: int, scope: str, kill: str
) -> None:
    """Invariant 4, every combination; saves every 3 steps: on from step 6 in each case."""
    kill_and_resume(matrix_config(base, name, workers, accumulation, scope, 3), tmp_path, kill, 6, ranks)


@pytest.mark.parametrize(
    "block", [{"select": {"name": "random", "interval": 4}}, {"mix": {"name": "random", "interval": 3}}]
)
def test_one_and_two_ranks_serve_the_same_batches(base: Config, tmp_path: Path, block: Config) -> None:
    """Invariant 5, same global batch: 1 rank x 4 rows, 2 ranks x 2 rows, and 1 rank x 2 rows x accumulation 2."""
    config = {**base, "dataflex": block}
    half = {**config, "per_device_train_batch_size": 2}
    one, two, accumulated = train_all(
        start(config, tmp_path / "1", hooks=["record_ids"]),
        start(half, tmp_path / "2", ranks=2, hooks=["record_ids"]),
        start({**half, "gradient_accumulation_steps": 2}, tmp_path / "a", hooks=["record_ids"]),
    )
    assert len(one.ok.ids()) == 12
    assert two.ok.ids() == one.ids() == accumulated.ok.ids()
    for other in (two, accumulated):  # what was decided; the sums it was decided from round differently
        assert [{**r, "from": None} for r in other.ledger()] == [{**r, "from": None} for r in one.ledger()]


def test_the_same_checkpoint_gives_the_same_decision_on_one_and_two_ranks(base: Config, tmp_path: Path) -> None:
    """Invariant 5, components that score: started on 2 ranks, resumed on 1 and on 2; and all ranks decide alike."""
    block = {
        "select": {"name": "loss", "warmup": 4, "interval": 8},
        "mix": {"name": "odm", "warmup": 4, "interval": 8},
    }
    config = {**base, "dataflex": block, "per_device_train_batch_size": 2}
    first = {**config, "save_strategy": "steps", "save_steps": 4}
    train(first, tmp_path / "start", ranks=2, hooks=["kill_after:4"])
    resume = {**config, "resume_from_checkpoint": str(tmp_path / "start" / "checkpoint-4")}
    one, two = train_all(
        start({**resume, "per_device_train_batch_size": 4}, tmp_path / "1", hooks=["record_ids"]),
        start(resume, tmp_path / "2", ranks=2, hooks=["record_ids"]),
    )
    assert two.ok.ids() == one.ok.ids()
    assert min(one.ids()) == 4 and max(one.ids()) == 11
    decisions = [record["component"] for record in one.ledger()]
    assert decisions == ["start", "select:loss", "mix:odm"]
    assert two.ledger() == one.ledger()


def test_workers_and_prefetch_do_not_change_the_order(base: Config, tmp_path: Path) -> None:
    """Invariant 6."""
    config = {**base, "dataflex": RUNS["all"]}
    none, two, ahead = train_all(
        start(config, tmp_path / "0", hooks=["record_ids"]),
        start({**config, "dataloader_num_workers": 2}, tmp_path / "2", hooks=["record_ids"]),
        start(
            {**config, "dataloader_num_workers": 1, "dataloader_prefetch_factor": 6},
            tmp_path / "p",
            hooks=["record_ids"],
        ),
    )
    assert len(none.ok.ids()) == 12
    assert two.ok.ids() == none.ids() == ahead.ok.ids()
    assert two.trace() == none.trace() == ahead.trace()


def test_realized_counts_stay_within_a_sample(base: Config, tmp_path: Path) -> None:
    """Invariant 8, from the ids served: in every stage, at every position, under one sample from what was asked."""
    from dataflex.plan.quota import SCALE, quantise

    run = train({**base, "dataflex": MIX}, tmp_path / "run", hooks=["record_ids"])
    order = [i for ids in run.ok.ids().values() for i in ids]
    records = [record for record in run.ledger() if "stage" in record]  # updates that change nothing open none
    ends = [record["stage"]["start"] for record in records[1:]] + [len(order)]
    assert len(records) >= 2
    for record, end in zip(records, ends, strict=True):
        stage = record["stage"]
        parts, counts = quantise(stage["proportions"]), [0, 0, 0]
        for served, sample in enumerate(order[stage["start"] : end], start=1):
            counts[sample // 60] += 1
            for part, carry, count in zip(parts, stage["carry"], counts, strict=True):
                assert abs(carry + part * served - count * SCALE) < SCALE
    assert sorted(set(order)) == sorted(order), "no row repeats before its pool is used up"


def test_a_long_stage_is_continued_where_it_was(base: Config, tmp_path: Path) -> None:
    """Stages are cut into pieces for quick access; the pieces do not depend on where a run was resumed."""
    block = {"mix": {"name": "static", "proportions": [0.5, 0.3, 0.2]}}
    config = {**base, "save_strategy": "steps", "save_steps": 4, "dataflex": block}
    short = ["record_ids", "short_stages:10"]
    whole, killed, uncut = train_all(
        start(config, tmp_path / "whole", hooks=short),
        start(config, tmp_path / "killed", hooks=[*short, "kill_after:5"]),
        start(config, tmp_path / "uncut", hooks=["record_ids"]),
    )
    (killed.out / "served-0.jsonl").unlink()
    resumed = train(config, killed.out, hooks=short)
    assert_same_continuation(resumed, whole, 4)
    assert [r["position"] for r in whole.ledger()] == [0, 12, 24, 36]
    assert whole.ids() == uncut.ok.ids()


def test_a_signal_is_measured_once_per_step(base: Config, tmp_path: Path) -> None:
    """A selector and a mixer that both read the pool's losses at one boundary share one scoring pass."""
    block = {
        "scoring_tokens": 8192,
        "select": {"name": "loss", "warmup": 4, "interval": 20},
        "mix": {"name": "own_components:PoolLossMixer", "warmup": 4, "interval": 20},
    }
    run = train({**base, "dataflex": block}, tmp_path / "run", hooks=["own_component", "count_forwards"])
    assert [r["component"] for r in run.ok.ledger()][1:] == ["select:loss", "mix:own_components:PoolLossMixer"]
    assert run.forwards() == {"train": 12, "eval": 2}  # 180 rows of at most 64 tokens: two batches of 8192


EFFECTS: dict[str, tuple[Config, Config]] = {
    "select loss": (SELECT, {"select": {"name": "random", "warmup": 2, "interval": 4}}),
    "select random": ({"select": {"name": "random", "interval": 4}}, {"select": {"name": "random", "interval": 12}}),
    "mix odm": (
        {"mix": {"name": "odm", "warmup": 1, "interval": 1}},
        {"mix": {"name": "static"}},
    ),
    "mix random": ({"mix": {"name": "random", "interval": 3}}, {"mix": {"name": "static"}}),
    "mix static": ({"mix": {"name": "static", "proportions": [0.8, 0.1, 0.1]}}, {"mix": {"name": "static"}}),
}


@pytest.mark.parametrize("name", EFFECTS)
def test_a_component_changes_what_is_served(base: Config, tmp_path: Path, name: str) -> None:
    """Invariant 10: against the same run with a component that does nothing."""
    acting, idle = (
        run.ok.ids()
        for run in train_all(
            *(
                start({**base, "dataflex": block}, tmp_path / str(i), hooks=["record_ids"])
                for i, block in enumerate(EFFECTS[name])
            )
        )
    )
    assert acting.keys() == idle.keys()
    assert acting != idle


@pytest.mark.parametrize("strategy", ["linupper", "quadratic", "extremes"])
def test_a_weighter_changes_the_loss(base: Config, tmp_path: Path, strategy: str) -> None:
    """Invariant 10: the same rows up to the first weighted step, another gradient from there on."""
    configs = [
        {**base, "dataflex": {"weight": {"name": "loss", "strategy": s, "warmup": 2}}} for s in (strategy, "uniform")
    ]
    weighted, uniform = train_all(*(start(c, tmp_path / str(i)) for i, c in enumerate(configs)))
    first, second = weighted.ok.trace(), uniform.ok.trace()
    assert [first[s] for s in (1, 2)] == [second[s] for s in (1, 2)]
    assert all(first[s] != second[s] for s in range(3, 13))


def test_checkpoint_state_is_json_and_arrays(base: Config, tmp_path: Path) -> None:
    """A checkpoint holds the open interval's sums over all ranks: 2 ranks x 2 rows x 2 steps since the last update."""
    import numpy as np

    config = {**base, "per_device_train_batch_size": 2, "save_strategy": "steps", "save_steps": 6, "dataflex": MIX}
    run = train(config, tmp_path / "run", ranks=2)
    folder = run.ok.out / "checkpoint-6" / "dataflex"
    state = json.loads((folder / "state.json").read_text())
    assert (state["step"], state["position"], state["global_batch"]) == (6, 24, 4)
    assert state["components"]["mix"]["turn"] == 2  # updates at steps 1 and 4
    with np.load(folder / "arrays.npz") as arrays:
        assert arrays["parts/observing/sums"][:, 0].sum() == 8
