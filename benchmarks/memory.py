"""Peak memory of a gradient scoring pass against the number of rows: it should not grow beyond the scores themselves.

Each size is measured in a process of its own: the most memory the process had in use during the pass (VmHWM, reset before),
less what it had before, on short rows and a tiny LoRA model.

    python benchmarks/memory.py
    python benchmarks/memory.py --write
"""

from __future__ import annotations

import argparse
import tempfile
import time
from typing import Any

import apart
import common
from common import in_use

SIZES = (2_000, 20_000, 200_000)
TARGET = 50


def one(rows: int) -> tuple[int, float, float]:
    """(rows, MiB in use during the pass beyond those before it, seconds)."""
    import os

    os.environ["OMP_NUM_THREADS"] = "1"
    import numpy as np
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model

    from dataflex.data.rows import RowCollator, Rows
    from dataflex.demo.model import build_model
    from dataflex.signals.batching import ScoringRows, token_budget
    from dataflex.signals.gradients.alignment import alignment
    from dataflex.signals.gradients.passes import BatchGradients

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model, _ = build_model(folder, ["a few words"], hidden_size=32, heads=2, kv_heads=1, vocab_size=300)
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")).eval()

    def data(count: int, seed: int) -> Rows:
        rng = np.random.default_rng(seed)
        lengths = rng.integers(6, 14, size=count)
        ids = [row.tolist() for row in np.split(rng.integers(3, 250, size=lengths.sum()), np.cumsum(lengths)[:-1])]
        return Rows([Dataset.from_dict({"input_ids": ids})], ["rows"])

    def collate(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        width = max(len(f["input_ids"]) for f in features)
        ids = torch.tensor([f["input_ids"] + [0] * (width - len(f["input_ids"])) for f in features])
        mask = torch.tensor([[1] * len(f["input_ids"]) + [0] * (width - len(f["input_ids"])) for f in features])
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask == 1, ids, -100)}

    def pool(part: Rows) -> ScoringRows:
        def prepare(batch: dict[str, Any]) -> dict[str, Any]:
            return {k: v for k, v in batch.items() if k != "dataflex_sample_ids"}

        device = torch.device("cpu")
        budget = token_budget(device, gradients=True)
        return ScoringRows(part, np.arange(len(part)), part.lengths(), budget, RowCollator(collate), prepare, device)

    engine, target, small = BatchGradients(model), pool(data(TARGET, 1)), pool(data(500, 2))
    everything = pool(data(rows, 0))
    alignment(small, target, [np.arange(TARGET)], engine, engine)  # what a first pass sets up
    before, begin = common.forget_peak(), time.perf_counter()
    scores = alignment(everything, target, [np.arange(TARGET)], engine, engine)
    seconds, peak = time.perf_counter() - begin, in_use("VmHWM")
    assert scores.shape == (rows, 1) and np.isfinite(scores).all()
    return rows, (peak - before) / 1024, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    options = parser.parse_args()
    lines = []
    for size in SIZES:
        rows, peak, seconds = apart.fresh(one, size)
        lines.append([f"{rows:,}", f"{peak:.1f}", f"{rows * 8 / 2**20:.1f}", f"{seconds:.1f}"])
    table = common.table(("rows", "MiB beyond before", "scores, MiB", "seconds"), lines)
    text = f"`python benchmarks/memory.py`: {common.machine(common.PRESETS['tiny'], 1)}. Rows of 6 to 13 tokens.\n\n{table}"
    print(text)
    if options.write:
        common.write_section("Memory of a gradient pass", text)


if __name__ == "__main__":
    main()
