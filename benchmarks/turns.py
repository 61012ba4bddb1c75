"""Two trainers, each in its own process, that take turns: one optimizer step of the first, one of the second, and so on."""

from __future__ import annotations

import contextlib
import multiprocessing.connection
import os
import time
from pathlib import Path
from typing import Any

import apart


def run_pair(first: dict[str, Any], second: dict[str, Any], threads: int, processor_time: bool) -> list[dict[str, Any]]:
    """Train from both configurations in turns; gives what the clock of each saw (see `_Clock.seen`).

    A configuration with a `dataflex` block goes through `dataflex.base.commands.train.train`, another one through LLaMA-Factory's
    own entry. RuntimeError with the end of its log if a run fails.
    """
    apart.CONTEXT.set_forkserver_preload(list(apart.PRELOAD))
    turns = [apart.CONTEXT.Semaphore(1), apart.CONTEXT.Semaphore(0)]
    together = apart.CONTEXT.Barrier(2)
    processes, answers, logs = [], [], []
    for place, config in enumerate((first, second)):
        receive, send = apart.CONTEXT.Pipe(duplex=False)
        logs.append(Path(f"{config['output_dir']}.log"))
        logs[-1].parent.mkdir(parents=True, exist_ok=True)
        shared = (turns[place], turns[1 - place], together, processor_time)
        processes.append(apart.CONTEXT.Process(target=_train, args=(config, str(logs[-1]), threads, send, shared)))
        processes[-1].start()
        send.close()
        answers.append(receive)
    done = False
    try:
        seen = [_receive(answer, processes, logs) for answer in answers]
        done = True
        return seen
    finally:
        for process in processes:
            process.join(30 if done else 0)
            process.kill()


def _receive(answer: Any, processes: list[Any], logs: list[Path]) -> dict[str, Any]:
    pending = [p.sentinel for p in processes]
    while True:
        ended = multiprocessing.connection.wait([answer, *pending])
        with contextlib.suppress(EOFError):  # its run has ended without one
            if answer in ended:
                return answer.recv()
        for process in processes:
            process.join(1 if process.sentinel in ended or answer in ended else 0)
        pending = [s for s in pending if s not in ended]
        for process, log in zip(processes, logs, strict=True):
            if process.exitcode not in (None, 0):
                raise RuntimeError(f"a run failed:\n{log.read_text(errors='replace')[-3000:]}")


def _train(config: dict[str, Any], log: str, threads: int, answer: Any, shared: tuple[Any, ...]) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    import torch

    torch.set_num_threads(threads)
    clock = _Clock(*shared)
    clock.attach()
    if "dataflex" in config:
        from dataflex.base.commands.train import train
        from dataflex.config import parse

        train(parse(config))
    else:
        from llamafactory.train.tuner import run_exp

        run_exp(args=config)
    answer.send(clock.seen())


class _Clock:
    """Seconds from the end of one optimizer step to the end of the next, the waiting for the other trainer left out.

    A step so holds everything between: logging, decisions, loading, forward, backward, optimizer. On a GPU the clock is
    read when all queued work is done. mine, other: semaphores that give a trainer its turn. together: barrier of both.
    """

    def __init__(self, mine: Any, other: Any, together: Any, processor_time: bool) -> None:
        self.mine, self.other, self.together = mine, other, together
        self.read = time.process_time if processor_time else time.perf_counter
        self.begin = 0.0
        self.steps: list[float] = []
        self.shapes: set[tuple[int, ...]] = set()
        self.spent = {"scoring": [0.0], "deciding": [0.0]}

    def seen(self) -> dict[str, Any]:
        """Seconds per step ("steps"), those of them in scoring passes and in decisions (which hold the scoring), and the
        shapes of all micro-batches."""
        spent = {name: values[: len(self.steps)] for name, values in self.spent.items()}
        return {"steps": self.steps, "shapes": sorted(self.shapes), **spent}

    def attach(self) -> None:
        """Put the clock into the Trainer's loop, the same way for both runs."""
        from transformers import Trainer
        from transformers.trainer_callback import CallbackHandler

        from dataflex.signals.asking.ask import Signals
        from dataflex.trainer import core, mix

        begin, end, track = CallbackHandler.on_train_begin, CallbackHandler.on_step_end, Trainer._track_num_input_tokens

        def on_train_begin(handler: Any, *args: Any, **kwargs: Any) -> Any:
            control = begin(handler, *args, **kwargs)
            self.together.wait()
            self.mine.acquire()
            self.begin = self.now()
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
        Signals._measured = self.timed("scoring", Signals._measured)
        core.DynamicTrainer._decide = self.timed("deciding", core.DynamicTrainer._decide)
        mix.MixTrainer._adjust = self.timed("deciding", mix.MixTrainer._adjust)

    def timed(self, name: str, stock: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            begin = self.now()
            try:
                return stock(*args, **kwargs)
            finally:
                self.spent[name][-1] += self.now() - begin

        return wrapped

    def now(self) -> float:
        import torch

        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return self.read()

    def hand_over(self, last: bool) -> None:
        """End of a step. After the last one both wait, so that what one writes then does not run beside the other."""
        self.steps.append(self.now() - self.begin)
        for values in self.spent.values():
            values.append(0.0)
        self.other.release()
        if last:
            self.together.wait()
        else:
            self.mine.acquire()
        self.begin = self.now()
