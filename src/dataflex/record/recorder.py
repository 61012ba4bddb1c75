"""What a run has decided and what it reports: lines of the ledger, remarks, and scalars for the next log."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dataflex import events
from dataflex.notices import detail
from dataflex.plan.stages import Stage
from dataflex.record.ledger import RunFiles
from dataflex.record.remarks import Remarks


class Recorder:
    """Writes decisions and scalars.

    Args:
        files: The files of the run.
    """

    def __init__(self, files: RunFiles) -> None:
        self.files, self.remarks = files, Remarks()
        self.scalars: dict[str, float] = {}
        """To be logged next."""

    def decision(
        self,
        step: int,
        position: int,
        component: str,
        decided: Mapping[str, Any],
        source: Mapping[str, Any],
        seconds: float,
        stage: Stage | None = None,
    ) -> None:
        """Write a line of the ledger, with the remarks since the last one.

        Args:
            position: Samples served at the decision.
            source: What the decision was based on.
            stage: The stage that it opened.
        """
        remarks, more = self.remarks.take(), dict[str, Any]()
        detail(f"step {step}: {component} {json.dumps(decided, default=str)} ({seconds:.1f} s)")
        if remarks:
            more["remarks"] = remarks
        if stage is not None:
            more["stage"], position = stage.to_json(), stage.start
        self.note(step, position, component, decided, source, seconds, **more)

    def note(
        self,
        step: int,
        position: int,
        component: str,
        decided: Mapping[str, Any],
        source: Mapping[str, Any],
        seconds: float,
        **more: Any,
    ) -> None:
        """A line of the ledger that takes no remarks with it."""
        record = {
            "step": step, "position": position, "component": component, "decided": decided, "from": source,
            "seconds": round(seconds, 3), **more,
        }  # fmt: skip
        self.files.record(record)
        events.emit(events.Decided(record))

    def take_scalars(self) -> dict[str, float]:
        """Those since the last call."""
        taken = dict(self.scalars)
        self.scalars.clear()
        return taken
