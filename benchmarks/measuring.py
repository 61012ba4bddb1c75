"""Clocks and memory of this process, and what is said of the figures they gave."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_RESAMPLES = 2000


def now(read: Callable[[], float] = time.perf_counter) -> float:
    """The time when all that was asked of the device is done."""
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return read()


def in_use(field: str) -> int:
    """VmRSS or VmHWM of this process, in KiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def forget_peak() -> int:
    """From now on VmHWM is the peak since this call; gives VmRSS, in KiB."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return in_use("VmRSS")


def interval(statistic: Callable[[np.ndarray], float], items: int) -> tuple[float, float]:
    """Bootstrap 90% interval: the 5th and 95th percentile of `statistic` (of an index array) over resampled items."""
    rng = np.random.default_rng(0)
    values = [statistic(rng.integers(items, size=items)) for _ in range(_RESAMPLES)]
    low, high = np.percentile(values, [5, 95])
    return float(low), float(high)


def times_as_fast(slow: np.ndarray, fast: np.ndarray, target: float) -> list[str]:
    """Cells for the ratio of two ways' seconds, block by block [n]: it, its 90% interval, the target and a verdict."""
    low, high = interval(lambda i: float(slow[i].sum() / fast[i].sum()), len(slow))
    verdict = "met" if low >= target else "missed" if high < target else "in the noise"
    return [f"{slow.sum() / fast.sum():.2f}", f"{low:.2f} .. {high:.2f}", f">= {target:g}", verdict]


def spread(values: Sequence[float], sign: str = "", digits: int = 3) -> str:
    """Mean and standard deviation."""
    mean = f"{np.mean(values):{sign}.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def of_lengths(lengths: Any) -> str:
    low, middle, high = np.percentile(lengths, [5, 50, 95])
    return f"{len(lengths)} rows of {low:.0f} / {middle:.0f} / {high:.0f} tokens (5th, 50th, 95th percentile)"
