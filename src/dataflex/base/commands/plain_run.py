"""Says what a run without a block does: LLaMA-Factory's own trainer, with a callback that reads and changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback

from dataflex import events
from dataflex.base.seams import STAGES
from dataflex.values import truth


@dataclass(frozen=True)
class _Length:
    """What events say of the Trainer: its arguments, and the optimizer steps of the whole run."""

    args: Any
    max_steps: int


class PlainRunEvents(TrainerCallback):
    """Emits the events of a run for those who listen: what it prints is made from them.

    Saving has no event, so its time counts as that of training."""

    def __init__(self) -> None:
        self._length: _Length | None = None
        self._ended = 0  # the step that is done, but for its log, evaluation and checkpoint; 0: none
        self._step = 0
        self._measures: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        rows = getattr(kwargs.get("train_dataloader"), "dataset", None)
        events.emit(events.Prepared(rows, None, None, None, None, kwargs["model"]))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._end_step(state.global_step)
        if self._length is None:
            self._length = _Length(args, state.max_steps)
            batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
            events.emit(events.Started(state.global_step, batch, {}, self._length))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._ended = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        events.emit(events.Logging(state.global_step, dict(logs or {})))  # a copy: listeners may add to it

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Once for each data set."""
        self._measures.update(metrics or {})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._end_step(state.global_step)
        events.emit(events.Finished(state.global_step, {}))

    def finish(self) -> None:
        """The command is over: say what was evaluated after the training."""
        self._end_step(self._step)

    def _end_step(self, step: int) -> None:
        self._step = step
        if self._measures:
            measures, self._measures = self._measures, {}
            seconds = sum(value for name, value in measures.items() if name.endswith("_runtime"))
            events.emit(events.Spent("evaluating", seconds))
            events.emit(events.Evaluated(step, measures, seconds))
        if self._ended:
            events.emit(events.StepEnded(self._ended, self._length))
            self._ended = 0


def talks_like_others(arguments: Mapping[str, Any], *, elsewhere: bool) -> bool:
    """Whether what LLaMA-Factory prints of a run goes to a log. What does not train prints its results, and ppo its own bar.
    elsewhere: other processes or another engine train."""
    trains = truth(arguments.get("do_train"), "do_train")
    return trains and not elsewhere and str(arguments.get("stage", "sft")) in STAGES
