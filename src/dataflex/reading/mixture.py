"""How much of each domain: what was asked for, and what was served."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dataflex.reading.log import Log


@dataclass(frozen=True)
class Shares:
    """Shares of the domains over steps."""

    steps: np.ndarray
    """int64[n]: the optimizer steps done when a share comes into force, or (of what was served) when its interval ends."""
    values: np.ndarray
    """float64[n, k]"""

    def until(self, step: int) -> Shares:
        """The same, with the last shares once more at a later step."""
        if step <= self.steps[-1]:
            return self
        return Shares(np.append(self.steps, step), np.concatenate([self.values, self.values[-1:]]))


@dataclass(frozen=True)
class Mixture:
    domains: tuple[str, ...]
    unit: str
    """What the shares are of: samples, tokens."""
    requested: Shares | None
    """None: a run without a mixer."""
    served: Shares | None
    """None: LLaMA-Factory orders the rows."""

    @property
    def total(self) -> np.ndarray | None:
        """The share of each domain in all that was served, float64[k]."""
        if self.served is None:
            return None
        steps = np.diff(self.served.steps, prepend=0)[:, None]
        return (self.served.values * steps).sum(axis=0) / max(int(steps.sum()), 1)


def mixture_of(domains: Sequence[str], ledger: Sequence[Mapping[str, Any]], log: Log) -> Mixture:
    stages = [line for line in ledger if len(line.get("stage", {}).get("proportions", ())) == len(domains) > 1]
    requested = None
    if stages:
        steps = np.array([line["step"] for line in stages], dtype=np.int64)
        requested = Shares(steps, np.array([line["stage"]["proportions"] for line in stages], dtype=np.float64))
    unit = next((line["stage"].get("unit", "samples") for line in ledger if "stage" in line), "samples")
    found = [log.series(f"dataflex/realized/{name}") for name in domains]
    steps = found[0][0]
    served = None
    if len(steps) and all(np.array_equal(steps, own) for own, _ in found):
        served = Shares(steps, np.stack([values for _, values in found], axis=1))
    return Mixture(tuple(domains), str(unit), requested, served)
