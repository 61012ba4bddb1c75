"""Which rows a run has served, and the feed of those that come next."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from dataflex.data.feed import Feed
from dataflex.data.rows import Rows
from dataflex.data.stream_feed import StreamFeed
from dataflex.data.streams import Streams
from dataflex.plan.plan import Plan
from dataflex.plan.stages import Stage


@dataclass(frozen=True)
class Delivery:
    """How a global batch comes to the ranks."""

    collate: Callable[[list[dict[str, Any]]], Any]
    per_device: int
    accumulation: int
    rank: int
    ranks: int
    workers: int
    prefetch: int | None
    pin_memory: bool

    @property
    def shape(self) -> dict[str, int]:
        """As feeds take it."""
        return {
            "per_device": self.per_device, "accumulation": self.accumulation, "rank": self.rank, "ranks": self.ranks,
            "workers": self.workers,
        }  # fmt: skip


class Serving:
    """Positions. Used alone where LLaMA-Factory orders the rows: nothing is planned, and nothing counted.

    Attributes:
        global_batch: Rows of an optimizer step.
        origin: (step, position) since which this global batch is in force.
        served: Rows of each domain since training began, int64[k].
    """

    def __init__(self, rows: Rows | Streams, plan: Plan, global_batch: int) -> None:
        self.domains, self.plan, self.global_batch = rows.domains, plan, global_batch
        self.origin = (0, 0)
        self.served = np.zeros(len(rows.domains), dtype=np.int64)

    def position(self, step: int) -> int:
        """Samples served when `step` optimizer steps are done."""
        return self.origin[1] + (step - self.origin[0]) * self.global_batch

    def step_at(self, position: int) -> int:
        """Optimizer steps done when the global batch with this position is next."""
        return self.origin[0] + (position - self.origin[1]) // self.global_batch

    def resume(self, step: int, position: int, stages: list[Stage]) -> None:
        self.origin, self.plan.stages = (step, position), stages

    def close(self) -> None:
        """End the workers, if there are any."""

    def scalars(self) -> dict[str, float]:
        """Of what was served since the last call."""
        return {}

    def served_by_name(self) -> dict[str, int]:
        """Rows of each domain since training began; empty where they are not counted."""
        return dict(zip(self.domains.names, self.served.tolist(), strict=True)) if self.served.any() else {}

    def state_dict(self) -> dict[str, Any]:
        return {"served": self.served.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.served = np.array(state["served"])


class AnyFeed(Protocol):
    def open(self, position: int, steps: int) -> None:
        """Serve `steps` optimizer steps from `position` on."""

    def next_step(self) -> tuple[list[Any], np.ndarray, np.ndarray]:
        """The micro-batches of this rank, and of the global batch the rows of each domain and what they count as, each [k]."""

    def close(self) -> None:
        """End the workers."""


class PlannedServing(Serving):
    """Serves what the plan says, up to the next decision."""

    def __init__(self, rows: Rows | Streams, plan: Plan, global_batch: int, delivery: Delivery) -> None:
        super().__init__(rows, plan, global_batch)
        self.delivery = delivery
        self._feed: AnyFeed | None = None
        self._horizon = 0  # the step up to which rows are read
        self._amounts = np.zeros(len(rows.domains))  # rows (or tokens) of each domain since the last log

    def is_open(self, step: int) -> bool:
        """Whether the rows of this step are decided."""
        return self._feed is not None and step < self._horizon

    def open(self, step: int, horizon: int) -> None:
        """Serve the steps from `step` to `horizon`, without the last."""
        if self._feed is None:
            self._feed = self._make_feed()
        self._horizon = horizon
        self._feed.open(self.position(step), horizon - step)

    def next_step(self) -> tuple[list[Any], np.ndarray]:
        """The micro-batches of the next step, and what its global batch counts in the plan's unit, [k]."""
        assert self._feed is not None
        batches, rows, amounts = self._feed.next_step()
        self.served += rows
        self._amounts += amounts
        return batches, amounts

    def close(self) -> None:
        if self._feed is not None:
            self._feed.close()

    def scalars(self) -> dict[str, float]:
        total, amounts = self._amounts.sum(), self._amounts
        if not total:
            return {}
        self._amounts = np.zeros(len(amounts))
        return {f"dataflex/realized/{n}": float(c / total) for n, c in zip(self.domains.names, amounts, strict=True)}

    @property
    @abstractmethod
    def extent(self) -> dict[str, int]:
        """How much data there is, for the ledger."""

    @abstractmethod
    def examples(self, max_steps: int) -> int:
        """Rows of what the Trainer takes for an epoch."""

    @abstractmethod
    def epoch(self, step: int, max_steps: int) -> float:
        """Epochs done after `step` steps."""

    @abstractmethod
    def epochs_of(self, domain: int, stage: Stage) -> float | None:
        """How often a domain has been served whole; None where that is not known."""

    @abstractmethod
    def _make_feed(self) -> AnyFeed:
        pass


class RowServing(PlannedServing):
    """Serves indexed data."""

    def __init__(self, rows: Rows, plan: Plan, global_batch: int, delivery: Delivery) -> None:
        super().__init__(rows, plan, global_batch, delivery)
        self.rows = rows

    @property
    def extent(self) -> dict[str, int]:
        return {"rows": len(self.rows)}

    def examples(self, max_steps: int) -> int:
        return len(self.rows)

    def epoch(self, step: int, max_steps: int) -> float:
        return self.position(step) / len(self.rows)

    def epochs_of(self, domain: int, stage: Stage) -> float | None:
        return float(self.served[domain] / len(stage.pools[domain]))

    def _make_feed(self) -> Feed:
        return Feed(
            self.rows,
            self.delivery.collate,
            self.plan.rows,
            **self.delivery.shape,
            prefetch=self.delivery.prefetch,
            pin_memory=self.delivery.pin_memory,
            lengths=self.plan.lengths,
        )


class StreamServing(PlannedServing):
    """Serves streams. The plan counts the draws of each domain, and the streams say which samples these are.

    A stream has no length, so steps replace epochs.

    Args:
        shuffle: Whether samples are shuffled within their blocks.
    """

    def __init__(self, streams: Streams, plan: Plan, global_batch: int, delivery: Delivery, *, shuffle: bool) -> None:
        super().__init__(streams, plan, global_batch, delivery)
        self.streams, self.shuffle = streams, shuffle
        self._saved: Mapping[str, Any] = {}  # cursors in the checkpoint

    @property
    def extent(self) -> dict[str, int]:
        return {"streams": len(self.domains)}

    def examples(self, max_steps: int) -> int:
        return max_steps * self.global_batch

    def epoch(self, step: int, max_steps: int) -> float:
        return step / max_steps

    def epochs_of(self, domain: int, stage: Stage) -> float | None:
        return None

    def _make_feed(self) -> StreamFeed:
        return StreamFeed(
            self.streams,
            self.delivery.collate,
            self.plan.rows,
            **self.delivery.shape,
            seed=self.plan.seed,
            shuffle=self.shuffle,
            saved=self._saved,
        )

    def scalars(self) -> dict[str, float]:
        out = super().scalars()
        if isinstance(self._feed, StreamFeed):
            out |= {f"dataflex/epoch/{cursor.name}": float(cursor.epoch) for cursor in self._feed.cursors}
        return out

    def state_dict(self) -> dict[str, Any]:
        assert isinstance(self._feed, StreamFeed)
        return {**super().state_dict(), "streams": self._feed.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._saved = state["streams"]
