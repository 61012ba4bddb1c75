"""Where the time of a run goes, and how much of it is left."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from math import ceil
from statistics import fmean, median
from typing import Any, get_args

from dataflex import events

# Training steps that the median is taken of: the latest.
STEPS = 501
PREFIX = "dataflex/seconds"
ACTIVITIES: tuple[str, ...] = get_args(events.Activity)


class TimeSpent:
    """Listens to the clock of this rank. clock: in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.begin = clock, clock()
        self.seconds = dict.fromkeys(ACTIVITIES, 0.0)
        self._steps: deque[float] = deque(maxlen=STEPS)
        self._durations: dict[str, list[float]] = {"evaluating": [], "saving": []}  # and by slot, of decisions
        self.loading = 0.0
        """Seconds before training began."""
        self._started: events.Started | None = None
        self._step_begin: float | None = None
        self._aside = 0.0  # of the step under way, what is no training
        self._save_begin = 0.0

    def listeners(self) -> list[tuple[type, Callable[[Any], None]]]:
        return [
            (events.Started, self._start), (events.Spent, self._spend), (events.Decided, self._decide),
            (events.Saving, self._begin_save), (events.Saved, self._end_save), (events.StepEnded, self._end_step),
            (events.Logging, self._log),
        ]  # fmt: skip

    @property
    def total(self) -> float:
        """Seconds since this object was made."""
        return self.clock() - self.begin

    def left(self, step: int) -> float | None:
        """Seconds that are left once `step` optimizer steps are done; None before a step is measured.

        Steps left x the median of their seconds, and of everything else what is left of it x the mean of its seconds.
        """
        run = self._started
        if run is None or not self._steps:
            return None
        steps = run.trainer.max_steps
        out = max(0, steps - step) * median(self._steps)
        counts = {slot: _decisions_left(schedule, step, steps) for slot, schedule in run.schedules.items()}
        counts["evaluating"] = _times_left(run.trainer.args, "eval", step, steps)
        counts["saving"] = _times_left(run.trainer.args, "save", step, steps)
        return out + sum(
            count * fmean(self._durations[name]) for name, count in counts.items() if self._durations.get(name)
        )

    def scalars(self) -> dict[str, float]:
        """Since this process began with the run."""
        out = {f"{PREFIX}/{name}": round(seconds, 3) for name, seconds in self.seconds.items()}
        return {f"{PREFIX}/total": round(self.total, 3), f"{PREFIX}/loading": round(self.loading, 3), **out}

    # -- events ------------------------------------------------------------------------------------------------------

    def _start(self, event: events.Started) -> None:
        self._started, self._step_begin, self._aside = event, self.clock(), 0.0
        self.loading = self._step_begin - self.begin

    def _spend(self, event: events.Spent) -> None:
        self.seconds[event.on] += event.seconds
        if event.on != "weighing":  # which may belong to every step
            self._aside += event.seconds
        if event.on == "evaluating":
            self._durations["evaluating"].append(event.seconds)

    def _decide(self, event: events.Decided) -> None:
        slot = event.record["component"].partition(":")[0]
        if slot in ("select", "mix", "order"):
            self._durations.setdefault(slot, []).append(event.record["seconds"])

    def _begin_save(self, _: events.Saving) -> None:
        self._save_begin = self.clock()

    def _end_save(self, _: events.Saved) -> None:
        seconds = self.clock() - self._save_begin
        self.seconds["saving"] += seconds
        self._aside += seconds
        self._durations["saving"].append(seconds)

    def _end_step(self, _: events.StepEnded) -> None:
        now = self.clock()
        if self._step_begin is not None:
            self._steps.append(max(0.0, now - self._step_begin - self._aside))
        self._step_begin, self._aside = now, 0.0

    def _log(self, event: events.Logging) -> None:
        if "loss" in event.scalars:
            event.scalars.update(self.scalars())


def strategy_of(args: Any, what: str) -> str:
    """`steps`, `epoch` or another word: of `eval_strategy` ("eval") and the like."""
    strategy = getattr(args, f"{what}_strategy")
    return str(getattr(strategy, "value", strategy))


def _decisions_left(schedule: Any, step: int, steps: int) -> int:
    """Updates that are due at `step` or later. schedule: a `Schedule`."""
    if schedule.next_due(step) is None:
        return 0
    return int(schedule.turns(steps) - schedule.turns(step))


def _times_left(args: Any, what: str, step: int, steps: int) -> int:
    """Evaluations ("eval") or checkpoints ("save") after `step`. args: TrainingArguments."""
    strategy, every = strategy_of(args, what), getattr(args, f"{what}_steps", None) or 0
    if strategy == "epoch":
        every = steps / max(args.num_train_epochs, 1e-9)
    elif strategy != "steps":
        return 0
    elif 0 < every < 1:
        every = max(1, ceil(steps * every))
    return max(0, int(steps // every) - int(step // every)) if every else 0
