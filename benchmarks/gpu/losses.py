"""Tokens per second of losses by row, in batches as a run measures them, over one row at a time; and the memory they take."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import shapes
from measuring import forget_peak, in_use, now


def measure(shape: str, sizes: Any, device: str, until: float) -> list[tuple[str, str]]:
    """What was measured, and its value. Both ways see the same batches in turn. sizes: `less.Sizes`. until: as time.time."""
    import torch

    from dataflex.signals.batching import token_batches
    from dataflex.signals.cross_entropy import forward_row_losses
    from dataflex.signals.isolation import isolated

    if shapes.SHAPES[shape].hidden > shapes.SHAPES["1.5B"].hidden:
        sizes = replace(sizes, budget=sizes.budget // 2)
    model = shapes.build(shapes.SHAPES[shape], device).eval()
    rows = sizes.shortest, sizes.longest, shapes.SHAPES[shape].vocabulary
    pool = shapes.random_pool(sizes.rows, *rows, 0, sizes.budget, device)
    batches = token_batches(pool.lengths, sizes.budget)
    seconds, tokens, apart, peak = [0.0, 0.0], 0, 0.0, 0.0
    cuda = torch.device(device).type == "cuda"

    def batch(places: Any) -> Any:
        return pool.prepare(pool.collate(pool.rows.__getitems__([int(i) for i in places])))

    def mean_losses(places: Any) -> Any:
        sums, counts = forward_row_losses(model, batch(places))
        return (sums / counts).float()

    with torch.autocast(device, dtype=torch.bfloat16), torch.no_grad(), isolated(model):
        mean_losses(batches[0])
        before = torch.cuda.memory_allocated() / 2**30 if cuda else forget_peak() / 2**20
        for turn in np.random.default_rng(0).permutation(len(batches)):
            places = batches[turn]
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            begin = now()
            together = mean_losses(places)
            seconds[0] += now() - begin
            peak = max(peak, torch.cuda.max_memory_allocated() / 2**30 if cuda else in_use("VmHWM") / 2**20)
            begin = now()
            alone = torch.stack([model(**batch([i]), use_cache=False).loss.float() for i in places])
            seconds[1] += now() - begin
            tokens += int(pool.lengths[places].sum())
            apart = max(apart, float(((together - alone) / alone).abs().max()))
            if time.time() > until:
                break
    return [
        (
            "the signal",
            f"{tokens / seconds[0]:.0f} tokens/s, peak {peak:.2f} GiB ({peak - before:.2f} not in use before)",
        ),
        ("one row at a time, the model's own loss", f"{tokens / seconds[1]:.0f} tokens/s"),
        (
            "the signal is faster by",
            f"{seconds[1] / seconds[0]:.2f}; losses apart by {apart:.0e} at most (relative, bf16)",
        ),
    ]
