"""Every key of the Trainer and of accelerate is known, and those that change what a step is are honoured or refused."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from harness import plain, start, train, train_all

from dataflex.config.llamafactory import trainer_keys
from dataflex.config.load import parse
from dataflex.config.refusals.run import ACCELERATOR_FIELDS, TRAINER_KEYS
from dataflex.errors import ConfigError

Config = dict[str, Any]
STATIC: Config = {"mix": {"name": "static"}}
RANDOM: Config = {"select": {"name": "random", "interval": 3}}
LOSS: Config = {"weight": {"name": "loss"}}


# -- the table -------------------------------------------------------------------------------------------------------


def groups() -> dict[str, set[str]]:
    return {
        "honoured": set(trainer_keys.HONOURED),
        "free": set(trainer_keys.FREE),
        "elsewhere": set(trainer_keys.ELSEWHERE),
        "refused": {refusal.key for refusal in TRAINER_KEYS},
    }


def test_every_key_of_the_trainer_is_in_one_group() -> None:
    """A field that a later release of transformers or LLaMA-Factory brings fails here until it is classified."""
    from llamafactory.hparams import TrainingArguments

    known = [key for group in groups().values() for key in group]
    assert len(known) == len(set(known))
    theirs = {f.name for f in fields(TrainingArguments) if f.init}
    assert theirs - set(known) == set()
    assert set(known) - theirs == {"group_by_length"}  # of transformers 4


def test_every_field_of_accelerator_config_is_in_one_group() -> None:
    from transformers.trainer_pt_utils import AcceleratorConfig

    refused = [refusal.key.removeprefix("accelerator_config.") for refusal in ACCELERATOR_FIELDS]
    known = [*trainer_keys.ACCELERATOR_HONOURED, *trainer_keys.ACCELERATOR_FREE, *refused]
    assert sorted(known) == sorted(f.name for f in fields(AcceleratorConfig))


def test_what_is_checked_elsewhere_is_checked_there() -> None:
    source = Path(trainer_keys.__file__).parents[2]
    for key, file in trainer_keys.ELSEWHERE.items():
        assert f'"{key}"' in (source / file).read_text(), (key, file)


def parsed(block: Config, **keys: Any) -> Any:
    stock = {"stage": "sft", "do_train": True, "dataset": "code", "template": "qwen", "model_name_or_path": "x"}
    return parse({**stock, **keys, "dataflex": block})


BOTH, ORDERED, ALONE = [STATIC, RANDOM, LOSS], [STATIC, RANDOM], [LOSS]
REFUSED: list[tuple[Config, list[Config], str]] = [
    ({"auto_find_batch_size": True}, BOTH, "auto_find_batch_size changes the global batch mid-run"),
    ({"enable_jit_checkpoint": True}, BOTH, "enable_jit_checkpoint saves in the middle of a step"),
    ({"ignore_data_skip": "true"}, ORDERED, "ignore_data_skip makes an exact resume impossible"),
    ({"group_by_length": True}, ORDERED, "group_by_length orders rows itself"),
    ({"train_sampling_strategy": "group_by_length"}, ORDERED, "train_sampling_strategy: group_by_length orders"),
    ({"train_sampling_strategy": "sequential"}, ORDERED, "train_sampling_strategy: sequential has no effect"),
    ({"accelerator_config": {"dispatch_batches": True}}, ALONE, "accelerator_config.dispatch_batches joins batches"),
    ({"accelerator_config": {"even_batches": False}}, ALONE, "accelerator_config.even_batches: false gives ranks"),
    ({"accelerator_config": '{"use_seedable_sampler": false}'}, ALONE, "accelerator_config.use_seedable_sampler: false"),
    (
        {"accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": 3}}, "gradient_accumulation_steps": 2}, BOTH,
        "accelerator_config.gradient_accumulation_kwargs.num_steps: 3 contradicts gradient_accumulation_steps: 2",
    ),
    ({"accelerator_config": "nowhere.json"}, BOTH, "accelerator_config must be a mapping or a JSON file"),
    ({"accelerator_config": {"split_batches": True}, "deepspeed": "x.json"}, BOTH, "accelerator_config.split_batches"),
]  # fmt: skip


@pytest.mark.parametrize(
    "case", range(len(REFUSED)), ids=[next(iter(k)) + str(i) for i, (k, _, _) in enumerate(REFUSED)]
)
def test_what_is_refused_and_where(case: int) -> None:
    """Refused with the components for which it is wrong, in words that name the key, and with no others."""
    keys, blocks, words = REFUSED[case]
    for block in BOTH:
        if block in blocks:
            with pytest.raises(ConfigError) as error:
                parsed(block, **keys)
            assert str(error.value).startswith(words)
        else:
            assert parsed(block, **keys).dataflex is not None


def test_values_that_change_nothing_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"even_batches": True, "dispatch_batches": None, "non_blocking": True}))
    for block in BOTH:
        parsed(block, accelerator_config=str(tmp_path / "a.json"), auto_find_batch_size=False, ignore_data_skip=None)


@pytest.mark.parametrize("block, rows, counted", [(STATIC, 2, 2 * 3 * 4), (LOSS, 8, 8 * 3)])
def test_the_global_batch_is_what_is_served(block: Config, rows: int, counted: int) -> None:
    """8 rows, split over 4 ranks, 3 times: 24, whoever loads them."""
    config = parsed(block).dataflex
    accelerator = SimpleNamespace(
        split_batches=True, gradient_accumulation_kwargs={"num_steps": 3, "sync_each_batch": True}
    )
    args = SimpleNamespace(
        accelerator_config=accelerator, world_size=4, per_device_train_batch_size=8, gradient_accumulation_steps=1
    )
    trainer_keys.settle_batch(config, args)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (rows, 3)
    assert accelerator.gradient_accumulation_kwargs == {"sync_each_batch": True}
    assert trainer_keys.global_batch(config, args) == counted == 24
    args.per_device_train_batch_size = 6
    with pytest.raises(ConfigError, match="6 is no multiple of that; use 4"):
        trainer_keys.settle_batch(config, args)


# -- runs on two ranks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "block", [pytest.param(STATIC, id="mix"), pytest.param(RANDOM, id="select", marks=pytest.mark.slow)]
)
def test_split_batches_serves_the_rows_of_one_rank(base: Config, tmp_path: Path, block: Config) -> None:
    """per_device_train_batch_size is what both ranks get together, as in LLaMA-Factory's own run; and num_steps counts."""
    config = {**base, "max_steps": 4, "dataflex": block}
    split = {"split_batches": True, "gradient_accumulation_kwargs": {"num_steps": 2}}
    one, two = train_all(
        start({**config, "gradient_accumulation_steps": 2}, tmp_path / "1", hooks=["record_ids"]),
        start({**config, "accelerator_config": split}, tmp_path / "2", ranks=2, hooks=["record_ids"]),
    )
    assert two.ok.ids() == one.ok.ids()
    assert {len(ids) for ids in two.ids().values()} == {8}


