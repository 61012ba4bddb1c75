"""A warning after many steps in sequence with losses that are not finite. Components leave such rows out in silence."""

from __future__ import annotations

import torch

from dataflex.config.schema import DataflexConfig
from dataflex.distributed.collectives import sum_over_ranks

PATIENCE = 10  # steps in sequence


class BrokenLosses:
    """Counts steps in sequence in which a row trained on had a loss that is not finite, on any rank.

    Counts stay on the device and are read for `PATIENCE` steps together, so no step waits for them.

    Args:
        watches: Whether a component uses these losses.
    """

    def __init__(self, device: torch.device, *, watches: bool = True) -> None:
        self._open = torch.zeros(2, device=device)  # rows of this step without a finite loss, and all of them
        self._closed: list[tuple[int, torch.Tensor]] = []  # the same of steps that are over, by their numbers
        self._seen = False
        self._streak: list[int] = []  # broken steps in sequence, up to the last one that was read
        self._watches = watches

    def see(self, losses: torch.Tensor, trainable: torch.Tensor) -> None:
        """Rows of a micro-batch; those without a trainable token have no loss. losses, trainable: [B]."""
        if not self._watches:
            return
        broken = trainable & ~torch.isfinite(losses)
        self._open += torch.stack([broken.sum(), trainable.sum()])
        self._seen = True

    def close(self, step: int, *, last: bool = False) -> tuple[int, int, int] | None:
        """End step number `step`. Called on all ranks.

        Returns three numbers after `PATIENCE` broken steps in sequence, else None: the first of these steps, and for
        the last one the rows without a finite loss and all rows. This happens once in a run, and at most `PATIENCE`
        steps late.

        Args:
            last: Whether the run ends with this step.
        """
        if self._seen:
            self._closed.append((step, self._open))
            self._open, self._seen = torch.zeros_like(self._open), False
        if not self._watches or not self._closed or (len(self._closed) < PATIENCE and not last):
            return None
        steps, counts = zip(*self._closed, strict=True)
        self._closed = []
        for number, (broken, rows) in zip(steps, sum_over_ranks(torch.stack(counts)).tolist(), strict=True):
            self._streak = [*self._streak, number] if broken else []
            if len(self._streak) == PATIENCE:
                self._watches = False
                return self._streak[0], int(broken), int(rows)
        return None


def broken_line(config: DataflexConfig, first: int, broken: int, rows: int) -> str | None:
    """The line to print; None where no component uses the losses of the rows trained on."""
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
