"""The runs of the demonstration, each as a configuration that `dataflex-cli train` repeats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataflex.demo.data import HELDOUT
from dataflex.demo.planted import MISLABELLED, TARGET
from dataflex.demo.scales import Scale

MIN_STEPS = 12
BATCH = 8
SELECTED = 20
"""Batches of rows that a selection takes, once; they are served again and again."""
PLAIN = ("plain", "plain-2", "plain-3")
"""The same run with three seeds: their spread is the noise."""
RUNS = (*PLAIN, "random", "select", "mix", "mislabelled", "weight")


@dataclass(frozen=True)
class Setting:
    """out: folder of the demonstration. heldout: rows of the largest held-out data set."""

    out: Path
    model: Path
    domains: Sequence[str]
    scale: Scale
    steps: int
    seed: int
    heldout: int


def run_configs(setting: Setting) -> dict[str, dict[str, Any]]:
    """By name, in the order in which they run: what LLaMA-Factory is told, and what DataFlex adds to it.

    `weight` is weighed by what `plain` has learned, so `plain` comes first.
    """
    root, domains, steps, scale = setting.out.resolve(), list(setting.domains), setting.steps, setting.scale
    common: dict[str, Any] = {
        "model_name_or_path": str(setting.model),
        "stage": "sft",
        "do_train": True,
        "do_eval": True,
        **scale.keys,
        "dataset_dir": str(root / "data"),
        "dataset": ",".join(domains),
        "eval_dataset": ",".join(domain + HELDOUT for domain in domains),
        "eval_on_each_dataset": True,
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": 1,
        # A held-out set in one batch: the Trainer averages batches, so only then is its loss the mean over tokens.
        "per_device_eval_batch_size": setting.heldout,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": max(1, steps // 10),
        "seed": setting.seed,
        "max_steps": steps,
        "use_cpu": True,
        "report_to": "none",
        "logging_steps": max(1, steps // 12),
        "save_strategy": "no",
        "overwrite_output_dir": True,
        "dataloader_pin_memory": False,
        "disable_tqdm": False,
    }
    once = {"warmup": 0, "interval": min(SELECTED, steps), "updates": 1}
    twelfth = max(1, steps // 12)
    mix = {"name": "loss_gap", "losses": "train", "reference_losses": [scale.wanted_loss] * len(domains)}
    mislabelled = {"dataset": ",".join(domain + MISLABELLED for domain in domains)}
    differences: dict[str, dict[str, Any]] = {
        **{name: {"seed": setting.seed + number} for number, name in enumerate(PLAIN)},
        "random": {"dataflex": {"select": {"name": "random", **once}}},
        "select": {"dataflex": {"select": {"name": "rds", "target_dataset": TARGET, **once}}},
        "mix": {"dataflex": {"mix": {**mix, "smoothing": 0.25, "warmup": twelfth, "interval": twelfth}}},
        "mislabelled": mislabelled,
        "weight": {
            **mislabelled,
            "dataflex": {"weight": {"name": "rho1", "reference_model_path": str(root / PLAIN[0])}},
        },
    }
    return {name: {**common, **differences[name], "output_dir": str(root / name)} for name in RUNS}
