"""Refused with any component: what takes the place of the Trainer's loop, or changes what a step is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from dataflex.config.llamafactory.trainer_keys import num_steps
from dataflex.config.refusals import loaded
from dataflex.config.refusals.record import Facts, Group, Refusal
from dataflex.values import truth


def _replaces_trainer(key: str, environment: bool) -> Refusal:
    def when(facts: Facts) -> bool:
        return facts.on(key) or (environment and truth(os.getenv(key.upper()), key.upper()))

    return Refusal(key=key, why=f"{key} replaces the Trainer and cannot be combined with {{components}}", when=when)


def _trainer_key(key: str, why: str, when: Any) -> Refusal:
    return Refusal(key=key, why=f"{why} and cannot be combined with {{components}}", when=when)


def _accelerator(field: str, why: str, holds: Any) -> Refusal:
    """Of a field of `accelerator_config`, with weight alone: the loader of select and mix is not accelerate's. Every global batch
    of theirs is whole, and every rank reads its own."""
    key = f"accelerator_config.{field}"

    def when(facts: Facts) -> bool:
        value = facts.accelerator.get(field)
        return value is not None and not facts.config.plans_data and holds(truth(value, key))

    return _trainer_key(key, f"{key}{why}", when)


def _other_accumulation(facts: Facts) -> Mapping[str, Any] | None:
    steps, accumulation = num_steps(facts.accelerator), facts.lf.get("gradient_accumulation_steps")
    differs = steps is not None and accumulation not in (None, 1, "1", steps, str(steps))
    return {"steps": steps, "accumulation": accumulation} if differs else None


def _not_for_deepspeed(facts: Facts) -> Mapping[str, Any] | None:
    splits = truth(facts.accelerator.get("split_batches"), "accelerator_config.split_batches")
    if not facts.lf.get("deepspeed") or not (splits or num_steps(facts.accelerator) not in (None, 1)):
        return None
    return {"field": "split_batches" if splits else "gradient_accumulation_kwargs.num_steps"}


_RUN = (
    Refusal(
        key="stage",
        why="stage: ppo cannot be combined with {components} (it draws its own rollouts)",
        instead="use pt, sft, rm, dpo, kto",
        when=lambda f: f.stage == "ppo",
    ),
    _replaces_trainer("use_mca", True),
    _replaces_trainer("use_hyper_parallel", False),
    _replaces_trainer("use_kt", True),
    Refusal(
        key="USE_RAY",
        why="USE_RAY starts workers that train",
        instead="leave it out for a selection before training",
        when=lambda f: f.config.offline is not None and truth(os.getenv("USE_RAY"), "USE_RAY"),
    ),
    Refusal(key="do_train", why="do_train must be true with {components}", when=lambda f: not f.on("do_train")),
    Refusal(
        key="hub_strategy",
        why="hub_strategy: {lf[hub_strategy]} uploads checkpoints before they are complete",
        instead="use end or every_save",
        when=lambda f: f.on("push_to_hub") and f.lf.get("hub_strategy") in ("checkpoint", "all_checkpoints"),
    ),
    _trainer_key(
        "parallelism_config",
        "parallelism_config splits rows or models over ranks",
        lambda f: bool(f.lf.get("parallelism_config")),
    ),
)

TRAINER_KEYS = (
    _trainer_key(
        "auto_find_batch_size",
        "auto_find_batch_size changes the global batch mid-run",
        lambda f: f.on("auto_find_batch_size"),
    ),
    _trainer_key(
        "enable_jit_checkpoint",
        "enable_jit_checkpoint saves in the middle of a step, from where nothing goes on exactly,",
        lambda f: f.on("enable_jit_checkpoint"),
    ),
    _trainer_key(
        "ignore_data_skip",
        "ignore_data_skip makes an exact resume impossible",
        lambda f: f.config.plans_data and f.on("ignore_data_skip"),
    ),
    _trainer_key(
        "group_by_length",
        "group_by_length orders rows itself",
        lambda f: f.config.plans_data and f.on("group_by_length"),
    ),
    _trainer_key(
        "train_sampling_strategy",
        "train_sampling_strategy: group_by_length orders rows itself",
        lambda f: f.config.plans_data and f.word("train_sampling_strategy") == "group_by_length",
    ),
    _trainer_key(
        "train_sampling_strategy",
        "train_sampling_strategy: sequential has no effect (set disable_shuffling instead)",
        lambda f: f.config.plans_data and f.word("train_sampling_strategy") == "sequential",
    ),
)

ACCELERATOR_FIELDS = (
    _accelerator("dispatch_batches", " joins batches that are padded differently", bool),
    _accelerator("even_batches", ": false gives ranks different numbers of rows", lambda on: not on),
    _accelerator("use_seedable_sampler", ": false orders rows by what is not saved", lambda on: not on),
)

_ACCELERATOR = (
    Refusal(
        key="accelerator_config.gradient_accumulation_kwargs.num_steps",
        why="accelerator_config.gradient_accumulation_kwargs.num_steps: {steps} contradicts gradient_accumulation_steps:"
        " {accumulation}",
        instead="keep one of them",
        when=_other_accumulation,
    ),
    Refusal(
        key="accelerator_config.{field}",
        why="accelerator_config.{field} is not known to deepspeed, which counts rows itself",
        instead="set per_device_train_batch_size and gradient_accumulation_steps",
        when=_not_for_deepspeed,
    ),
)

RUN = Group(title="With any component", refusals=(*_RUN, *loaded.RUN))
TRAINER = Group(
    title="Keys of the Trainer",
    refusals=(*TRAINER_KEYS, *ACCELERATOR_FIELDS, *_ACCELERATOR),
    note="Every key of the Trainer and of `accelerator_config` is in one group of `config/llamafactory/trainer_keys.py`:"
    " honoured, without effect on what a step is, or refused. A test goes through the dataclasses of the installed releases, so"
    " a new key fails it. `ignore_data_skip`, `group_by_length` and `train_sampling_strategy` are refused with `select`, `mix` or"
    " `order`."
    " `dispatch_batches`, `even_batches` and `use_seedable_sampler` are refused with `weight` alone: they concern LLaMA-Factory's"
    " loader, and `select` and `mix` have their own. With `split_batches` on several ranks, `per_device_train_batch_size` is what"
    " all ranks get together of a micro-batch.",
)
