"""The length of a run in steps, when it goes on with another global batch."""

from __future__ import annotations

from math import ceil

import pytest

from dataflex.trainer.epochs import steps_left, steps_per_epoch


@pytest.mark.parametrize("down, drop_last", [(True, False), (True, True), (False, True)])
@pytest.mark.parametrize("epochs", [1, 3, 2.3])
@pytest.mark.parametrize("rows, batch", [(100, 16), (97, 8), (5, 8), (1000, 7)])
def test_the_same_batch_leaves_what_the_whole_run_leaves(
    rows: int, batch: int, epochs: float, down: bool, drop_last: bool
) -> None:
    exact = epochs * max(1, rows // batch)
    total = int(exact) if down else ceil(exact)
    for step in range(total + 1):
        found = steps_left(
            epochs, rows, position=step * batch, before=batch, batch=batch, down=down, drop_last=drop_last
        )
        assert step + found == total


@pytest.mark.parametrize(
    "down, drop_last, left",
    [(True, False, 6), (False, True, 6), (False, False, 7)],  # 2 epochs of 3 steps of 32; or ceil((300 - 96) / 32)
)
def test_what_is_left_after_one_epoch_of_three(down: bool, drop_last: bool, left: int) -> None:
    """100 rows, 16 in a step: 6 steps are an epoch that drops its last 4 rows. With 32 in a step, 3 steps are one."""
    assert steps_per_epoch(100, 32, down=True) == 3 and steps_per_epoch(100, 32, down=False) == 4
    found = steps_left(3, 100, position=96, before=16, batch=32, down=down, drop_last=drop_last)
    assert found == left
    assert steps_left(1, 100, position=200, before=16, batch=32, down=down, drop_last=drop_last) == 0
