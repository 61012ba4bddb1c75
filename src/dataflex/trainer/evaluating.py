"""The measures of held-out rows by domain, beside those of the data set that is evaluated first."""

from __future__ import annotations

import time
from functools import cached_property
from typing import Any

from dataflex.components.requests import HeldOutSums
from dataflex.deciding.serving import Serving
from dataflex.record.recorder import Recorder
from dataflex.signals.asking.ask import Signals
from dataflex.signals.asking.heldout import HeldOutReport


class DomainEvaluation:
    """They are logged, seen by callbacks and returned with the Trainer's own measures."""

    def __init__(self, signals: Signals, serving: Serving, recorder: Recorder, tokenizer: Any) -> None:
        self.signals, self.serving, self.recorder, self.tokenizer = signals, serving, recorder, tokenizer
        self.due = False
        """Whether the evaluation that is begun has not had them yet."""

    @cached_property
    def _report(self) -> HeldOutReport:
        return HeldOutReport(self.signals.rows_of(HeldOutSums()), self.tokenizer)

    def take(self, step: int) -> dict[str, float]:
        """Scalars by name, equal on every rank, if they are due; a line of the ledger says the same."""
        if not self.due:
            return {}
        self.due = False
        begin = time.perf_counter()
        scalars, found = self._report.of(self.signals.measure(HeldOutSums()))
        seconds = time.perf_counter() - begin
        self.recorder.note(step, self.serving.position(step), "evaluate", {}, found, seconds)
        return scalars
