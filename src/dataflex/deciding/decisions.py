"""When decisions fall: the first stage, the components that are due, and up to where rows are read ahead."""

from __future__ import annotations

from typing import Any

from dataflex import events
from dataflex.components.contracts import declared
from dataflex.deciding.mixing import Mixing
from dataflex.deciding.ordering import Ordering
from dataflex.deciding.selecting import Selecting
from dataflex.deciding.serving import PlannedServing
from dataflex.distributed.trainer_view import TrainerView
from dataflex.plan.quota import HORIZON
from dataflex.record.recorder import Recorder

# A stage is continued by another one after this many positions, so that finding a position stays cheap.
MAX_STAGE = HORIZON
_OPENING, _CONTINUATION = "start", "continue"


class Deciding:
    def __init__(
        self,
        serving: PlannedServing,
        recorder: Recorder,
        selecting: Selecting | None,
        mixing: Mixing | None,
        ordering: Ordering | None = None,
    ) -> None:
        self.serving, self.recorder = serving, recorder
        self.selecting, self.mixing, self.ordering = selecting, mixing, ordering

    def begin(self) -> None:
        """Open the first stage."""
        plan, mixing, names = self.serving.plan, self.mixing, self.serving.domains.names
        pools = plan.merged_pool() if mixing is None else plan.domain_pools()
        stage = plan.append(0, pools, [1.0] if mixing is None else mixing.initial_proportions())
        named = {} if mixing is None else {"proportions": dict(zip(names, stage.proportions, strict=True))}
        self.recorder.decision(0, 0, _OPENING, {**self.serving.extent, **named}, {}, 0.0, stage)
        if mixing is not None:
            mixing.begin_weights()

    def before(self, view: TrainerView) -> bool:
        """Decide what falls before the next step, and open the rows up to the next decision; whether there are rows for it."""
        step, mixing = view.step, self.mixing
        if self.serving.is_open(step):
            if mixing is not None and not declared(mixing.spec.component.moves_proportions):
                mixing.act(step, view)  # weighs losses only, so rows are read past it
            return True
        events.emit(events.Deciding(step, view))
        self._continue_stage(step)
        if self.selecting is not None:
            self.selecting.act(step, view)
        if mixing is not None:
            mixing.act(step, view)
        if self.ordering is not None:
            self.ordering.act(step, self._end_of_pools(step, view.max_steps))
        horizon = self._horizon(step, view.max_steps)
        if mixing is not None:
            horizon = mixing.limits.servable(step, horizon)
        self.serving.open(step, horizon)
        return horizon > step

    def serve(self) -> list[Any]:
        """The micro-batches of the next step on this rank."""
        batches, amounts = self.serving.next_step()
        if self.mixing is not None:
            self.mixing.count(amounts)
        return batches

    def _continue_stage(self, step: int) -> None:
        plan, position = self.serving.plan, self.serving.position(step)
        plan.forget(position - 1)
        last = plan.stages[-1]
        if position - last.start >= MAX_STAGE:
            stage = plan.append(position, last.pools, last.proportions)
            self.recorder.decision(step, position, _CONTINUATION, {}, {}, 0.0, stage)

    def _end_of_pools(self, step: int, max_steps: int) -> int:
        """The step up to which the pools of step `step` stay."""
        due = None if self.selecting is None else self.selecting.schedule.next_due(step + 1)
        return max_steps if due is None else min(due, max_steps)

    def _horizon(self, step: int, max_steps: int) -> int:
        """The step up to which nothing may change what is read."""
        schedules = [] if self.selecting is None else [self.selecting.schedule]
        if self.mixing is not None and declared(self.mixing.spec.component.moves_proportions):
            schedules.append(self.mixing.schedule)
        if self.ordering is not None:
            schedules.append(self.ordering.schedule)
        dues = [due for s in schedules if (due := s.next_due(step + 1)) is not None]
        left = self.serving.plan.stages[-1].start + MAX_STAGE - self.serving.position(step)
        return min([max_steps, step - (-left // self.serving.global_batch), *dues])
