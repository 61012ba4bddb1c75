"""What a selection has in common with the one before it, and how it falls into domains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dataflex.plan.plan import Domains
from dataflex.plan.stages import Pool


def overlap(selected: np.ndarray, before: Sequence[Pool], total: int) -> float | None:
    """Share of the rows selected that are in the pools of the selection before; None if `before` are no selected rows.

    selected: ids, int64 [n]; a row that comes more than once counts once. total: rows there are.
    """
    ids = [pool.ids for pool in before if pool.ids is not None]
    if len(ids) < len(before) or not len(selected):
        return None
    now, then = np.zeros(total, dtype=bool), np.zeros(total, dtype=bool)
    now[selected] = True
    for some in ids:
        then[some] = True
    return float(np.count_nonzero(now & then) / np.count_nonzero(now))


def rows_by_domain(selected: np.ndarray, domains: Domains) -> dict[str, int]:
    """How many of the rows selected are of each domain; a row that comes more than once counts as often."""
    counts = np.bincount(domains.of(selected), minlength=len(domains))
    return dict(zip(domains.names, counts.tolist(), strict=True))
