"""Two trainers, each in its own process, that take turns: one optimizer step of the first, one of the second, and so on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import apart
import inside
import settings
from measuring import now


def run_pair(first: dict[str, Any], second: dict[str, Any], threads: int, processor_time: bool) -> list[dict[str, Any]]:
    """Train from both configurations in turns; gives what the clock of each saw (see `_Clock.seen`).

    A configuration with a `dataflex` block goes through our command, another one through LLaMA-Factory's own. RuntimeError with
    the end of its log if a run fails.
    """
    turns = [apart.CONTEXT.Semaphore(1), apart.CONTEXT.Semaphore(0)]
    together = apart.CONTEXT.Barrier(2)
    started = []
    for place, keys in enumerate((first, second)):
        clock = (turns[place], turns[1 - place], together, processor_time)
        started.append(apart.start(_train, keys, clock, log=Path(f"{keys['output_dir']}.log"), threads=threads))
    return apart.answers(started)


def _train(keys: dict[str, Any], shared: tuple[Any, ...]) -> dict[str, Any]:
    clock = _Clock(*shared)
    clock.attach()
    settings.train(keys)
    return clock.seen()


class _Clock:
    """Seconds from the end of one optimizer step to the end of the next, the waiting for the other trainer left out.

    A step so holds everything between: logging, decisions, loading, forward, backward, optimizer. On a GPU the clock is
    read when all queued work is done. mine, other: semaphores that give a trainer its turn. together: barrier of both.
    """

    def __init__(self, mine: Any, other: Any, together: Any, processor_time: bool) -> None:
        self.mine, self.other, self.together = mine, other, together
        self.parts = inside.Seconds(time.process_time if processor_time else time.perf_counter)
        self.begin = 0.0
        self.steps: list[float] = []
        self.shapes: set[tuple[int, ...]] = set()
        self.spent: dict[str, list[float]] = {"scoring": [], "deciding": []}

    def seen(self) -> dict[str, Any]:
        """Seconds per step ("steps"), those of them in scoring passes and in decisions (which hold the scoring), and the
        shapes of all micro-batches."""
        return {"steps": self.steps, "shapes": sorted(self.shapes), **self.spent}

    def attach(self) -> None:
        """Put the clock into the Trainer's loop, the same way for both runs."""
        from transformers import Trainer
        from transformers.trainer_callback import CallbackHandler

        begin, end, track = CallbackHandler.on_train_begin, CallbackHandler.on_step_end, Trainer._track_num_input_tokens

        def on_train_begin(handler: Any, *args: Any, **kwargs: Any) -> Any:
            control = begin(handler, *args, **kwargs)
            self.together.wait()
            self.mine.acquire()
            self.begin = now(self.parts.read)
            return control

        def on_step_end(handler: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            control = end(handler, args, state, control, **kwargs)
            self.hand_over(last=state.global_step >= state.max_steps)
            return control

        def track_tokens(trainer: Any, inputs: Any) -> None:
            self.shapes.add(tuple(inputs["input_ids"].shape))
            track(trainer, inputs)

        CallbackHandler.on_train_begin = on_train_begin
        CallbackHandler.on_step_end = on_step_end
        Trainer._track_num_input_tokens = track_tokens
        inside.time_decisions(self.parts.timed)

    def hand_over(self, last: bool) -> None:
        """End of a step. After the last one both wait, so that what one writes then does not run beside the other."""
        self.steps.append(now(self.parts.read) - self.begin)
        for name, values in self.spent.items():
            values.append(sum(self.parts.spent.pop(name, [])))
        self.other.release()
        if last:
            self.together.wait()
        else:
            self.mine.acquire()
        self.begin = now(self.parts.read)
