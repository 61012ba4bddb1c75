"""How many optimizer steps epochs are, and those that are left when a run goes on with another global batch."""

from __future__ import annotations

from math import ceil, floor


def steps_per_epoch(rows: int, batch: int, *, down: bool) -> int:
    """At least one. down: rows that do not fill a last batch make no step."""
    return max(1, rows // batch if down else ceil(rows / batch))


def steps_left(epochs: float, rows: int, *, position: int, before: int, batch: int, down: bool, drop_last: bool) -> int:
    """Steps of `batch` rows that are left of so many epochs, once `position` rows were served in steps of `before` rows.

    An epoch that is rounded down, or drops its last batch, serves fewer than all rows: what was served is counted in such
    epochs, and what is left becomes steps by the same rule. Otherwise it is the rows that are left.
    """
    if not (down or drop_last):
        return max(0, ceil((epochs * rows - position) / batch))
    done = position / (steps_per_epoch(rows, before, down=True) * before)
    left = round((epochs - done) * steps_per_epoch(rows, batch, down=True), 9)  # no step for a last bit
    return max(0, floor(left) if down else ceil(left))
