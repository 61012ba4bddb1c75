"""Four short runs side by side on a CPU: plain, with selection, with mixing, with weighting."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from dataflex import notices
from dataflex.demo.table import RunResult, format_table, read_result
from dataflex.errors import ConfigError, DataflexError

RUNS = ("static", "select", "mix", "weight")
MIN_STEPS = 12
_RESULTS = "dataflex-demo.json"
_LOG = "demo.log"


def run_configs(
    out: Path, domains: Sequence[str], steps: int = 60, seed: int = 0, heldout: int = 32
) -> dict[str, dict[str, Any]]:
    """The configuration of each run, by name: one LLaMA-Factory configuration, and what DataFlex adds to it.

    `heldout` is the number of held-out rows of the largest domain.
    """
    from dataflex.demo.data import HELDOUT

    root = out.resolve()
    common: dict[str, Any] = {
        "model_name_or_path": str(root / "model"),
        "stage": "sft",
        "do_train": True,
        "do_eval": True,
        "finetuning_type": "full",
        "dataset_dir": str(root / "data"),
        "dataset": ",".join(domains),
        "eval_dataset": ",".join(domain + HELDOUT for domain in domains),
        "eval_on_each_dataset": True,
        "template": "qwen",
        "cutoff_len": 256,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        # A held-out set in one batch: the Trainer averages batches, so only then is its loss the mean over tokens.
        "per_device_eval_batch_size": heldout,
        "learning_rate": 5.0e-3,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": max(1, steps // 10),
        "seed": seed,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "logging_steps": max(1, steps // 12),
        "save_strategy": "no",
        "overwrite_output_dir": True,
        "dataloader_pin_memory": False,
        "disable_tqdm": False,
    }
    sixth, twelfth = steps // 6, steps // 12
    blocks: dict[str, dict[str, Any]] = {
        "select": {"name": "loss", "focus": "medium", "warmup": sixth, "interval": sixth},
        "mix": {"name": "odm", "warmup": sixth, "interval": twelfth},
        "weight": {"name": "loss", "strategy": "linupper", "warmup": twelfth},
    }
    configs: dict[str, dict[str, Any]] = {"static": {**common, "output_dir": str(root / "static"), "max_steps": steps}}
    for slot, block in blocks.items():
        dataflex = {"total_steps": steps, slot: block}
        configs[slot] = {**common, "output_dir": str(root / slot), "dataflex": dataflex}
    return configs


@contextlib.contextmanager
def _quiet(log: TextIO) -> Iterator[None]:
    """Send what the libraries print to `log` and hold back their notices; training's progress bar stays on stderr."""
    import datasets
    import transformers

    variable = "LLAMAFACTORY_VERBOSITY"
    verbosity, before = transformers.utils.logging.get_verbosity(), os.environ.get(variable)
    logger = logging.getLogger("llamafactory")
    level, console = logger.level, sys.stdout
    os.environ[variable] = "WARNING"
    logger.setLevel(logging.WARNING)
    _redirect(logger, console, log)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        with contextlib.redirect_stdout(log), notices.into(log):
            yield
    finally:
        datasets.enable_progress_bars()
        transformers.utils.logging.enable_progress_bar()
        transformers.utils.logging.set_verbosity(verbosity)
        logger.setLevel(level or logging.INFO)
        # A handler made inside the block holds on to the stream it found there, which is about to close.
        _redirect(logger, log, console)
        if before is None:
            os.environ.pop(variable, None)
        else:
            os.environ[variable] = before


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: where cores are shared, two that wait for each other take ten times as long."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _redirect(logger: logging.Logger, old: TextIO, new: TextIO) -> None:
    for handler in logger.handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is old:
            handler.setStream(new)


def _claim(out: Path) -> None:
    """Make `out`, or clear what an earlier demonstration left in it; ConfigError if it holds anything else."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is not a folder")
    if out.is_dir() and any(out.iterdir()):
        if not (out / _RESULTS).is_file():
            raise ConfigError(f"{out} is not empty and was not made by the demonstration; name another folder")
        _remove(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / _RESULTS).write_text("{}\n", encoding="utf-8")


def _remove(out: Path) -> None:
    """Delete what a demonstration writes into `out`, and `out` itself if that leaves it empty."""
    for name in ("model", "data", *RUNS):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in (*(f"{run}.yaml" for run in RUNS), _LOG, _RESULTS):
        (out / name).unlink(missing_ok=True)
    if not any(out.iterdir()):
        out.rmdir()


def _prepare(out: Path, steps: int, seed: int, rows_per_domain: int, heldout: int) -> list[str]:
    """Write model, data and one YAML file per run; return the names of the domains."""
    import yaml

    from dataflex.demo.data import DOMAINS, HELDOUT, build_domains, training_texts
    from dataflex.demo.model import build_model

    sizes = build_domains(out / "data", rows_per_domain, heldout, seed)
    domains = [name for name in DOMAINS if name in sizes]
    if len(domains) < 2:
        raise DataflexError("this Python installation has no standard library sources to make domains from")
    build_model(out / "model", training_texts(out / "data"), seed)
    largest = max(sizes[domain + HELDOUT] for domain in domains)
    for name, config in run_configs(out, domains, steps, seed, largest).items():
        with (out / f"{name}.yaml").open("w", encoding="utf-8") as file:
            for key, value in config.items():
                # One line a key, and one a block within `dataflex`, as people write it.
                style = None if isinstance(value, dict) else False
                yaml.safe_dump({key: value}, file, sort_keys=False, default_flow_style=style, width=1000)
    return domains


def run_demo(
    out: Path, steps: int = 60, keep: bool = True, seed: int = 0, rows_per_domain: int = 160, heldout: int = 32
) -> list[RunResult]:
    """Make a tiny model and real data under `out`, train the four runs in turn, and print a table of their losses.

    Each run is the file `out/<run>.yaml`, which `dataflex-cli train` repeats. With `keep` false everything written is
    deleted after the table. ConfigError if `steps` is below 12 or `out` holds something else.
    """
    if steps < MIN_STEPS:
        raise ConfigError(f"steps must be at least {MIN_STEPS}, not {steps}")
    _claim(out)
    begin = time.monotonic()
    results = []
    with (out / _LOG).open("w", encoding="utf-8") as log:
        print("[0/4] model and data ...", flush=True)
        with _quiet(log):
            from dataflex.base.commands.train import train_file

            domains = _prepare(out, steps, seed, rows_per_domain, heldout)
        print(f"      {len(domains)} domains: {', '.join(domains)}", flush=True)
        for number, name in enumerate(RUNS, start=1):
            print(f"[{number}/{len(RUNS)}] {name}: {steps} steps ...", flush=True)
            with _quiet(log), _one_thread():
                train_file(str(out / f"{name}.yaml"))
            results.append(read_result(name, out / name, domains))
            print(f"      mean held-out loss {results[-1].mean:.3f}", flush=True)
    seconds = time.monotonic() - begin
    (out / _RESULTS).write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n", encoding="utf-8")
    print(f"\nHeld-out loss by domain after {steps} steps (lower is better); seconds are those of the training loop.\n")
    print(format_table(results))
    print("\nOne seed, a few hundred rows: at 60 steps, another seed alone moves the mean of a run by up to 0.2.")
    if keep:
        print(f"\n{seconds:.0f} s in all. Configurations, models, data and {_LOG} are in {out}.")
        print(f"Repeat a run with: dataflex-cli train {out / RUNS[1]}.yaml")
    else:
        _remove(out)
        print(f"\n{seconds:.0f} s in all. Nothing was kept.")
    return results
