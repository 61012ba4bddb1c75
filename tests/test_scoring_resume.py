"""A scoring pass of a run that is killed goes on where it was, and nothing else changes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness import Result, start, train, train_all
from test_embeddings import build_encoder
from test_invariants import SELECT, assert_same_continuation
from test_less import LESS, LORA, table
from test_zero import compiled, under  # noqa: F401

from dataflex.signals.batching import Pool, over_pool, shards_of, token_batches
from dataflex.trainer.fingerprint import model_fingerprint, moments_fingerprint
from dataflex.trainer.passes import Passes

Config = dict[str, Any]
SHARDS = "small_shards:2000"
RDS = {"name": "rds", "warmup": 2, "interval": 4, "target_dataset": "arithmetic_heldout"}
NICE = {"name": "nice", "warmup": 2, "interval": 4, "mc_samples": 2, "max_new_tokens": 4, "reward": "own_components:length"}
CLUSTERS = {"name": "cluster_less", "warmup": 2, "interval": 4, "num_clusters": 6, "samples_per_cluster": 20}
AIMED = {**LORA, "eval_dataset": "arithmetic_heldout,code_heldout"}
RUNS: dict[str, Config] = {
    "loss": {"dataflex": SELECT},
    "less": {**AIMED, "dataflex": {"select": LESS}},
    "rds": {"dataflex": {"select": RDS}},
    "nice": {**AIMED, "dataflex": {"select": NICE}},
    "cluster_less": {**AIMED, "dataflex": {"select": CLUSTERS}},
}


def measured(run: Result) -> list[int]:
    """Rows measured in each pass that is kept."""
    return json.loads((run.out / "measured.json").read_text())


def kept(out: Path) -> list[str]:
    return sorted((f.name for f in (out / "dataflex" / "signals").glob("step_*")), key=len)


def saved(base: Config, name: str = "loss") -> Config:
    """Decisions before steps 2, 6 and 10, checkpoints at 4, 8 and 12."""
    return {**base, "save_strategy": "steps", "save_steps": 4, **RUNS[name]}


def go_on(config: Config, out: Path, ranks: int = 1, hooks: Sequence[str] = ()) -> Result:
    for file in out.glob("served-*.jsonl"):
        file.unlink()
    return train(config, out, ranks=ranks, hooks=["record_ids", "own_component", SHARDS, "count_measured", *hooks])


def start_pair(config: Config, folder: Path, kill: str, ranks: int = 1) -> tuple[Result, Result]:
    hooks = ["record_ids", "own_component", SHARDS, "count_measured"]
    return tuple(
        train_all(
            start(config, folder / "whole", ranks=ranks, hooks=hooks),
            start(config, folder / "killed", ranks=ranks, hooks=[*hooks, kill]),
        )
    )


# -- killed in the middle of a pass ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "ranks"),
    [("loss", 1), ("less", 2)] + [pytest.param(n, r, marks=pytest.mark.slow) for n in RUNS for r in (1, 2)],
)
def test_a_killed_pass_goes_on(base: Config, tmp_path: Path, name: str, ranks: int) -> None:
    """Killed after two shards of the second pass, before step 6; on from the checkpoint of step 4. Only the other shards are
    measured, and everything is as in the run that was not killed: dropout on, Adam's moments, LoRA."""
    config = saved(base, name)
    if ranks == 2:
        config |= {"per_device_train_batch_size": 2}
    at = 2 if name == "cluster_less" else 1  # whose first decision takes two passes
    whole, killed = start_pair(config, tmp_path, f"kill_after_shards:2={at}", ranks)
    assert killed.status == [-9] * ranks and kept(killed.out) == ["step_6"]
    done, rows = measured(killed)[at], measured(whole.ok)
    assert len(rows) == at + 2 and 0 < done < rows[at] and rows[0] == 180
    resumed = go_on(config, killed.out, ranks)
    assert_same_continuation(resumed, whole, 4)
    assert measured(resumed) == [rows[at] - done, rows[at + 1]]
    assert "dataflex: step 6: 2 of " in resumed.log
    assert not (resumed.out / "dataflex" / "signals").exists()
