"""What happens in a run, for callbacks, reports and tests.

`on(kind, call)` has `call` called with every event of that kind in this process, in the order of the calls to `on`. An
error that it raises ends the run. Ranks have events of their own. `listening` does the same for the length of a block.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

E = TypeVar("E")
Activity = Literal["selecting", "mixing", "weighing", "ordering", "evaluating", "saving"]


@dataclass(frozen=True, eq=False)
class Prepared:
    """The trainer of a run is made; nothing is trained or restored yet."""

    rows: Any
    """Training data: `Rows`, or `Streams`; without a block LLaMA-Factory's data set."""
    target: Any
    """Rows that selectors and weighters aim at, or None."""
    held_out: Any
    """Held-out rows by domain, or None."""
    evaluation: Any
    """LLaMA-Factory's evaluation data, or None."""
    config: Any
    """The `dataflex` block, a `DataflexConfig`; None without one."""
    model: Any
    """As it was loaded, before an engine wraps it."""


@dataclass(frozen=True)
class Started:
    """The Trainer's loop begins: its length is settled, and nothing is decided or served yet."""

    step: int
    """Optimizer steps done before, by the run that this one resumes."""
    global_batch: int
    schedules: Mapping[str, Any]
    """The `Schedule` of `select` and of `mix`, where they act."""
    trainer: Any
    """Read only: a `StageView`. Without a block it has `args` and `max_steps` alone."""


@dataclass(frozen=True)
class Restored:
    """The state of a checkpoint is taken up."""

    step: int
    folder: Path


@dataclass(frozen=True)
class Deciding:
    """Components may decide before optimizer step `step`, counted from 0. Not every step has this event."""

    step: int
    trainer: Any
    """Read only: a `StageView`."""


@dataclass(frozen=True)
class Decided:
    """A line of the ledger."""

    record: Mapping[str, Any]


@dataclass(frozen=True)
class Measured:
    """Values of a signal are measured."""

    request: Any
    """A `SignalRequest`."""
    rows: int
    """That the values belong to, of all ranks."""
    seconds: float


@dataclass(frozen=True)
class Passing:
    """A pass over rows has come so far. Once per batch, and when the pass begins."""

    what: str
    """What is measured."""
    done: int
    """Of all ranks."""
    total: int
    unit: str


@dataclass(frozen=True)
class Passed:
    """The pass is over, or was given up."""


@dataclass(frozen=True)
class Spent:
    """Time that went into something else than training steps, on the clock of this rank."""

    on: Activity
    seconds: float


@dataclass(frozen=True, eq=False)
class BatchServed:
    """The micro-batches of optimizer step `step` on this rank."""

    step: int
    batches: Sequence[Mapping[str, Any]]
    """The model's inputs."""
    micro: Sequence[Any]
    """The `MicroBatch` of each: row ids, and the data's own weights."""
    trainer: Any
    """Read only: a `StageView`."""


@dataclass(frozen=True, eq=False)
class ScoredBatch:
    """Losses of some rows are measured before optimizer step `step`."""

    step: int
    ids: Any
    """Row ids, int64 [B], or None for rows that are not trained on."""
    losses: Any
    """float32 [B]; they may be changed in place."""


@dataclass(frozen=True, eq=False)
class TrainedRows:
    """A micro-batch has passed the model in optimizer step `step`."""

    step: int
    ids: Any
    """int64 [B]"""
    losses: Any
    """float32 [B]"""
    counts: Any
    """int64 [B]: what each row has to learn, in tokens, or 1 for a pair."""
    weights: Any
    """[B], or of tokens [B, T]; None: all one."""


@dataclass(frozen=True, eq=False)
class Logging:
    """The Trainer logs."""

    step: int
    scalars: dict[str, Any]
    """May be added to."""


@dataclass(frozen=True)
class Evaluated:
    """An evaluation is done."""

    step: int
    measures: Mapping[str, float]
    """By name, `eval_loss` and the like; equal on every rank."""
    seconds: float


@dataclass(frozen=True)
class Saving:
    """A checkpoint is begun."""

    step: int
    folder: Path


@dataclass(frozen=True)
class SavingState:
    """The Trainer's files of a checkpoint are written, ours are not."""

    step: int
    folder: Path


@dataclass(frozen=True)
class Saved:
    """A checkpoint is whole."""

    step: int
    folder: Path


@dataclass(frozen=True)
class StepEnded:
    """`step` optimizer steps are done, with all that belongs to the last one: log, evaluation, checkpoint."""

    step: int
    trainer: Any
    """Read only: a `StageView`."""


@dataclass(frozen=True)
class Recommended:
    """A mixer that was run to find proportions for another run has found them."""

    proportions: Mapping[str, float]
    """By domain."""
    file: Path


@dataclass(frozen=True)
class Finished:
    """The last step of a run is done, and its files are written."""

    step: int
    served: Mapping[str, int]
    """Rows of each domain since training began; empty where LLaMA-Factory orders them."""


_CALLS: dict[type, list[Callable[[Any], None]]] = {}


def on(kind: type[E], call: Callable[[E], None]) -> None:
    _CALLS.setdefault(kind, []).append(call)


@contextmanager
def listening(*calls: tuple[type, Callable[[Any], None]]) -> Iterator[None]:
    """Each (kind, call) as by `on`, for the length of the block."""
    for kind, call in calls:
        on(kind, call)
    try:
        yield
    finally:
        for kind, call in calls:
            _CALLS[kind].remove(call)


@contextmanager
def timing(activity: Activity) -> Iterator[None]:
    """Emit `Spent` with the time that the block takes."""
    begin = time.perf_counter()
    try:
        yield
    finally:
        emit(Spent(activity, time.perf_counter() - begin))


def emit(event: Any) -> None:
    for call in _CALLS.get(type(event), ()):
        call(event)
