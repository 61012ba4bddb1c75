"""What a run knows of the rows it trains on: losses by domain, exposure, and losses that are no numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from dataflex.data.micro_batch import MicroBatch
from dataflex.distributed.collectives import rank
from dataflex.plan.plan import Domains
from dataflex.record.exposure import Exposure
from dataflex.weighting.broken_losses import BrokenLosses
from dataflex.weighting.observations import DomainSums


class Observing:
    """Losses and counts of the rows trained on.

    Args:
        watches: Whether a component uses the losses.
        exposure: None where rows are not counted, as in streams.
    """

    def __init__(self, domains: Domains, device: torch.device, *, watches: bool, exposure: Exposure | None) -> None:
        self.domains, self.exposure = domains, exposure
        self.sums = DomainSums(len(domains), device)
        self._broken = BrokenLosses(device, watches=watches)

    def see(
        self,
        micro: MicroBatch,
        step: int,
        losses: torch.Tensor,
        counts: torch.Tensor,
        sums: torch.Tensor,
        excess: torch.Tensor | None = None,
    ) -> np.ndarray:
        """Add up a micro-batch trained on; returns the domain of each row, int64 [B]. step counts from 1; losses (token means),
        counts, sums, excess: [B]."""
        domains = self.domains.of(micro.ids.numpy())
        self.sums.add(domains, losses, counts, sums, excess)
        self._broken.see(losses, counts > 0)
        return domains

    def note(
        self, micro: MicroBatch, step: int, losses: torch.Tensor | None, weights: torch.Tensor | None = None
    ) -> None:
        """Count the rows as trained on. losses: [B], None where the stage's loss cannot be had per row. weights: [B]."""
        if self.exposure is not None:
            self.exposure.note(step, micro.ids, losses, weights)

    def end_step(self, step: int, *, last: bool = False) -> tuple[int, int, int] | None:
        """What `BrokenLosses.close` finds; called on all ranks."""
        return self._broken.close(step, last=last)

    def scalars(self) -> dict[str, float]:
        """Mean losses by domain since the last call, over all ranks."""
        found = zip(self.domains.names, self.sums.mean_since_log(), strict=True)
        return {f"dataflex/loss/{name}": float(value) for name, value in found if np.isfinite(value)}

    def state_dict(self) -> dict[str, Any]:
        """Called on all ranks."""
        return {"sums": self.sums.fold()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.sums.load(state["sums"] if rank() == 0 else None)
