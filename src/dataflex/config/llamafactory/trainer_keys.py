"""Every key of the Trainer and of accelerate, by what it does to a run with select, mix or weight.

A key that is in no group is unknown to this version: `tests/test_trainer_keys.py` goes through the dataclasses of the releases
that are installed. Keys that change what a step is are honoured exactly or refused; none is without effect in silence.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from dataflex.errors import ConfigError, nearest

# They say what a step is, or which model and rows it works on, and mean what they mean in the Trainer's own run.
HONOURED = frozenset({
    "per_device_train_batch_size", "num_train_epochs", "max_steps", "gradient_accumulation_steps", "dataloader_drop_last",
    "average_tokens_across_devices", "seed", "data_seed", "full_determinism", "learning_rate", "lr_scheduler_type",
    "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon",
    "max_grad_norm", "label_smoothing_factor", "neftune_noise_alpha", "bf16", "fp16", "fp8", "fp8_backend",
    "fp8_enable_fsdp_float8_all_gather", "tf32", "gradient_checkpointing", "gradient_checkpointing_kwargs", "use_cpu",
    "resume_from_checkpoint", "output_dir", "overwrite_output_dir", "dataloader_num_workers", "dataloader_prefetch_factor",
    "dataloader_pin_memory", "save_strategy", "save_steps", "save_total_limit", "save_on_each_node", "eval_strategy",
    "eval_steps", "eval_delay", "logging_strategy", "logging_steps", "load_best_model_at_end", "predict_with_generate",
    "torch_compile", "torch_compile_backend", "torch_compile_mode", "ddp_backend", "ddp_timeout", "local_rank",
    "include_num_input_tokens_seen", "deepspeed", "fsdp", "fsdp_config", "ray_num_workers", "ray_init_kwargs", "master_addr",
    "master_port", "optim_args", "optim_target_modules",
})  # fmt: skip

# No effect on what a step is: logging, evaluation, uploads, memory, and how gradients travel.
FREE = frozenset({
    "logging_first_step", "log_on_each_node", "logging_nan_inf_filter", "log_level", "log_level_replica", "disable_tqdm",
    "report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "logging_dir",
    "per_device_eval_batch_size", "prediction_loss_only", "eval_on_start", "eval_do_concat_batches", "eval_use_gather_object",
    "eval_accumulation_steps", "include_for_metrics", "batch_eval_metrics", "bf16_full_eval", "fp16_full_eval",
    "metric_for_best_model", "greater_is_better", "do_eval", "do_predict", "hub_token", "hub_private_repo", "hub_model_id",
    "hub_always_push", "hub_revision", "restore_callback_states_from_checkpoint", "torch_empty_cache_steps", "use_cache",
    "debug", "skip_memory_metrics", "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers",
    "ddp_static_graph", "generation_max_length", "generation_num_beams", "generation_config", "liger_kernel_config",
    "enable_torch_profiler", "profiler_output_dir", "profiler_wait_steps", "profiler_warmup_steps", "profiler_active_steps",
    "profiler_repeat", "profiler_record_shapes", "profiler_profile_memory", "profiler_with_stack", "profile_modules",
    # The loader of select and mix keeps its workers in any case; with weight alone the Trainer's own does as it is told.
    "dataloader_persistent_workers",
    # LLaMA-Factory sets them itself, or what reads them is refused.
    "remove_unused_columns", "label_names", "length_column_name", "sortish_sampler",
})  # fmt: skip

# Checked where what they go with is.
ELSEWHERE: Mapping[str, str] = {
    "do_train": "config/refusals/run.py", "push_to_hub": "config/refusals/run.py", "hub_strategy": "config/refusals/run.py",
    "parallelism_config": "config/refusals/run.py", "save_only_model": "config/load.py",
    "use_liger_kernel": "config/schema/losses.py",
    "accelerator_config": "config/refusals/record.py", "optim": "base/checks/optimizers.py",
}  # fmt: skip


class Block(Protocol):
    """What of the `dataflex` block decides here."""

    @property
    def plans_data(self) -> bool: ...


# Fields of `accelerator_config`. split_batches and num_steps are honoured: see `settle_batch`.
ACCELERATOR_HONOURED = frozenset({"split_batches", "gradient_accumulation_kwargs"})
ACCELERATOR_FREE = frozenset({"non_blocking", "use_configured_state"})


def accelerator_fields(given: Any) -> dict[str, Any]:
    """`accelerator_config` as fields: a mapping, JSON, or the path of a JSON file."""
    if given is None or isinstance(given, Mapping):
        return dict(given or {})
    text = str(given)
    try:
        found = json.loads(text if text.lstrip().startswith("{") else Path(text).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"accelerator_config must be a mapping or a JSON file, got {text!r} ({error})") from None
    if not isinstance(found, dict):
        raise ConfigError(f"accelerator_config must hold keys and values, got {text!r}")
    return found


def refused_accelerator(given: Any, known: Collection[str]) -> Iterator[str]:
    """Names in `accelerator_config` that are not `known`."""
    for name in accelerator_fields(given):
        if name not in known:
            yield f"accelerator_config.{name}: unknown key{nearest(str(name), known)}"


def num_steps(accelerator: Mapping[str, Any]) -> int | None:
    """Steps that `gradient_accumulation_kwargs` asks for; None where it says nothing, ConfigError where it is no number."""
    kwargs = accelerator.get("gradient_accumulation_kwargs")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise ConfigError(f"accelerator_config.gradient_accumulation_kwargs must hold keys and values, got {kwargs!r}")
    steps = (kwargs or {}).get("num_steps")
    if steps is None:
        return None
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ConfigError(
            f"accelerator_config.gradient_accumulation_kwargs.num_steps must be a positive integer, got {steps!r}"
        )
    return steps


def settle_batch(config: Block, training_args: Any) -> None:
    """Give the keys that all else counts by the values that `accelerator_config` makes of them, before anything counts.

    num_steps is another spelling of gradient_accumulation_steps. With split_batches, per_device_train_batch_size is what all
    ranks get together of a micro-batch; where rows are ours, each rank serves its part of it."""
    accelerator = training_args.accelerator_config
    kwargs = accelerator.gradient_accumulation_kwargs or {}
    if kwargs.get("num_steps") is not None:
        training_args.gradient_accumulation_steps = kwargs["num_steps"]
        accelerator.gradient_accumulation_kwargs = {k: v for k, v in kwargs.items() if k != "num_steps"}
    ranks, rows = training_args.world_size, training_args.per_device_train_batch_size
    if not accelerator.split_batches or ranks == 1:
        return
    if rows % ranks:
        raise ConfigError(
            f"accelerator_config.split_batches: per_device_train_batch_size is shared by {ranks} ranks then, and {rows} is"
            f" no multiple of that; use {max(1, rows // ranks) * ranks}"
        )
    if config.plans_data:
        training_args.per_device_train_batch_size = rows // ranks


def global_batch(config: Block, training_args: Any) -> int:
    """Rows of an optimizer step over all ranks, once `settle_batch` has seen the arguments: with weight alone the loader is the
    Trainer's, and splits what it reads for one rank."""
    split = training_args.accelerator_config.split_batches and not config.plans_data
    rows = training_args.per_device_train_batch_size * training_args.gradient_accumulation_steps
    return int(rows * (1 if split else training_args.world_size))
