"""How many optimizer steps epochs are, and those that are left when a run goes on with another global batch."""

from __future__ import annotations

from math import ceil, floor
from typing import Any

from transformers.trainer_utils import IntervalStrategy, SaveStrategy


def settle_steps(args: Any, rows: int, batch: int, *, down: bool) -> bool:
    """Turn epochs into steps in the Trainer's arguments; whether the length of the run was given in epochs.

    The Trainer then has one pseudo-epoch that lasts the whole run.

    Args:
        down: Whether a part of a step is no step.
    """
    per_epoch = steps_per_epoch(rows, batch, down=down or args.dataloader_drop_last)
    in_epochs = bool(args.max_steps <= 0)
    if in_epochs:
        steps = args.num_train_epochs * per_epoch
        args.max_steps = max(1, int(steps)) if down else ceil(steps)
    for name, strategy in (("eval", IntervalStrategy), ("save", SaveStrategy), ("logging", IntervalStrategy)):
        if getattr(args, f"{name}_strategy") == strategy.EPOCH:
            setattr(args, f"{name}_strategy", strategy.STEPS)
            setattr(args, f"{name}_steps", per_epoch)
            if name == "eval":
                args.eval_delay = int(args.eval_delay * per_epoch)
    return in_epochs


def steps_per_epoch(rows: int, batch: int, *, down: bool) -> int:
    """At least one. down: rows that do not fill a last batch make no step."""
    return max(1, rows // batch if down else ceil(rows / batch))


def steps_left(epochs: float, rows: int, *, position: int, before: int, batch: int, down: bool, drop_last: bool) -> int:
    """Steps of `batch` rows that are left of so many epochs, after `position` rows in steps of `before` rows.

    An epoch that is rounded down, or drops its last batch, serves fewer than all rows. Then served rows are counted in
    such epochs, and the rest becomes steps by the same rule. Otherwise the rest is counted in rows.
    """
    if not (down or drop_last):
        return max(0, ceil((epochs * rows - position) / batch))
    done = position / (steps_per_epoch(rows, before, down=True) * before)
    left = round((epochs - done) * steps_per_epoch(rows, batch, down=True), 9)  # no step for a last bit
    return max(0, floor(left) if down else ceil(left))
