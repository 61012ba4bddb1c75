"""Per-domain sums over everything trained on since the last update."""

from __future__ import annotations

import numpy as np
import torch

from dataflex.distributed.collectives import rank, sum_over_ranks

_ROWS, _LOSS, _TOKENS, _TOKEN_LOSS, _EXCESS = range(5)


class DomainSums:
    """Sums of losses by domain, float64 [k, 5], on the training device.

    The columns are rows, sum of row losses, trainable tokens, sum of token cross entropies, and excess over a reference
    model. Rows without a finite loss or without trainable tokens are left out. Each rank adds its own rows; ranks
    communicate only for a total. A second copy holds the sums since the last log.
    """

    def __init__(self, domains: int, device: torch.device) -> None:
        # float64 does not exist on every accelerator; the sums of fp32 losses over an interval do not suffer there.
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self._open = torch.zeros((domains, 5), dtype=dtype, device=device)
        self._logged = torch.zeros_like(self._open)

    def add(
        self,
        domains: np.ndarray,
        losses: torch.Tensor,
        counts: torch.Tensor,
        sums: torch.Tensor,
        excess: torch.Tensor | None = None,
    ) -> None:
        """Add the rows of a micro-batch.

        Args:
            domains: int64[B].
            losses: Token means, [B].
            counts: Trainable tokens, [B].
            sums: Sums of token cross entropies, [B].
            excess: [B]; None for zero.
        """
        index = torch.as_tensor(domains, device=self._open.device)
        valid = torch.isfinite(losses) & (counts > 0)
        columns = (torch.ones_like(losses), losses, counts, sums, torch.zeros_like(sums) if excess is None else excess)
        values = torch.stack([torch.where(valid, c.to(self._open.dtype), 0.0) for c in columns], dim=1)
        self._open.index_add_(0, index, values)
        self._logged.index_add_(0, index, values)

    def take(self) -> np.ndarray:
        """The totals over all ranks since the last `take`, float64[k, 5]. Sets the sums to zero."""
        total = sum_over_ranks(self._open).double().cpu().numpy()
        self._open.zero_()
        return total

    def fold(self) -> np.ndarray:
        """The totals so far, for a checkpoint. The sums stay open.

        Rank 0 continues from the total, and the others from zero. A resumed run does the same, so both add numbers in
        the same order.
        """
        total = sum_over_ranks(self._open)
        self.load(total.double().cpu().numpy() if rank() == 0 else None)
        return total.double().cpu().numpy()

    def load(self, total: np.ndarray | None) -> None:
        if total is None:
            self._open.zero_()
        else:
            self._open.copy_(torch.as_tensor(total))

    def mean_since_log(self) -> np.ndarray:
        """Mean row loss per domain since the last call, over all ranks, float64[k]; NaN where no row was seen."""
        total = sum_over_ranks(self._logged).double().cpu().numpy()
        self._logged.zero_()
        with np.errstate(invalid="ignore"):
            return total[:, _LOSS] / total[:, _ROWS]
