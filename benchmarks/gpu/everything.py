"""What `run.py --everything` measures, in parts of about a minute: invariants, scoring, step overhead and peak memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import apart
import invariants
import kept
import less
import losses
import overhead

OVERHEAD = (
    "plain again (the noise)", "mix static (the layer)", "weight loss", "select loss", "mix odm", "weight focal",
)  # fmt: skip


@dataclass(frozen=True)
class Size:
    """scored: models whose gradients are measured, and whether with LoRA. slices: seconds for each. losses: models whose losses
    are. starts: seconds that a run takes to its first step, about."""

    scored: tuple[tuple[str, bool], ...]
    losses: tuple[str, ...]
    slices: float
    starts: float
    overhead: tuple[str, ...] = OVERHEAD


SIZES = {
    "tiny": Size((("tiny", True), ("tiny, untied", False)), ("tiny",), 6.0, 8.0, OVERHEAD[1:3]),
    "gpu": Size((("0.5B", True), ("7B", True), ("0.5B", False)), ("0.5B", "7B"), 60.0, 15.0),
}


def parts_of(runs: Any, size: Size) -> list[kept.Part]:
    """In the order of their worth. runs: `run.Parts`, which makes models and gives keys of runs."""
    found = [
        kept.Part("resume", partial(_invariant, runs, "resume"), 5 * size.starts),
        kept.Part("two ranks", partial(_two_ranks, runs), 4 * size.starts),
    ]
    found += [kept.Part(f"LESS {shape} {'LoRA' if lora else 'full'}", partial(_less, runs, size, shape, lora), 1.7 * size.slices)
              for shape, lora in size.scored]  # fmt: skip
    found += [kept.Part(f"losses {shape}", partial(_losses, runs, size, shape), size.slices) for shape in size.losses]
    found += [kept.Part(f"step: {name}", partial(_overhead, runs, name, place), 3 * size.starts)
              for place, name in enumerate(size.overhead)]  # fmt: skip
    found += [kept.Part(name, partial(_invariant, runs, name), 4 * size.starts)
              for name in ("uniform weights, LoRA", "scoring, LoRA", "uniform weights, full", "scoring, full")]  # fmt: skip
    return found


# -- invariants --------------------------------------------------------------------------------------------------------


def _invariant(runs: Any, name: str) -> kept.Lines:
    runs.ready()
    lines = invariants.check(partial(runs.keys, "invariants"), runs.work, runs.threads, time.time() + 600, only=name)
    return [(line[0], f"{line[-1]} (losses off by {line[1]}, weights {line[2]}, ids {line[3]})") for line in lines]


def _two_ranks(runs: Any) -> kept.Lines:
    """The same global batches on one rank and on two, by NCCL on GPUs; and the two ranks end with the same weights."""
    (devices,) = apart.call(_devices, log=runs.work / "devices.log")
    if runs.device == "cuda" and devices < 2:
        raise kept.NotHere("one device is visible, NCCL needs two")
    runs.ready()
    rows = runs.setting.runs.rows
    keys = {
        "max_steps": invariants.STEPS, "logging_steps": 1, "finetuning_type": "lora", "lora_target": "all", "bf16": False,
        "dataflex": {"select": {"name": "random", "interval": 4}},
    }  # fmt: skip
    traces = []
    for ranks in (1, 2):
        own = runs.keys("ranks", str(ranks)) | keys | {"per_device_train_batch_size": rows // ranks}
        log = runs.work / f"ranks-{ranks}.log"
        traces.append(apart.call(invariants.trace, own, log=log, ranks=ranks, threads=runs.threads))
    (one,), two = traces
    ids = all(
        sorted(_flat(one["ids"][step])) == sorted(i for rank in two for i in _flat(rank["ids"][step]))
        for step in one["ids"]
    )
    weights = "equal" if two[0]["weights"] == two[1]["weights"] else "differ"
    return [("global batches of one rank and two", "equal" if ids else "differ"), ("weights of the two ranks", weights)]


def _flat(ids: list[list[int]]) -> list[int]:
    return [i for micro in ids for i in micro]


def _devices() -> int:
    import torch

    return torch.cuda.device_count()


# -- scoring -----------------------------------------------------------------------------------------------------------


def _less(runs: Any, size: Size, shape: str, lora: bool) -> kept.Lines:
    until = time.time() + size.slices
    sizes, log = less.SIZES[runs.device], runs.work / "less.log"
    ((_, found),) = apart.call(
        less.measure, shape, lora, sizes, runs.device, until, True, log=log, threads=runs.threads
    )
    plain = found[less.PLAIN].rate
    lines, without = [], dict[str, list[str]]()
    for way, one in found.items():
        if one.why:
            without.setdefault(one.why, []).append(way)
        else:
            speed = f"{one.rate:.0f} tokens/s ({one.rate / plain:.2f} of plain passes)"
            lines.append((way, f"{speed}, peak {one.peak:.2f} GiB"))
    return lines + [("; ".join(ways), why) for why, ways in without.items()]


def _losses(runs: Any, size: Size, shape: str) -> kept.Lines:
    sizes, log = less.SIZES[runs.device], runs.work / "losses.log"
    until = time.time() + 0.8 * size.slices
    (found,) = apart.call(losses.measure, shape, sizes, runs.device, until, log=log, threads=runs.threads)
    return list(found)


# -- runs --------------------------------------------------------------------------------------------------------------


def _overhead(runs: Any, name: str, place: int) -> kept.Lines:
    runs.ready()
    variant = overhead.variants(runs.work / "model")[name]
    keys_of: Callable[[str], dict[str, Any]] = partial(runs.keys, place)
    line = overhead.compare(name, variant, keys_of, runs.setting.runs, runs.threads, [bool(place % 2)])
    cells = dict(zip(overhead.HEADER, line, strict=True))
    what = (
        f"{cells['ratio']} ({cells['90% interval']}), {cells['more ms']} of {cells['plain ms']} ms, {cells['verdict']}"
    )
    return [("step over a plain one", what)]


def card(log: Path) -> str:
    """The GPU, or that there is none."""
    return str(apart.call(_name, log=log)[0])


def _name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
