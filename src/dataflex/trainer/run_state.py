"""The parts of a run that have a state: its start, saving, restoring and scalars."""

from __future__ import annotations

from typing import Any

from dataflex.deciding.mixing import Mixing
from dataflex.deciding.ordering import Ordering
from dataflex.deciding.selecting import Selecting
from dataflex.deciding.serving import Serving
from dataflex.record.snapshot import Snapshot
from dataflex.weighting.observing import Observing
from dataflex.weighting.weights import Weights


class RunState:
    def __init__(
        self,
        serving: Serving,
        observing: Observing,
        selecting: Selecting | None,
        mixing: Mixing | None,
        weights: Weights | None,
        ordering: Ordering | None = None,
    ) -> None:
        self.serving, self.observing = serving, observing
        self.selecting, self.mixing, self.weights, self.ordering = selecting, mixing, weights, ordering

    def init(self) -> None:
        for part in (self.selecting, self.mixing, self.weights):
            if part is not None:
                part.init()

    def snapshot(self, step: int, identity: dict[str, Any], **facts: Any) -> Snapshot:
        """What a checkpoint holds of the run; called on all ranks. facts: about the Trainer's own files."""
        components = {}
        if self.selecting is not None:
            components["select"] = self.selecting.component_state
        if self.mixing is not None:
            components["mix"] = self.mixing.component_state
        if self.weights is not None:
            components |= self.weights.component_states
        position = self.serving.position(step)
        return Snapshot(
            step=step,
            position=position,
            global_batch=self.serving.global_batch,
            identity=identity,
            stages=self.serving.plan.stages_from(position),
            components=components,
            parts={name: part.state_dict() for name, part in self._stateful().items()},
            **facts,
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot. One without the state of a selector is of a run whose selector had not acted."""
        if self.selecting is not None and "select" in snapshot.components:
            self.selecting.component_state = snapshot.components["select"]
        elif self.selecting is not None:
            self.selecting.init()
        if self.mixing is not None:
            self.mixing.component_state = snapshot.components["mix"]
        if self.weights is not None:
            self.weights.component_states = {slot: snapshot.components[slot] for slot in self.weights.spec.slots()}
        for name, part in self._stateful().items():
            part.load_state_dict(snapshot.parts[name])
        self.serving.resume(snapshot.step, snapshot.position, snapshot.stages)

    def _stateful(self) -> dict[str, Any]:
        found = {
            "serving": self.serving, "observing": self.observing, "mixing": self.mixing, "weights": self.weights,
            "ordering": self.ordering,
        }  # fmt: skip
        return {name: part for name, part in found.items() if part is not None}

    def scalars(self, step: int, *, per_row: bool) -> dict[str, float]:
        """What has happened since the last log; called on all ranks. per_row: whether there are losses by row."""
        out = self.observing.scalars() if per_row else {}
        out |= self.serving.scalars()
        if self.weights is not None:
            out |= self.weights.scalars()
        if self.mixing is not None:
            out |= self.mixing.scalars(step)
        return out
