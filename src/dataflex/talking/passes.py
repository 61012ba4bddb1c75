"""The progress of a pass over rows: a bar on a terminal, a line now and then in a file."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from dataflex import events
from dataflex.notices import say
from dataflex.talking.screen import Screen
from dataflex.talking.wording import duration

SHOWN_AFTER = 2.0  # seconds
BETWEEN_LINES = 30.0  # seconds


class Passes:
    """step: optimizer steps done, None before training."""

    def __init__(
        self, screen: Screen, step: Callable[[], int | None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.screen, self.step, self.clock = screen, step, clock
        self._what: str | None = None
        self._begin = self._said = 0.0
        self._first = 0

    def listeners(self) -> list[tuple[type, Callable[[Any], None]]]:
        return [(events.Passing, self._advance), (events.Passed, self._end)]

    def _advance(self, event: events.Passing) -> None:
        now = self.clock()
        if event.what != self._what:
            self._what, self._begin, self._said, self._first = event.what, now, now, event.done
            return
        if now - self._begin < SHOWN_AFTER:
            return
        if self.screen.live:
            self.screen.show(self._head(event), event.done, event.total, lambda: self._tail(event, now, bar=True))
        elif now - self._said >= BETWEEN_LINES:
            self._said = now
            say(f"{self._head(event)}: {self._tail(event, now)}")

    def _head(self, event: events.Passing) -> str:
        step = self.step()
        return f"{'' if step is None else f'step {step}  '}measuring {event.what}"

    def _tail(self, event: events.Passing, now: float, *, bar: bool = False) -> str:
        rate = (event.done - self._first) / (now - self._begin)
        of = f"{event.done:,}/{event.total:,}" if bar else f"{event.done:,} of {event.total:,}"
        said = (
            f"{of} {event.unit}, {rate:,.0f} {event.unit}/s"
            if rate >= 10
            else f"{of} {event.unit}, {rate:.2g} {event.unit}/s"
        )
        return f"{said}, {duration((event.total - event.done) / rate)} left" if rate > 0 else said

    def _end(self, _: events.Passed) -> None:
        self._what = None
