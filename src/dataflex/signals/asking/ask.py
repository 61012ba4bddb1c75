"""Measures the requests of components, once per optimizer step and without a trace."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import xxhash

from dataflex import events
from dataflex.components.requests import Request, as_request
from dataflex.components.signal_request import SignalRequest
from dataflex.data.rows import Rows
from dataflex.signals.asking.context import MeasureContext
from dataflex.signals.asking.measures import measure_of
from dataflex.signals.batching import ScoringRows
from dataflex.signals.embeddings import load_encoder
from dataflex.signals.keeping.memory import SignalCache

_SECONDS = "dataflex/scoring/seconds"


class Caches(Protocol):
    """Where values are kept beyond the step they are measured at."""

    def open(self, request: SignalRequest, rows: ScoringRows, more: Callable[[], dict[str, Any]]) -> SignalCache | None:
        """The cache of the values of a request for some rows; None: they are not kept. more: what they depend on beside the
        model, the request and the rows; made when it is needed. Called on every rank."""

    def remove(self, before: int | None = None) -> None:
        """What is kept of steps below `before`; None: of all."""


class Signals:
    """Answers the requests of components.

    Args:
        caches: Values that are kept beyond a step.
        files: Functions that read the values of a signal from a file, by its name.
        keeps_encoder: Whether a text encoder stays in memory between requests.
    """

    def __init__(
        self,
        context: MeasureContext,
        caches: Caches,
        *,
        files: Mapping[str, Callable[[], np.ndarray]] | None = None,
        keeps_encoder: bool = False,
    ) -> None:
        self.context, self.caches = context, caches
        self._files, self._keeps_encoder = files or {}, keeps_encoder
        self._unchanging: dict[Any, np.ndarray] = {}

    def measure(self, request: Request, ids: np.ndarray | None = None) -> np.ndarray:
        """The value of a signal under the current model, float [N] or [N, K], equal on every rank, NaN where there is none.

        N: the training rows, or the rows `ids` of them; for other requests the target's rows, the held-out rows or the
        domains, as `per` says. Called on every rank.
        """
        request = as_request(request)
        # A text encoder does not change while training, so neither do its vectors: they are made once.
        known = self._unchanging if request.reads() == "encoder" else self.context.of_step()
        key = (request, None if ids is None else _digest(ids))
        if key not in known:
            begin = time.perf_counter()
            known[key] = self._measured(request, ids)
            if not self._keeps_encoder:  # it would take memory from training
                load_encoder.cache_clear()
            scalars, seconds = self.context.scalars, time.perf_counter() - begin
            scalars[_SECONDS] = scalars.get(_SECONDS, 0.0) + seconds
            count = len(self.rows_of(request)) if ids is None else len(ids)
            events.emit(events.Measured(request, count, seconds))
        return known[key]

    def rows_of(self, request: Request) -> Rows:
        """The rows that the values of a request belong to."""
        return self.context.rows_of(as_request(request))

    def forget(self) -> None:
        """Once the parameters change, what was measured is of no use, and it may be large."""
        self.context.forget()

    def take_scalars(self) -> dict[str, float]:
        """What is to be logged since the last call."""
        taken = dict(self.context.scalars)
        self.context.scalars.clear()
        return taken

    def _measured(self, request: SignalRequest, ids: np.ndarray | None) -> np.ndarray:
        if request.name in self._files:
            values = self._files[request.name]()
            return values if ids is None else values[ids]
        measure, context = measure_of(request), self.context
        rows = context.batches(request, context.rows_of(request), ids)
        cache = self.caches.open(request, rows, partial(measure.depends_on, context, request))
        if cache is not None and not cache.missing.any():
            return cache.values()
        return measure.values(context, request, replace(rows, cache=cache))


def _digest(ids: np.ndarray) -> bytes:
    return xxhash.xxh3_128_digest(np.ascontiguousarray(ids).data)
