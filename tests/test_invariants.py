"""The invariants of docs/architecture.md, through the real command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness import plain, start, train, train_all

Config = dict[str, Any]

SELECT = {"select": {"name": "loss", "focus": "medium", "warmup": 2, "interval": 4}}
MIX = {"mix": {"name": "odm", "warmup": 1, "interval": 3, "proportions": [0.5, 0.3, 0.2]}}
WEIGHT = {"weight": {"name": "loss", "strategy": "linupper", "warmup": 2}}


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


def close(a: dict[int, tuple[float, float]], b: dict[int, tuple[float, float]]) -> None:
    """Losses to 1e-6 relative, gradient norms to 1e-4, at every step."""
    assert a.keys() == b.keys() and a
    for step in a:
        assert a[step][0] == pytest.approx(b[step][0], rel=1e-6), f"loss at step {step}"
        assert a[step][1] == pytest.approx(b[step][1], rel=1e-4), f"gradient norm at step {step}"


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("ranks", [1, 2])
def test_uniform_weights_are_the_plain_run(base: Config, ground: Path, tmp_path: Path, ranks: int, accumulation: int) -> None:
    """Invariant 2: the loss and gradient scale of LLaMA-Factory, with accumulation and several ranks."""
    config = {**base, "model_name_or_path": str(ground / "still"), "gradient_accumulation_steps": accumulation, "max_steps": 6}
    weighted = {**config, "dataflex": {"weight": {"name": "loss", "strategy": "uniform"}}}
    stock, uniform = train_all(
        plain(config, tmp_path / "plain", ranks=ranks), start(weighted, tmp_path / "uniform", ranks=ranks)
    )
    close(uniform.ok.trace(), stock.ok.trace())


def test_selecting_everything_in_order_is_the_plain_run_unshuffled(base: Config, ground: Path, tmp_path: Path) -> None:
    """Invariant 2: 180 rows, 45 steps of 4: one interval serves them all, in order."""
    config = {**base, "model_name_or_path": str(ground / "still"), "disable_shuffling": True, "max_steps": 45}
    selected = {**config, "dataflex": {"select": {"name": "random", "interval": 45}}}
    stock, ours = train_all(
        plain(config, tmp_path / "plain"), start(selected, tmp_path / "select", hooks=["record_ids"])
    )
    close(ours.ok.trace(), stock.ok.trace())
    assert [i for ids in ours.ids().values() for i in ids] == list(range(180))


@pytest.mark.parametrize("ranks", [1, 2])
def test_scoring_leaves_no_trace(base: Config, tmp_path: Path, ranks: int) -> None:
    """Invariant 3, dropout on: scores computed and ignored against no scoring at all."""
    block = {"mix": {"name": "static", "proportions": [0.5, 0.3, 0.2]}}
    scored = {**block, "select": {"name": "loss", "warmup": 1, "interval": 2}}
    without, with_scores = train_all(
        start({**base, "dataflex": block}, tmp_path / "without", ranks=ranks, hooks=["count_forwards"]),
        start({**base, "dataflex": scored}, tmp_path / "with", ranks=ranks, hooks=["ignore_scores", "count_forwards"]),
    )
    assert with_scores.ok.trace() == without.ok.trace()
    assert without.forwards()["eval"] == 0
    assert with_scores.forwards()["eval"] == 6 * 2 // ranks  # six updates of two batches, dealt to the ranks


RUNS = {"select": SELECT, "mix": MIX, "weight": WEIGHT, "all": {**SELECT, **MIX, **WEIGHT}}


def assert_same_continuation(resumed: Any, whole: Any, step: int) -> None:
    """Everything after `step`, and the files of the whole run, are those of the run that was not killed."""
    assert resumed.trace() == whole.trace()
    assert resumed.scalars() == whole.scalars()
    assert (resumed.out / "dataflex/ledger.jsonl").exists() == (whole.out / "dataflex/ledger.jsonl").exists()
    assert resumed.ledger() == whole.ledger()
    ids, expected = resumed.ids(), whole.ids()
    assert {s: i for s, i in ids.items() if s >= step} == {s: i for s, i in expected.items() if s >= step}
    for file in sorted((whole.out / "dataflex").rglob("*.parquet")):
        assert (resumed.out / file.relative_to(whole.out)).read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize("name", RUNS)
def test_kill_and_resume_is_exact(base: Config, tmp_path: Path, name: str) -> None:
    """Invariant 4, dropout on: killed at step 7, on from the checkpoint of step 4 or 6 (off and on a boundary)."""
    config = {**base, "save_strategy": "steps", "save_steps": 2, "dataflex": RUNS[name]}
    whole, killed = train_all(
        start(config, tmp_path / "whole", hooks=["record_ids"]),
        start(config, tmp_path / "killed", hooks=["record_ids", "kill_after:7"]),
    )
    assert killed.status == [-9]
    (tmp_path / "killed" / "served-0.jsonl").unlink()
    resumed = train(config, tmp_path / "killed", hooks=["record_ids"])
    assert min(resumed.ok.ids()) == 6
    assert_same_continuation(resumed, whole.ok, 6)
