"""Peak memory of a gradient scoring pass against the number of rows: it should not grow beyond the scores themselves.

Each size is measured in a process of its own: the most memory the process had in use during the pass (VmHWM, reset before),
less what it had before, on short rows and a tiny LoRA model.

    python benchmarks/memory.py
    python benchmarks/memory.py --write
"""

from __future__ import annotations

import os
import tempfile
import time

import apart
import numpy as np
from measuring import forget_peak, in_use
from runner import Command, table
from shapes import random_pool

SIZES = {"tiny": (200, 2_000), "cpu": (2_000, 20_000, 200_000)}
TARGET = 50


def one(rows: int) -> tuple[float, float]:
    """(MiB in use during the pass beyond those before it, seconds)."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    from peft import LoraConfig, get_peft_model

    from dataflex.demo.model import build_model
    from dataflex.signals.batching import default_batch_tokens
    from dataflex.signals.gradients.alignment import alignment
    from dataflex.signals.gradients.passes import BatchGradients

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model, _ = build_model(folder, ["a few words"], hidden_size=32, heads=2, kv_heads=1, vocab_size=300)
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")).eval()
    budget = default_batch_tokens(torch.device("cpu"), gradients=True)
    everything, target, small = (
        random_pool(count, 6, 13, 250, seed, budget, "cpu") for seed, count in enumerate((rows, TARGET, 500))
    )
    engine = BatchGradients(model)
    alignment(small, target, [np.arange(TARGET)], engine, engine)  # what a first pass sets up
    before, begin = forget_peak(), time.perf_counter()
    scores = alignment(everything, target, [np.arange(TARGET)], engine, engine)
    seconds, peak = time.perf_counter() - begin, in_use("VmHWM")
    assert scores.shape == (rows, 1) and np.isfinite(scores).all()
    return (peak - before) / 1024, seconds


def main() -> None:
    command = Command(__file__, __doc__, SIZES)
    lines = []
    for rows in SIZES[command.given.preset]:
        peak, seconds = apart.fresh(one, rows)
        lines.append([f"{rows:,}", f"{peak:.1f}", f"{rows * 8 / 2**20:.1f}", f"{seconds:.1f}"])
    tiny = " (tiny)" * (command.given.preset == "tiny")
    body = table(("rows", "MiB beyond before", "scores, MiB", "seconds"), lines)
    command.publish(f"Memory of a gradient pass{tiny}", body, threads=1, note=". Rows of 6 to 13 tokens")


if __name__ == "__main__":
    main()
