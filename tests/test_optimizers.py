"""Runs go on exactly with every optimizer whose state a checkpoint holds; with the others they say that they cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness import start, train, train_all

from dataflex.base.checks import optimizers

Config = dict[str, Any]
BLOCK: Config = {"mix": {"name": "odm", "interval": 2}, "weight": {"name": "loss"}}
LORA: Config = {"finetuning_type": "lora", "lora_rank": 4, "lora_target": "all", "loraplus_lr_ratio": 8.0}
EXACT: dict[str, Config] = {
    "muon": {"use_muon": True, "optim": "adamw_torch"},
    "lora+": {**LORA, "optim": "adamw_torch"},
    "adamw_torch": {"optim": "adamw_torch"},
    "adamw_torch_fused": {"optim": "adamw_torch_fused"},
    "adafactor": {"optim": "adafactor"},
    "sgd": {"optim": "sgd", "optim_args": "momentum=0.9"},
    "adagrad": {"optim": "adagrad"},
    "rmsprop": {"optim": "rmsprop", "optim_args": "momentum=0.5"},
}


def goes_on_exactly(base: Config, tmp_path: Path, optimizer: str) -> None:
    config = {**base, **EXACT[optimizer], "max_steps": 8, "save_strategy": "steps", "save_steps": 4, "dataflex": BLOCK}
    whole, killed = train_all(
        start(config, tmp_path / "whole"), start(config, tmp_path / "killed", hooks=["kill_after:5"])
    )
    assert killed.status == [-9], killed.log[-2000:]
    resumed = train(config, tmp_path / "killed", hooks=["record_ids"]).ok
    assert min(resumed.ids()) == 4
    assert resumed.trace() == whole.ok.trace() and len(whole.trace()) == 8
    assert "cannot go on from its checkpoints" not in whole.log
    weights = [next(r.out.glob("checkpoint-8/*model.safetensors")).read_bytes() for r in (whole, resumed)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("optimizer", ["muon"])
def test_killed_and_resumed_is_not_killed(base: Config, tmp_path: Path, optimizer: str) -> None:
    goes_on_exactly(base, tmp_path, optimizer)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [name for name in EXACT if name != "muon"])
def test_killed_and_resumed_is_not_killed_slow(base: Config, tmp_path: Path, optimizer: str) -> None:
    goes_on_exactly(base, tmp_path, optimizer)


def test_every_optimizer_of_transformers_is_in_one_group() -> None:
    """One that a later release brings fails here until it is classified."""
    from transformers.training_args import OptimizerNames

    known = [*optimizers.WHOLE, *optimizers.LOST, *optimizers.ROUNDED]
    assert sorted(known) == sorted(o.value for o in OptimizerNames)


def test_every_optimizer_of_llamafactory_is_known() -> None:
    """Those that `create_custom_optimizer` chooses by a key."""
    import inspect
    import re

    from llamafactory.train.trainer_utils import create_custom_optimizer

    keys = set(re.findall(r"finetuning_args\.(\w+)", inspect.getsource(create_custom_optimizer)))
    assert keys == {*optimizers.LOST_KEYS, "use_adam_mini", "use_muon", "loraplus_lr_ratio"}


LOST: list[tuple[Config, str | None]] = [
    ({"use_badam": True}, "use_badam keeps which parameters are in turn"),
    ({"use_badam": "true", "badam_mode": "ratio"}, "use_badam keeps which parameters are in turn"),
    ({"use_galore": True}, "use_galore keeps its projections as objects"),
    ({"use_galore": True, "galore_layerwise": True}, "use_galore steps in hooks of its own"),
    ({"use_apollo": 1, "apollo_layerwise": "true"}, "use_apollo steps in hooks of its own"),
    ({"optim": "galore_adamw"}, "optim: galore_adamw keeps its projections"),
    ({"optim": "apollo_adamw_layerwise"}, "optim: apollo_adamw_layerwise steps in hooks"),
    ({"optim": "adalomo"}, "optim: adalomo keeps its second moments"),
    ({"use_badam": False, "use_muon": True, "optim": "adamw_torch"}, None),
    ({}, None),
]


@pytest.mark.parametrize("keys, words", LOST)
def test_what_a_checkpoint_does_not_hold_is_said(keys: Config, words: str | None) -> None:
    found = optimizers.lost_state(keys)
    assert found is None if words is None else found is not None and found.startswith(words)
    notices = optimizers.optimizer_notices({**keys, "save_strategy": "steps"})
    assert notices == ([] if found is None else [f"{found}: this run cannot go on from its checkpoints"])
    assert optimizers.optimizer_notices({**keys, "save_strategy": "no"}) == []


def test_a_run_with_such_an_optimizer_says_so_and_does_not_go_on(base: Config, tmp_path: Path) -> None:
    """Block by block, on what BAdam does to the moments; the checkpoint stays as it is."""
    config = {**base, "max_steps": 6, "save_strategy": "steps", "save_steps": 3, "dataflex": BLOCK}
    killed = train({**config, "use_badam": True}, tmp_path / "run", hooks=["block_optimizer", "kill_after:4"])
    assert killed.status == [-9], killed.log[-2000:]
    assert killed.log.count("outside its state_dict: this run cannot go on from its checkpoints") == 1
    mark = (tmp_path / "run" / "checkpoint-3" / "dataflex" / "COMPLETE").read_bytes()
    resumed = train({**config, "use_badam": True}, tmp_path / "run", hooks=["block_optimizer"])
    assert resumed.status == [2] and "trainable params" not in resumed.log
    lines = [line for line in resumed.log.splitlines() if line.startswith("dataflex: error: ")]
    assert len(lines) == 1 and "checkpoint-3: use_badam keeps which parameters are in turn" in lines[0]
    assert (tmp_path / "run" / "checkpoint-3" / "dataflex" / "COMPLETE").read_bytes() == mark
