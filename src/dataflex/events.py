"""What happens in a run, for callbacks, reports and tests.

`on(kind, call)` has `call` called with every event of that kind in this process, in the order of the calls to `on`. An
error that it raises ends the run. Ranks have events of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

E = TypeVar("E")


@dataclass(frozen=True, eq=False)
class Prepared:
    """The trainer of a run is made; nothing is trained or restored yet."""

    rows: Any
    """Training data: `Rows`, or `Streams`."""
    target: Any
    """Rows that selectors and weighters aim at, or None."""
    held_out: Any
    """Held-out rows by domain, or None."""
    evaluation: Any
    """LLaMA-Factory's evaluation data, or None."""
    config: Any
    """The `dataflex` block, a `DataflexConfig`."""


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
class Finished:
    """The last step of a run is done, and its files are written."""

    step: int


_CALLS: dict[type, list[Callable[[Any], None]]] = {}


def on(kind: type[E], call: Callable[[E], None]) -> None:
    _CALLS.setdefault(kind, []).append(call)


def emit(event: Any) -> None:
    for call in _CALLS.get(type(event), ()):
        call(event)
