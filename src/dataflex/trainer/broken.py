"""A warning where losses are no numbers for many steps on end: components leave such rows out, so nothing else would show it."""

from __future__ import annotations

import torch

from dataflex.config.schema import DataflexConfig
from dataflex.trainer.collectives import sum_over_ranks

PATIENCE = 10  # steps on end


class BrokenLosses:
    """Counts the steps on end in which a row that is trained on had a loss that is not finite, on any rank."""

    def __init__(self, device: torch.device) -> None:
        self._open = torch.zeros(2, device=device)  # rows of this step without a finite loss, and all of them
        self._seen = False
        self._steps = 0
        self._told = False

    def see(self, losses: torch.Tensor, trainable: torch.Tensor) -> None:
        """Rows of a micro-batch; those without a trainable token have no loss. losses, trainable: [B]."""
        broken = trainable & ~torch.isfinite(losses)
        self._open += torch.stack([broken.sum(), trainable.sum()])
        self._seen = True

    def close(self, step: int) -> tuple[int, int, int] | None:
        """Step number `step` is over; on all ranks. After `PATIENCE` such steps on end, once in a run: the first of them, and of
        the last one the rows without a finite loss and all rows."""
        if not self._seen:
            return None
        broken, rows = map(int, sum_over_ranks(self._open).tolist())
        self._open.zero_()
        self._seen = False
        self._steps = self._steps + 1 if broken else 0
        if self._steps < PATIENCE or self._told:
            return None
        self._told = True
        return step - PATIENCE + 1, broken, rows


def broken_line(config: DataflexConfig, first: int, broken: int, rows: int) -> str | None:
    """What to say of it; None where no component goes by the losses of the rows that are trained on."""
    acts = []
    if config.mix is not None:
        acts.append(f"mix: {config.mix.name} decides without these rows")
    if config.weight is not None:
        acts.append(f"weight: {config.weight.name} gives them weight 0 as long as others have a finite loss")
    if not acts:
        return None
    return (
        f"warning: since step {first} every step has had rows whose loss is not a finite number ({broken} of {rows} in the last"
        f" one); {', and '.join(acts)}. If it is all rows, the model has diverged: go on from a checkpoint before step"
        f" {first} with a lower learning_rate"
    )
