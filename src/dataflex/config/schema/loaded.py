"""The typed configuration every spelling ends in: the keys that a user writes, and what is made of them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from dataflex.compat.behaviour import AS_THE_BLOCK, Compatibility
from dataflex.components.contracts import Component, Mixer, Order, Selector, Weighter, declared
from dataflex.components.requests import Loss, Request, Tokens, as_requests
from dataflex.components.signal_request import SignalRequest
from dataflex.config.schema.domains import DATA_SETS, DomainsKeys
from dataflex.config.schema.keys import (
    BlockKeys,
    ChoiceKeys,
    EvaluateKeys,
    GenerateKeys,
    MixKeys,
    OfflineConfig,
    OrderKeys,
    PartKeys,
    ScheduleKeys,
    SelectKeys,
    WeightKeys,
)
from dataflex.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Schedule(ScheduleKeys):
    """When a component acts, in optimizer steps: at `warmup`, then every `interval`, `updates` times (None: to the end).

    interval None: never (a static mixture). at: the steps themselves, ascending, where a component names its own.
    """

    at: tuple[int, ...] | None = None

    def due(self, step: int) -> bool:
        """Whether an update falls before optimizer step `step` (counted from 0)."""
        if self.at is not None:
            return self.next_due(step) == step
        if self.interval is None or step < self.warmup or (step - self.warmup) % self.interval:
            return False
        return self.updates is None or (step - self.warmup) // self.interval < self.updates

    def next_due(self, step: int) -> int | None:
        """The first step at or after `step` at which an update is due; None if there is none."""
        if self.at is not None:
            index = bisect_left(self.at, step)
            return self.at[index] if index < len(self.at) else None
        if self.interval is None:
            return None
        turn = max(0, -(-(step - self.warmup) // self.interval))
        if self.updates is not None and turn >= self.updates:
            return None
        return self.warmup + turn * self.interval

    def turns(self, steps: int) -> int:
        """Updates in a run of `steps` optimizer steps."""
        if self.at is not None:
            return bisect_left(self.at, steps)
        assert self.interval is not None
        due = max(0, -(-(steps - self.warmup) // self.interval))
        return due if self.updates is None else min(due, self.updates)

    def turn(self, step: int) -> int:
        """Updates made before the one due at `step`."""
        if self.at is not None:
            return bisect_left(self.at, step)
        assert self.interval is not None
        return (step - self.warmup) // self.interval


@dataclass(frozen=True, kw_only=True)
class SelectConfig(SelectKeys):
    """A selector, and how its selections are used."""

    name: str
    component: Selector
    schedule: Schedule


@dataclass(frozen=True, kw_only=True)
class MixConfig(MixKeys):
    """A mixer, and how its mixtures are served.

    proportions: per data set, in the order of `dataset`; None: by `initial`.
    max_repetition: of the rows of every domain, or of each; None: without limit.
    stream_block: None where the data is not streamed.
    by_name: proportions and max_repetition by the names of domains, as long as these are not known.
    """

    name: str
    component: Mixer
    schedule: Schedule
    proportions: tuple[float, ...] | None = None
    max_repetition: float | tuple[float | None, ...] | None = None
    by_name: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def limits(self) -> bool:
        """Whether `max_repetition` bounds what a domain may serve."""
        return self.max_repetition is not None or "max_repetition" in self.by_name

    @property
    def needs_sizes(self) -> bool:
        """Whether the first mixture follows from the number of rows of each data set."""
        stratified = self.proportions is None and "proportions" not in self.by_name and self.initial == "stratified"
        return self.component.needs_sizes or stratified

    def settled(self, global_batch: int, origin: tuple[int, int] = (0, 0)) -> Schedule:
        """The schedule where `global_batch` rows are served a step from origin (step, position) on. ConfigError if the mixer
        is to act after a fraction of a step."""
        positions = self.component.own_plan().positions
        if positions is None:
            return self.schedule
        step, begin = origin
        for position in positions:
            if position > begin and (position - begin) % global_batch:
                raise ConfigError(
                    f"dataflex.mix.name: {self.name} acts at row {position}, which is not a whole number of steps of"
                    f" {global_batch} rows{f' from row {begin} on' if begin else ''}; choose another global batch"
                )
        return replace(self.schedule, at=tuple(sorted({step + (p - begin) // global_batch for p in positions})))

    def most_rows(self, names: tuple[str, ...], sizes: tuple[int, ...]) -> list[int | None]:
        """How many rows each domain may serve in all; ConfigError if that is none of some domain."""
        each = self.max_repetition
        limits = each if isinstance(each, tuple) else (each,) * len(sizes)
        most = [None if m is None else int(m * n) for m, n in zip(limits, sizes, strict=True)]
        for name, size, limit, count in zip(names, sizes, limits, most, strict=True):
            if count == 0:
                raise ConfigError(f"dataflex.mix.max_repetition: {limit} leaves none of the {size} rows of {name!r}")
        return most


@dataclass(frozen=True, kw_only=True)
class WeightPart(PartKeys):
    """One weighter and when it acts, in optimizer steps: from `warmup` on, with a strength that rises over `ramp` steps to one
    and from `until` on falls over `fade` steps to zero (None: it stays)."""

    name: str
    component: Weighter

    def strength(self, step: int) -> float:
        """Between 0, where everything weighs one, and 1, where the weighter alone decides, before optimizer step `step`."""
        if step < self.warmup:
            return 0.0
        risen = 1.0 if not self.ramp else min(1.0, (step - self.warmup) / self.ramp)
        if self.until is None or step < self.until:
            return risen
        return min(risen, max(0.0, 1 - (step - self.until) / self.fade)) if self.fade else 0.0


@dataclass(frozen=True, kw_only=True)
class WeightConfig(WeightKeys):
    """parts: weighters whose weights multiply."""

    parts: tuple[WeightPart, ...]

    @property
    def name(self) -> str:
        return " and ".join(part.name for part in self.parts)

    def slots(self) -> dict[str, WeightPart]:
        """Parts by the name that their state and their keys go by: weight, weight[1], weight[2], ..."""
        return {f"weight[{i}]" if i else "weight": part for i, part in enumerate(self.parts)}


@dataclass(frozen=True, kw_only=True)
class OrderConfig(OrderKeys):
    """An order, and the scores that it goes by."""

    name: str
    component: Order
    schedule: Schedule

    @property
    def requests(self) -> frozenset[SignalRequest]:
        """The signal that is the score; none where the data gives it, or there is none."""
        found: dict[str | None, SignalRequest] = {"loss": Loss(), "length": Tokens()}
        return frozenset({found[self.by]}) if self.by in found else frozenset()

    @property
    def given(self) -> bool:
        """Whether scores are those of stored rows."""
        return self.by in ("column", "file")


# Keys that are new, with the value that earlier versions went by.
_BEFORE = {"serving_order": "rows", "adam_step": "optimizer", "gradient_precision": "run"}


@dataclass(frozen=True, kw_only=True)
class DataflexConfig(BlockKeys):
    """The `dataflex` block. compat: what differs where it was written in the flat keys of dataflex 1.1.0."""

    select: SelectConfig | None = None
    mix: MixConfig | None = None
    weight: WeightConfig | None = None
    order: OrderConfig | None = None
    domains: DomainsKeys = DATA_SETS
    offline: OfflineConfig | None = None
    compat: Compatibility = AS_THE_BLOCK

    @property
    def plans_data(self) -> bool:
        """Whether the order of rows is ours (a selector, a mixer or an order) or LLaMA-Factory's."""
        return self.select is not None or self.mix is not None or self.order is not None

    @property
    def splits(self) -> bool:
        """Whether domains are something else than the data sets."""
        return self.domains != DATA_SETS

    @property
    def streams(self) -> bool:
        """Whether the data is streamed instead of indexed."""
        return self.mix is not None and self.mix.stream_block is not None

    @property
    def components(self) -> dict[str, Component]:
        weights = self.weight.slots() if self.weight is not None else {}
        slots = {"select": self.select, "mix": self.mix, **weights, "order": self.order}
        return {slot: spec.component for slot, spec in slots.items() if spec is not None}

    def slots(self, family: str) -> list[str]:
        """The names in `components` of a family (select, mix, weight or order)."""
        return [slot for slot in self.components if slot.partition("[")[0] == family]

    def needs(self, signal: str) -> bool:
        return any(signal in self.signals(slot) for slot in self.components)

    @property
    def reads_held_out(self) -> bool:
        return any(r.aim == "held out" for slot in self.components for r in self.requests(slot))

    @property
    def routes_held_out(self) -> bool:
        """Whether the routing of domains is measured on the rows of `mix.eval_dataset`."""
        named = self.mix is not None and bool(self.mix.eval_dataset)
        return named and any(r.aim == "held out if named" for r in self.requests("mix"))

    def signals(self, slot: str) -> list[str]:
        """Names of the signals that the component of a slot takes."""
        return sorted(r.name for r in self.requests(slot))

    @property
    def target(self) -> tuple[str, tuple[str, ...]]:
        """The key that names the data sets that selectors and weighters aim at, and these; eval_dataset, where none is named."""
        for slot, spec in (("select", self.select), ("weight", self.weight)):
            if spec is not None and spec.target_dataset:
                return f"dataflex.{slot}.target_dataset", spec.target_dataset
        return "eval_dataset", ()

    def aiming(self) -> list[str]:
        """Slots whose component needs the rows of a target."""
        offline = self.offline or OfflineConfig()

        def aims(slot: str) -> bool:
            return any(r.aim == "target" and not offline.file_of(r) for r in self.requests(slot))

        return [slot for slot in self.components if slot not in ("mix", "order") and aims(slot)]

    def requests(self, slot: str) -> frozenset[SignalRequest]:
        component = self.components.get(slot)
        if component is None:
            return frozenset()
        if slot == "order" and self.order is not None:
            return self.order.requests
        refined = declared(component.refines) if isinstance(component, Selector) else frozenset[Request]()
        return as_requests(declared(component.needs) | refined)

    def to_json(self) -> dict[str, Any]:
        """Plain data: what config.yaml shows and what a resumed run is compared with."""
        out: dict[str, Any] = {
            "total_steps": self.total_steps,
            "epoch_rounding": self.compat.epoch_rounding,
            "freeze_gate": self.freeze_gate,
            "early_stopping_min_delta": self.compat.early_stopping_min_delta,
        }
        if self.splits:
            out["domains"] = self.domains.record()
        weights = self.weight.slots() if self.weight is not None else {}
        for slot, spec in {"select": self.select, "mix": self.mix, **weights, "order": self.order}.items():
            if spec is None:
                continue
            record: dict[str, Any] = {"name": spec.name}
            if not isinstance(spec, WeightPart):
                record |= {k: v for k, v in asdict(spec.schedule).items() if k != "at"}  # follows from the component
            record |= _fields(spec, "name", "component", "schedule", "by_name")
            record |= asdict(spec.component)
            for key, only in _BEFORE.items():  # earlier versions, whose checkpoints are gone on from, had no other
                if record.get(key) == only:
                    del record[key]
            out[slot] = {k: _plain(v) for k, v in record.items()}
        if self.weight is not None:
            out["weight"] |= {k: _plain(v) for k, v in _fields(self.weight, "parts").items()}
        return out


def _fields(spec: Any, *but: str) -> dict[str, Any]:
    return {f.name: getattr(spec, f.name) for f in fields(spec) if f.name not in but}


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(EvaluateKeys):
    """By what a finished model is judged. path: how the user spelled the block."""

    choice: tuple[ChoiceKeys, ...] = ()
    generate: tuple[GenerateKeys, ...] = ()
    path: str

    def data_sets(self) -> dict[str, tuple[str, ...]]:
        """The data sets of each metric, by the key that names them."""
        named = {
            "heldout": self.heldout,
            "choice": tuple(entry.dataset for entry in self.choice if entry.dataset),
            "generate": tuple(entry.dataset for entry in self.generate if entry.dataset),
        }
        return {f"{self.path}.{key}": names for key, names in named.items() if names}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """dataflex: None for a plain LLaMA-Factory run. llamafactory: every other key. notices: lines to show once. evaluate: the
    block `dataflex.evaluate`; None without it."""

    dataflex: DataflexConfig | None
    llamafactory: dict[str, Any]
    notices: tuple[str, ...] = field(default=())
    evaluate: EvaluateConfig | None = None
