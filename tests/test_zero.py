"""The same under DeepSpeed ZeRO-2 and ZeRO-3 as under DDP, on 2 processes of the CPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import Run, free_port, start, train_all
from test_invariants import assert_same_continuation
from test_less import LORA, table

Config = dict[str, Any]
LESS = {"name": "less", "warmup": 2, "interval": 4}
_ENGINE = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "zero_allow_untested_optimizer": True,
}
# Thresholds so small that every weight matrix of the tiny model is partitioned.
_STAGES: dict[int, Config] = {
    2: {"stage": 2, "overlap_comm": False, "reduce_bucket_size": 1e5},
    3: {
        "stage": 3,
        "overlap_comm": False,
        "reduce_bucket_size": 1e5,
        "stage3_prefetch_bucket_size": 1e4,
        "stage3_param_persistence_threshold": 64,
        "stage3_max_live_parameters": 1e5,
        "stage3_max_reuse_distance": 1e5,
        "stage3_gather_16bit_weights_on_model_save": True,
    },
}


@pytest.fixture(scope="session")
def compiled() -> dict[str, str]:
    """DeepSpeed compiles an operator of its own at first use: once per environment. A build that was killed leaves a lock."""
    folder = Path(sys.prefix) / "torch-extensions"
    for lock in folder.rglob("lock"):
        lock.unlink()
    return {"TORCH_EXTENSIONS_DIR": str(folder), "NINJA_STATUS": ""}


@pytest.fixture
def aimed(base: Config) -> Config:
    return {**base, **LORA, "per_device_train_batch_size": 2, "eval_dataset": "arithmetic_heldout", "max_steps": 7}


def under(stage: int, config: Config, out: Path, compiled: dict[str, str], ranks: int = 2, hooks: Any = ()) -> Run:
    out.mkdir(parents=True, exist_ok=True)
    engine = out / "deepspeed.json"
    engine.write_text(json.dumps({**_ENGINE, "zero_optimization": _STAGES[stage]}))
    config = {k: v for k, v in config.items() if k != "use_cpu"} | {"deepspeed": str(engine)}
    env = dict(compiled)
    if ranks == 1:  # DeepSpeed wants what torchrun sets even then
        env |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        env["MASTER_PORT"] = str(free_port())
    return start(config, out, ranks=ranks, hooks=["distributed_type", "record_ids", *hooks], **env)


@pytest.mark.parametrize(("stage", "kind"), [(2, "full"), (3, "lora"), (3, "full")])
def test_less_decides_as_under_ddp(aimed: Config, tmp_path: Path, compiled: Config, stage: int, kind: str) -> None:
    """Scores from the run's own moments, partitioned here and whole there."""
    config = {**aimed, "finetuning_type": kind, "dataflex": {"select": LESS}}
    zero = under(stage, config, tmp_path / "zero", compiled).wait().ok
    assert (zero.out / "distributed_type").read_text() == f"DEEPSPEED {stage}"
    ddp = start(config, tmp_path / "ddp", ranks=2, hooks=["record_ids"]).wait().ok
    for step in (2, 6):
        a, b = table(zero, step), table(ddp, step)
        assert np.abs(a["score"] - b["score"]).max() <= 2e-5
        assert np.array_equal(a["selected"], b["selected"])
    assert zero.ids() == ddp.ids()


def test_one_and_two_ranks_decide_the_same(aimed: Config, ground: Path, tmp_path: Path, compiled: Config) -> None:
    """Invariant 5 under ZeRO-3. DeepSpeed does not load a checkpoint on another number of ranks, so both start anew; without
    dropout, whose masks belong to a rank."""
    config = {**aimed, "model_name_or_path": str(ground / "still"), "lora_dropout": 0.0, "max_steps": 4}
    config |= {"dataflex": {"select": LESS}}
    one, two = train_all(
        under(3, {**config, "per_device_train_batch_size": 4}, tmp_path / "one", compiled, ranks=1),
        under(3, config, tmp_path / "two", compiled),
    )
    assert one.ok.ids() == two.ok.ids()
    a, b = table(one, 2), table(two, 2)
    assert np.abs(a["score"] - b["score"]).max() <= 1e-5 and np.array_equal(a["selected"], b["selected"])


def test_gradients_leave_no_trace(aimed: Config, tmp_path: Path, compiled: Config) -> None:
    """Invariant 3 under ZeRO-3, dropout on: losses and gradient norms to the bit."""
    block = {"mix": {"name": "static", "proportions": [0.5, 0.3, 0.2]}}
    without = under(3, {**aimed, "dataflex": block}, tmp_path / "without", compiled).wait().ok
    scored = {**aimed, "dataflex": {**block, "select": LESS}}
    measured = under(3, scored, tmp_path / "with", compiled, hooks=["ignore_scores"]).wait().ok
    assert measured.trace() == without.trace() and len(without.trace()) == 7


def test_kill_and_resume_is_exact(aimed: Config, tmp_path: Path, compiled: Config) -> None:
    """Invariant 4 under ZeRO-3."""
    config = {**aimed, "save_strategy": "steps", "save_steps": 2, "dataflex": {"select": LESS}}
    whole, killed = train_all(
        under(3, config, tmp_path / "whole", compiled),
        under(3, config, tmp_path / "killed", compiled, hooks=["kill_after:5"]),
    )
    assert killed.status == [-9, -9]
    for file in (tmp_path / "killed").glob("served-*.jsonl"):
        file.unlink()
    resumed = under(3, config, tmp_path / "killed", compiled).wait()
    assert_same_continuation(resumed, whole, 4)


@pytest.mark.parametrize("stage", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_weights_are_those_under_ddp(
    base: Config, ground: Path, tmp_path: Path, compiled: dict[str, str], stage: int
) -> None:
    """Rows and tokens, a survey of every step, and a target embedded between the steps."""
    weights = [
        {"name": "loss", "strategy": "extremes", "scope": "global"},
        {"name": "adapt", "tau": 0.1, "refresh_interval": 2, "target_dataset": "arithmetic_heldout"},
        {"name": "focal"},
    ]
    config = {
        **base,
        "model_name_or_path": str(ground / "still"),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 4,
        "dataflex": {"mix": "static", "weight": weights},
    }
    ours, ddp = train_all(
        under(stage, config, tmp_path / "zero", compiled),
        start(config, tmp_path / "ddp", ranks=2, hooks=["record_ids"]),
    )
    assert ours.ok.ids() == ddp.ok.ids()
    for step, (loss, _) in ddp.trace().items():
        assert ours.trace()[step][0] == pytest.approx(loss, rel=1e-4)
    for step, scalars in ddp.scalars().items():
        for name in ("dataflex/weight/max", "dataflex/weight/effective_share", "dataflex/weight/token/max"):
            assert ours.scalars()[step][name] == pytest.approx(scalars[name], rel=1e-3)
    assert ddp.scalars()[1]["dataflex/weight/max"] > 1.1
