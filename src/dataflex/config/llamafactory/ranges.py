"""Which numbers LLaMA-Factory's and transformers' keys can have: what lies outside ends a run later, or makes it senseless."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dataflex.errors import ConfigError
from dataflex.values import shown

# More than any run: a step of a hundredth of a second would go on for months.
MOST_STEPS = 10**9
# Rows that one device takes in one step, and steps that are accumulated.
MOST_ROWS = 1 << 16
_INT64 = (1 << 63) - 1


@dataclass(frozen=True)
class Range:
    """From `least` to `most` (those of 64 bits), both included, or with `above` and `below` left out. finite: not infinite."""

    least: float = -_INT64
    most: float = _INT64
    above: bool = False
    below: bool = False
    finite: bool = True

    def check(self, key: str, value: float) -> None:
        """Raise ConfigError for a number outside."""
        if math.isnan(value) or (self.finite and math.isinf(value)):
            raise ConfigError(f"{key} must be a finite number, got {shown(value)}")
        if value < self.least or (self.above and value == self.least):
            raise ConfigError(f"{key} must be {'above' if self.above else 'at least'} {self.least}, got {shown(value)}")
        if value > self.most or (self.below and value == self.most):
            raise ConfigError(f"{key} must be {'below' if self.below else 'at most'} {self.most}, got {shown(value)}")


_ROWS = Range(1, MOST_ROWS)
_COUNT = Range(1, _INT64)
_NOT_NEGATIVE = Range(0)
_POSITIVE = Range(0, above=True)
_SHARE = Range(0, 1)
_BETA = Range(0, 1, below=True)
_RANK = Range(1, MOST_ROWS)
_SEED = Range(0, (1 << 32) - 1)  # what numpy takes
_WORKERS = 1024

RANGES: Mapping[str, Range] = {
    # steps and rows
    "per_device_train_batch_size": _ROWS,
    "per_device_eval_batch_size": _ROWS,
    "gradient_accumulation_steps": _ROWS,
    "eval_accumulation_steps": _COUNT,
    "max_steps": Range(-1, MOST_STEPS),
    "num_train_epochs": Range(0, 10**6),
    "warmup_steps": Range(0, MOST_STEPS),
    "warmup_ratio": _SHARE,
    "logging_steps": Range(most=MOST_STEPS),
    "save_steps": Range(most=MOST_STEPS),
    "eval_steps": Range(most=MOST_STEPS),
    "eval_delay": _NOT_NEGATIVE,
    "early_stopping_steps": _COUNT,
    # data
    "cutoff_len": Range(1, (1 << 31) - 1),
    "max_samples": _COUNT,
    "buffer_size": _COUNT,
    "val_size": _NOT_NEGATIVE,
    "preprocessing_num_workers": Range(1, _WORKERS),
    "dataloader_num_workers": Range(0, _WORKERS),
    "dataloader_prefetch_factor": _COUNT,
    # optimizer
    "learning_rate": _NOT_NEGATIVE,
    "weight_decay": _NOT_NEGATIVE,
    "adam_beta1": _BETA,
    "adam_beta2": _BETA,
    "adam_epsilon": _NOT_NEGATIVE,
    "max_grad_norm": Range(most=math.inf, finite=False),
    "label_smoothing_factor": _SHARE,
    "neftune_noise_alpha": _NOT_NEGATIVE,
    "seed": _SEED,
    "data_seed": _SEED,
    # adapters
    "lora_rank": _RANK,
    "lora_dropout": _SHARE,
    "loraplus_lr_ratio": _POSITIVE,
    "loraplus_lr_embedding": _NOT_NEGATIVE,
    "pissa_iter": Range(-1, MOST_STEPS),
    "module_dropout": _SHARE,
    "oft_rank": Range(0, MOST_ROWS),
    "oft_block_size": Range(0, MOST_ROWS),
    "galore_rank": _RANK,
    "galore_update_interval": _COUNT,
    "apollo_rank": _RANK,
    "apollo_update_interval": _COUNT,
    "badam_switch_interval": Range(-1, MOST_STEPS),
    "badam_update_ratio": Range(0, 1, above=True),
    # losses
    "pref_beta": _NOT_NEGATIVE,
    "pref_ftx": _NOT_NEGATIVE,
    "pref_bco_weight": _NOT_NEGATIVE,
    "dpo_label_smoothing": _SHARE,
    "kto_chosen_weight": _NOT_NEGATIVE,
    "kto_rejected_weight": _NOT_NEGATIVE,
    "ld_alpha": _SHARE,
    "moe_aux_loss_coef": _NOT_NEGATIVE,
    # processes
    "ddp_timeout": Range(1, 10**8),
    "ddp_bucket_cap_mb": _COUNT,
    "ray_num_workers": Range(1, MOST_ROWS),
    # generation
    "eval_num_beams": _COUNT,
    "generation_max_length": _COUNT,
    "generation_num_beams": _COUNT,
    "num_beams": _COUNT,
    "max_new_tokens": _COUNT,
    # models
    "quantization_bit": Range(1, 8),
    "ref_model_quantization_bit": Range(1, 8),
    "reward_model_quantization_bit": Range(1, 8),
    "image_max_pixels": _COUNT,
    "image_min_pixels": _COUNT,
    "video_max_pixels": _COUNT,
    "video_min_pixels": _COUNT,
    "video_fps": _POSITIVE,
    "video_maxlen": _COUNT,
    "audio_sampling_rate": _COUNT,
}
# Of every other key.
_ANY = Range()


def check_range(key: str, value: Any) -> None:
    """Raise ConfigError for a number that its key cannot have."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        RANGES.get(key, _ANY).check(key, value)
