"""All that the benchmarks use of the package's trainer beyond its hooks: where the trainer changes, this file follows."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import settings
from measuring import now

Timed = Callable[[str, Any], Any]  # name of a part and a function -> that function, its time counted


class _Done(Exception):
    """Ends a run once everything is measured."""


# -- work at one moment of a run ---------------------------------------------------------------------------------------


def during_run(keys: dict[str, Any], work: Callable[[Any], Any], after: int = 0, log: Path | None = None) -> Any:
    """Train from `keys`; what `work(trainer)` gives after so many optimizer steps, where the run ends. log: where it prints."""
    from transformers import Trainer, TrainerCallback

    found, train = [], Trainer.train

    class AtStep(TrainerCallback):
        def __init__(self, trainer: Any) -> None:
            self.trainer = trainer

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == after:
                found.append(work(self.trainer))
                raise _Done

        on_step_end = on_train_begin

    def watched(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        trainer.add_callback(AtStep(trainer))
        return train(trainer, *args, **kwargs)

    Trainer.train = watched  # type: ignore[method-assign]
    with settings.printing_to(log) if log else contextlib.nullcontext(), contextlib.suppress(_Done):
        settings.train(keys)
    return found[0]


def pool_of(trainer: Any, rows: Any, ids: Any = None, budget: int | None = None, gradients: bool = False) -> Any:
    """Rows to be measured, as a signal gets them; their ids stay in the batches unless they are for gradients."""
    from dataflex.data.rows import SAMPLE_IDS
    from dataflex.signals.batching import ScoringRows, default_batch_tokens

    def prepare(batch: Any) -> Any:
        inputs = trainer._prepare_inputs(batch)
        return {k: v for k, v in inputs.items() if not (gradients and k == SAMPLE_IDS)}

    device, lengths = trainer.args.device, rows.lengths()
    ids = np.arange(len(rows)) if ids is None else ids
    budget = budget or trainer.config.scoring_tokens or default_batch_tokens(device, gradients)
    return ScoringRows(rows, ids, lengths[ids], budget, trainer.data_collator, prepare, device)


def row_losses(trainer: Any) -> Callable[[Any, Any], Any]:
    """(model, batch) -> the loss of each row, as the `loss` signal measures it."""
    return trainer.score


def measured(trainer: Any, request: Any, ids: Any = None, afresh: bool = False) -> Any:
    """What a run measures for a request. afresh: even if it has been at this step."""
    if afresh:
        trainer.signals.forget()
    return trainer.signals.measure(request, ids)


def choose(trainer: Any, keys: dict[str, Any]) -> tuple[Any, float]:
    """The ids that the selector of `keys` takes at this moment, and the seconds it took; the plan stays as it is."""
    from dataflex.config import parse

    type(trainer).config = replace(trainer.config, select=parse(keys).dataflex.select)
    selecting, plan = trainer.make_selecting(), trainer.serving.plan
    selecting.init()
    trainer.signals.forget()
    stages = list(plan.stages)
    begin = time.perf_counter()
    selecting.act(trainer.state.global_step, trainer.view)
    seconds = time.perf_counter() - begin
    ids = plan.stages[-1].pools[0].ids
    plan.stages[:] = stages
    return ids, seconds


# -- watching all of a run ---------------------------------------------------------------------------------------------


def time_decisions(timed: Timed) -> None:
    """`scoring`: measuring signals. `deciding`: decisions, which hold the scoring."""
    from dataflex.deciding.decisions import Deciding
    from dataflex.signals.asking.ask import Signals

    Signals._measured = timed("scoring", Signals._measured)  # type: ignore[method-assign]
    Deciding.before = timed("deciding", Deciding.before)  # type: ignore[method-assign]


def watch_selections(
    before: Callable[[int], None], after: Callable[[int, dict[str, int], dict[str, float]], None]
) -> None:
    """Call these around every selection with its step; after it with the rows taken of each data set, and scalars."""
    from dataflex.deciding.selecting import Selecting

    act = Selecting.act

    def watched(selecting: Any, step: int, view: Any) -> None:
        if not selecting.schedule.due(step):
            return act(selecting, step, view)
        before(step)
        act(selecting, step, view)
        domains, plan = selecting.serving.domains, selecting.serving.plan
        found = np.bincount(domains.of(plan.stages[-1].pools[0].ids), minlength=len(domains.names))
        after(step, dict(zip(domains.names, found.tolist(), strict=True)), dict(selecting.recorder.scalars))

    Selecting.act = watched  # type: ignore[method-assign]


def watch_weights(seen: Callable[[list[int], Any, Any], None]) -> None:
    """Call this for every weighed micro-batch, with the ids of its rows, their weights [B] or [B, T] and their tokens [B]."""
    from dataflex import events

    def observed(event: Any) -> None:
        if event.weights is not None:
            seen(event.ids.tolist(), event.weights, event.counts)

    events.on(events.TrainedRows, observed)


def watch_batches(seen: Callable[[Any, int, list[list[int]]], None]) -> None:
    """Call this before every optimizer step, with what measures signals, the step, and the row ids of its micro-batches."""
    from dataflex import events
    from dataflex.trainer.hooks import DynamicTrainer

    made = DynamicTrainer.make_signals

    def make_signals(trainer: Any) -> Any:
        signals = made(trainer)
        events.on(events.BatchServed, lambda e: seen(signals, e.step, [micro.ids.tolist() for micro in e.micro]))
        return signals

    DynamicTrainer.make_signals = make_signals  # type: ignore[method-assign]


# -- saving and resuming -----------------------------------------------------------------------------------------------


def watch_saves(timed: Timed, saved: Callable[[Any, int], None]) -> None:
    """`all`: saving a checkpoint. `ours`: what of it is ours. saved: called with the trainer and the bytes of its ledger."""
    from dataflex.trainer import checkpoints
    from dataflex.trainer.hooks import DynamicTrainer

    checkpoints.write_snapshot = timed("ours", checkpoints.write_snapshot)
    save = timed("all", DynamicTrainer._save_checkpoint)

    def watched(trainer: Any, *args: Any) -> None:
        save(trainer, *args)
        saved(trainer, len(trainer.recorder.files.ledger_text))

    DynamicTrainer._save_checkpoint = watched  # type: ignore[method-assign]


def resume_to_first_batch(keys: dict[str, Any], timed: Timed) -> None:
    """A resumed run until its first batch. `reading` and `restoring` what a checkpoint holds, the `first batch`, `in all`."""
    from dataflex.record import snapshot
    from dataflex.trainer import hooks
    from dataflex.trainer.hooks import DynamicTrainer

    batch = timed("first batch", DynamicTrainer.get_batch_samples)

    def first_batch(*args: Any) -> Any:
        batch(*args)
        raise _Done

    snapshot.read_snapshot = timed("reading", snapshot.read_snapshot)
    hooks.read_snapshot = timed("reading", hooks.read_snapshot)
    DynamicTrainer._restore = timed("restoring", DynamicTrainer._restore)  # type: ignore[method-assign]
    DynamicTrainer.get_batch_samples = first_batch  # type: ignore[method-assign]
    with contextlib.suppress(_Done):
        timed("in all", settings.train)(keys)


# -- a decision without a run ------------------------------------------------------------------------------------------


def decision(
    block: dict[str, Any], count: int, batch: int, folder: str
) -> tuple[Callable[[], None], Callable[[], Any]]:
    """A decision of a selector as a run takes it, over `count` rows whose signals are there already; and what gives the ids
    that were chosen."""
    from dataflex.config import parse
    from dataflex.deciding.choosing import Available, Group
    from dataflex.deciding.serving import Serving
    from dataflex.plan.plan import Domains, Plan
    from dataflex.record.ledger import RunFiles
    from dataflex.record.recorder import Recorder
    from dataflex.trainer.assembly import selecting_of

    keys = {"model_name_or_path": "none", "stage": "sft", "do_train": True, "dataset": "rows", "template": "qwen"}
    config = parse({**keys, "output_dir": folder, "dataflex": block}).dataflex
    domains, values = Domains(("rows",), (count,)), np.random.default_rng(1).standard_normal(count)
    rows = type("Rows", (), {"domains": domains, "__len__": lambda _: count})()
    plan = Plan(domains, 0)
    plan.append(0, plan.domain_pools() if config.mix is not None else plan.merged_pool(), [1.0])
    files = RunFiles(folder, domains, writes=True)
    files.start({})
    named = [Group("rows" if config.mix is not None else None, 0, count)]
    available = Available(named, lambda: np.ones(count, dtype=bool))
    selecting = selecting_of(
        config.select, available, lambda request, ids=None: values, Serving(rows, plan, batch), Recorder(files),
        config.signals("select"),
    )  # fmt: skip
    selecting.init()
    view: Any = type("View", (), {"max_steps": 1000, "learning_rate": 1e-4, "optimizer": None})
    return lambda: selecting.act(0, view), lambda: plan.stages[-1].pools[0].ids


class Seconds:
    """Adds up what the parts of a run take, by a clock that waits for the device."""

    def __init__(self, read: Callable[[], float] = time.perf_counter) -> None:
        self.read, self.spent = read, dict[str, list[float]]()

    def timed(self, name: str, stock: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            begin = now(self.read)
            try:
                return stock(*args, **kwargs)
            finally:
                self.spent.setdefault(name, []).append(now(self.read) - begin)

        return wrapped
