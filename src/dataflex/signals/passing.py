"""Announces how far a pass over rows has come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager

from dataflex import events
from dataflex.distributed.collectives import ranks


class Pass:
    """what: is measured. total: rows (or what `unit` says) of all ranks; done: those that were measured before."""

    def __init__(self, what: str, total: int, *, done: int = 0, unit: str = "rows") -> None:
        self.what, self.total, self.done, self.unit = what, total, done, unit
        self.advance(0)

    def advance(self, count: int) -> None:
        """So many more are measured, over all ranks."""
        self.done += count
        events.emit(events.Passing(self.what, self.done, self.total, self.unit))


_open: list[Pass] = []


@contextmanager
def passing(what: str, total: int, *, done: int = 0, unit: str = "rows") -> Iterator[Pass]:
    """A pass that ends with the block. Within another one it is a part of that one, whose count advances."""
    if _open:
        yield _open[0]
        return
    own = Pass(what, total, done=done, unit=unit)
    _open.append(own)
    try:
        yield own
    finally:
        _open.remove(own)
        events.emit(events.Passed())


def in_rounds(batches: Sequence[Sized]) -> list[int]:
    """Rows of each round, in which every rank measures one batch; batches are dealt to the ranks in turn."""
    count = ranks()
    return [sum(len(batch) for batch in batches[k : k + count]) for k in range(0, len(batches), count)]
