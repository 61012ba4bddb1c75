"""Components as a user would write them, for the tests."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dataflex import Decision, DomainInfo, Mixer, Observations, Selection, SelectionContext, Selector, State
from dataflex.components.requests import Embedding, PolicyAlignment, TargetAlignment, TargetEmbedding


@dataclass(frozen=True, kw_only=True)
class PoolLossMixer(Mixer):
    """Proportions by the mean loss of each domain's pool."""

    needs: ClassVar[frozenset[str]] = frozenset({"loss"})

    def update(self, state: State, observations: Observations) -> tuple[Decision, State]:
        means = np.array([np.nanmean(values) for values in observations.signals["loss"]])
        return Decision(means / means.sum()), state


@dataclass(frozen=True, kw_only=True)
class ShareMixer(Mixer):
    """Weighs the losses of each domain by the share that is in force, at every step."""

    moves_proportions: ClassVar[bool] = False
    default_interval: ClassVar[int | None] = 1

    def update(self, state: State, observations: Observations) -> tuple[Decision, State]:
        return Decision(observations.proportions, observations.proportions), state


@dataclass(frozen=True, kw_only=True)
class WithoutGradients(Selector):
    """Asks for a forward pass of every kind, and takes the first rows."""

    needs: ClassVar[frozenset[Any]] = frozenset({"loss", Embedding(), TargetEmbedding(layer=1, pooling="last")})

    def select(
        self, state: State, signals: Mapping[str, np.ndarray], context: SelectionContext
    ) -> tuple[Selection, State]:
        return Selection(np.arange(context.budget)), state


@dataclass(frozen=True, kw_only=True)
class Everything(WithoutGradients):
    """Responses and gradients too."""

    needs: ClassVar[frozenset[Any]] = WithoutGradients.needs | {
        TargetAlignment(),
        PolicyAlignment(samples=2, max_new_tokens=5, reward="own_components:digits"),
    }


@dataclass(frozen=True, kw_only=True)
class Backwards(Selector):
    """The last rows, from the last on."""

    def select(
        self, state: State, signals: Mapping[str, np.ndarray], context: SelectionContext
    ) -> tuple[Selection, State]:
        return Selection(np.arange(context.rows)[::-1][: context.budget]), state


@dataclass(frozen=True, kw_only=True)
class Remarking(Selector):
    """Takes the first rows, and says how many there were and when."""

    def select(
        self, state: State, signals: Mapping[str, np.ndarray], context: SelectionContext
    ) -> tuple[Selection, State]:
        said = {"rows": f"{context.rows} rows at step {context.step}"}
        return Selection(np.arange(context.budget), remarks=said), state


@dataclass(frozen=True, kw_only=True)
class RemarkingMixer(Mixer):
    """Keeps the proportions, and says when; at step 0 it decides nothing."""

    def update(self, state: State, observations: Observations) -> tuple[Decision | None, State]:
        if not observations.step:
            return None, state
        return Decision(observations.proportions, remarks={"step": f"step {observations.step}"}), state


@dataclass(frozen=True, kw_only=True)
class Judging(WithoutGradients):
    """One that asks a service, and has a key for it."""

    api_key: str
    needs: ClassVar[frozenset[Any]] = frozenset({"loss"})


class OldSelector:
    """Written against dataflex 1.1.0."""

    def select(self, model, step_id, num_samples, **kwargs):  # type: ignore[no-untyped-def]
        return list(range(num_samples))


def digits(prompts: list[str], responses: list[str], references: list[str]) -> list[float]:
    """A reward: the share of characters that are digits."""
    return [sum(c.isdigit() for c in r) / max(1, len(r)) for r in responses]


@dataclass(frozen=True, kw_only=True)
class HeldOutRecorder(Mixer):
    """Keeps the held-out losses of the last update: of all rows, and the number of rows of each domain."""

    needs: ClassVar[frozenset[str]] = frozenset({"heldout_loss"})

    def init(self, domains: DomainInfo) -> State:
        return {"values": np.zeros(0), "sizes": np.zeros(0)}

    def update(self, state: State, observations: Observations) -> tuple[Decision, State]:
        found = observations.signals["heldout_loss"]
        return Decision(observations.proportions), {
            "values": np.concatenate(found),
            "sizes": np.array([len(v) for v in found]),
        }


def length(prompts: list[str], responses: list[str], references: list[str]) -> list[float]:
    """A reward."""
    return [float(len(r) % 5) for r in responses]


@dataclass(frozen=True, kw_only=True)
class Failing(Selector):
    """Returns no rows, whatever it was asked for."""

    def select(self, state, signals, context):
        return Selection(np.zeros(0, dtype=np.int64)), state


@dataclass(frozen=True, kw_only=True)
class Slow(Selector):
    """Takes the first rows, and `seconds` for it."""

    seconds: float = 0.5

    def select(self, state, signals, context):
        time.sleep(self.seconds)
        return Selection(np.arange(context.budget)), state