def test_split_batches_with_weight_is_the_plain_run(base: Config, ground: Path, tmp_path: Path) -> None:
    """Uniform weights: the losses of LLaMA-Factory's own run on two ranks; a checkpoint knows how many rows a step had."""
    config = {
        **base,
        "model_name_or_path": str(ground / "still"),
        "max_steps": 4,
        "accelerator_config": {"split_batches": True},
    }
    saving = {"save_strategy": "steps", "save_steps": 2}
    block = {"weight": {"name": "loss", "warmup": 99}}
    stock, ours = train_all(
        plain(config, tmp_path / "1", ranks=2),
        start({**config, **saving, "dataflex": block}, tmp_path / "2", ranks=2),
    )
    assert [r["loss"] for r in ours.ok.history()] == pytest.approx([r["loss"] for r in stock.ok.history()], rel=1e-6)
    state = json.loads((ours.out / "checkpoint-2/dataflex/state.json").read_text())
    assert (state["global_batch"], state["position"]) == (4, 8)


def test_a_batch_that_cannot_be_split_is_one_line(base: Config, tmp_path: Path) -> None:
    config = {
        **base,
        "per_device_train_batch_size": 3,
        "accelerator_config": {"split_batches": True},
        "dataflex": STATIC,
    }
    run = train(config, tmp_path / "run", ranks=2)
    assert 2 in run.status and "trainable params" not in run.log
    assert (
        "dataflex: error: accelerator_config.split_batches: per_device_train_batch_size is shared by 2 ranks" in run.log
    )
