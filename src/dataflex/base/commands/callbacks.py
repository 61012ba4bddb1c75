"""Tells experiment trackers about the dataflex block, as LLaMA-Factory tells them about its own arguments."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from transformers import TrainerCallback

from dataflex import events
from dataflex.base.processes import progress
from dataflex.masking import masked


class StepReporter(TrainerCallback):
    """Keeps count of the steps, for the line that says where a run was stopped."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        progress.reach(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        progress.reach(state.global_step)


class EvaluationProgress(TrainerCallback):
    """Announces how far an evaluation has come, in batches."""

    def __init__(self) -> None:
        self.done = 0

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        try:
            total = len(eval_dataloader)
        except TypeError:  # it streams
            return
        if not self.done:
            events.emit(events.Passing("the evaluation loss", 0, total, "batches"))
        self.done += 1
        events.emit(events.Passing("the evaluation loss", self.done, total, "batches"))

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.done = 0
        events.emit(events.Passed())

    on_predict = on_evaluate


class BlockReporter(TrainerCallback):
    """Adds `dataflex` to the run configuration of wandb, trackio and swanlab, whichever are reported to."""

    def __init__(self, block: dict[str, Any], swanlab: bool) -> None:
        self.block, self.swanlab = block, swanlab

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        trackers = [name for name in ("wandb", "trackio") if name in (args.report_to or [])]
        for name in [*trackers, *(["swanlab"] if self.swanlab else [])]:
            importlib.import_module(name).config.update({"dataflex": self.block})


def log_callback(left: Callable[[int], float | None]) -> type:
    """LLaMA-Factory's LogCallback, which writes trainer_log.jsonl with a fixed set of keys, with our scalars beside them.

    left: seconds that are left once so many steps are done; None where that is not known yet."""
    from llamafactory.train.callbacks import LogCallback

    class ScalarLogCallback(LogCallback):
        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            writer: Any = self.thread_pool  # type: ignore[has-type]
            if writer is not None:
                ours = {k: v for k, v in state.log_history[-1].items() if k.startswith(("dataflex/", "eval_dataflex/"))}
                self.thread_pool = _Adding(writer, ours)
            super().on_log(args, state, control, **kwargs)
            self.thread_pool = writer

        def _timing(self, cur_steps: int) -> None:
            super()._timing(cur_steps)
            seconds = left(cur_steps) if self.do_train else None
            if seconds is not None:
                self.remaining_time = str(timedelta(seconds=int(seconds)))

    return ScalarLogCallback


def reporter_callback() -> type:
    """LLaMA-Factory's ReporterCallback, which tells trackers its arguments, without those that are secret."""
    from llamafactory.train.callbacks import ReporterCallback

    class MaskedReporterCallback(ReporterCallback):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*(_Masked(given) for given in arguments))

    return MaskedReporterCallback


class _Masked:
    """Arguments, of which `to_dict` gives no secrets."""

    def __init__(self, arguments: Any) -> None:
        self.arguments = arguments

    def __getattr__(self, name: str) -> Any:
        return getattr(self.arguments, name)

    def to_dict(self) -> dict[str, Any]:
        return dict(masked(self.arguments.to_dict()))


class _Adding:
    """Passes work on to a thread pool, with more keys in the record to be written."""

    def __init__(self, pool: Any, record: dict[str, Any]) -> None:
        self.pool, self.record = pool, record

    def submit(self, write: Any, output_dir: str, logs: dict[str, Any]) -> Any:
        return self.pool.submit(write, output_dir, {**logs, **self.record})
