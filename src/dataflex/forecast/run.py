"""The forecast of a run: its length, what acts when, what is measured, and how often domains are seen."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any

from dataflex.components.signal_request import SignalRequest
from dataflex.config.domains import settled
from dataflex.config.heldout import held_out_of
from dataflex.config.schema import MixConfig, OrderConfig, RunConfig, Schedule, SelectConfig
from dataflex.forecast.data import DataSet, Sizes
from dataflex.forecast.domains import DomainRows, count_domains
from dataflex.forecast.passes import BOTH, Acts, Pass
from dataflex.values import number, truth, words


class Forecast:
    """The forecast for a configuration.

    Args:
        given: The `dataflex` block as the user wrote it.
        ranks: Of the run; None: as the environment says, one without a launcher.
    """

    def __init__(self, config: RunConfig, given: Mapping[str, Any], ranks: int | None = None) -> None:
        self.config, self.given, self.keys = config, given, config.llamafactory
        self.ranks = ranks if ranks is not None else _ranks()
        self.sizes = Sizes(self.keys)

    # -- data ----------------------------------------------------------------------------------------------------------

    @cached_property
    def data(self) -> tuple[DataSet, ...]:
        return tuple(self.sizes.of(name) for name in words(self.keys.get("dataset")))

    @cached_property
    def domains(self) -> DomainRows | None:
        """Rows by domain, where rows name them and they can be counted. ConfigError where the data does not fit."""
        block = self.config.dataflex
        if block is None or not block.splits:
            return None
        return count_domains(block.domains, self.sizes, tuple(words(self.keys.get("dataset"))))

    @cached_property
    def target(self) -> tuple[DataSet, ...]:
        block = self.config.dataflex
        if block is None or not block.aiming():
            return ()
        names = block.target[1] or tuple(words(self.keys.get("eval_dataset")))
        return tuple(self.sizes.of(name) for name in names)

    @cached_property
    def held_out(self) -> tuple[str, ...]:
        """Data sets that are evaluated, or "val_size"."""
        if number(self.keys.get("val_size") or 0, "val_size") > 0:
            return ("val_size",)
        block, named = self.config.dataflex, list[str]()
        found = held_out_of(block, self.keys) if block is not None else None
        if found is not None:
            named = [name for name in (*found.names, *found.divided) if name]
        return tuple(dict.fromkeys([*words(self.keys.get("eval_dataset")), *named]))

    @property
    def evaluates(self) -> bool:
        """Whether held-out rows are evaluated, in training or after it, by LLaMA-Factory or by a mixer."""
        block, strategy = self.config.dataflex, str(self.keys.get("eval_strategy") or "no").lower()
        by_mixer = block is not None and block.mix is not None and block.mix.eval_dataset is not None
        return truth(self.keys.get("do_eval"), "do_eval") or strategy not in ("no", "false") or by_mixer

    @property
    def rows(self) -> int | None:
        """Rows to train on, what `val_size` holds out aside."""
        counts = [found.rows for found in self.data]
        if None in counts or not counts:
            return None
        if self.domains is not None:
            counts = list(self.domains.rows.values())
        total, held = sum(n for n in counts if n is not None), number(self.keys.get("val_size") or 0, "val_size")
        return total - (int(held) if held >= 1 else int(total * held))

    @property
    def row_tokens(self) -> float | None:
        """Of a row on average, over all data sets."""
        known = [(found.rows, found.tokens) for found in self.data if found.rows and found.tokens is not None]
        rows = sum(n for n, _ in known)
        return sum(n * t for n, t in known) / rows if rows and len(known) == len(self.data) else None

    @property
    def packs(self) -> bool:
        packing = self.keys.get("packing")
        stage = str(self.keys.get("stage", "sft"))
        asked = truth(packing, "packing") if packing is not None else stage == "pt"
        return asked or truth(self.keys.get("neat_packing"), "neat_packing")

    # -- length ---------------------------------------------------------------------------------------------------------

    @property
    def global_batch(self) -> int:
        each = int(self.keys.get("per_device_train_batch_size") or 8)
        return each * int(self.keys.get("gradient_accumulation_steps") or 1) * self.ranks

    @cached_property
    def steps(self) -> int | None:
        """Optimizer steps; None: epochs of data whose rows are not known."""
        asked = int(self.keys.get("max_steps") or 0)
        if asked > 0:
            return asked
        samples = self.samples
        if samples is None:
            return None
        return ceil(float(self.keys.get("num_train_epochs") or 3.0) * ceil(samples / self.global_batch))

    @property
    def samples(self) -> int | None:
        """What rows become: themselves, or packs of cutoff_len tokens."""
        if not self.packs or self.rows is None:
            return self.rows
        return None if self.row_tokens is None else ceil(self.rows * self.row_tokens / self.sizes.cutoff)

    @property
    def sample_tokens(self) -> float | None:
        return float(self.sizes.cutoff) if self.packs else self.row_tokens

    @property
    def tokens(self) -> float | None:
        """That are trained on."""
        if self.steps is None or self.sample_tokens is None:
            return None
        return self.steps * self.global_batch * self.sample_tokens

    # -- what acts ------------------------------------------------------------------------------------------------------

    @cached_property
    def timeline(self) -> tuple[Acts, ...]:
        block, found = self.config.dataflex, []
        if block is None or self.steps is None:
            return ()
        for slot, spec in (("select", block.select), ("mix", block.mix), ("order", block.order)):
            if spec is not None:
                found.append(self._planned(slot, spec, self.steps))
        for slot, part in (block.weight.slots() if block.weight is not None else {}).items():
            end = self.steps if part.until is None else min(self.steps, part.until + part.fade)
            times = max(0, end - part.warmup)
            said = f"weighs steps {part.warmup} to {end}" if times else "never acts"
            found.append(Acts(slot, part.name, (part.warmup,) if times else (), times, said))
        return tuple(found)

    @property
    def schedules(self) -> dict[str, Schedule]:
        """Of select, mix and order, where they are asked for."""
        block, found = self.config.dataflex, dict[str, Schedule]()
        if block is not None and block.select is not None:
            found["select"] = block.select.schedule
        if block is not None and block.mix is not None:
            found["mix"] = block.mix.settled(self.global_batch)
        if block is not None and block.order is not None:
            found["order"] = block.order.schedule
        return found

    def _planned(self, slot: str, spec: SelectConfig | MixConfig | OrderConfig, steps: int) -> Acts:
        schedule = self.schedules[slot]
        if schedule.interval is None and schedule.at is None:
            return Acts(slot, spec.name, (), 0, "holds from the start")
        times, first = schedule.turns(steps), _first(schedule, steps)
        if not times:
            return Acts(slot, spec.name, (), 0, "never acts")
        said = "before step " + ", ".join(map(str, first[:3]))
        if times > 3:
            said += f" and {times - 3} more" + (f", every {schedule.interval}" if schedule.at is None else "")
        return Acts(slot, spec.name, first, times, said)

    @cached_property
    def passes(self) -> tuple[Pass, ...]:
        """What is measured beside the training itself; none of what training sums up anyway."""
        block, found = self.config.dataflex, []
        if block is None:
            return ()
        times = {act.slot: act.times for act in self.timeline}
        if block.domains.by == "cluster":
            rows = self.rows
            tokens = None if rows is None or self.row_tokens is None else rows * self.row_tokens
            found.append(
                Pass("domains", f"{block.domains.k} clusters", "embedding", "text encoder", 1, rows, tokens, None)
            )
        for slot in block.components:
            family = slot.partition("[")[0]
            for request in sorted(block.requests(slot), key=lambda r: r.name):
                work, _ = request.work_for(family)
                if work == "none" or request.free or (family == "weight" and request.per in ("token", "row")):
                    continue
                rows, tokens = self._measured(request)
                once = work == "text encoder" or "reference" in request.other_models()
                count = min(1, times.get(slot, 0)) if once else times.get(slot, 0)
                disk = None if rows is None or not request.kept else rows * self._floats(request) * 4
                found.append(Pass(slot, self._name_of(slot), request.name, work, count, rows, tokens, disk))
        return tuple(found)

    def _name_of(self, slot: str) -> str:
        return next((act.name for act in self.timeline if act.slot == slot), slot)

    def _measured(self, request: SignalRequest) -> tuple[int | None, float | None]:
        """Rows and tokens of one pass of a signal."""
        if request.per == "target row":
            return _total(self.target)
        if request.per == "held-out row" or request.aim == "held out":
            return _total(tuple(self.sizes.of(name) for name in self.held_out if name != "val_size"))
        each = getattr(request, "rows_per_domain", None)
        if request.per == "domain" and isinstance(each, int):
            rows = sum(min(each, found.rows or each) for found in self.data)
            return rows, None if self.sample_tokens is None else rows * self.sample_tokens
        samples, tokens = self.samples, self.sample_tokens
        own = (samples, None if samples is None or tokens is None else samples * tokens)
        if request.aim != "target":
            return own
        extra = _total(self.target)
        together = [a + b if a is not None and b is not None else a for a, b in zip(own, extra, strict=True)]
        return own[0], together[1]

    def _floats(self, request: SignalRequest) -> int:
        """Numbers that a row is kept as."""
        if request.hidden_states() is not None:
            return _hidden_size(str(self.keys.get("model_name_or_path") or "")) or 1
        return int(getattr(request, "proj_dim", None) or 1) if request.name == "features" else 1

    @property
    def measuring(self) -> float | None:
        """Work of measuring over that of training, both in tokens of a forward pass."""
        efforts = [each.effort for each in self.passes]
        if self.tokens is None or None in efforts:
            return None
        return sum(e for e in efforts if e is not None) / (self.tokens * BOTH)

    # -- exposure -------------------------------------------------------------------------------------------------------

    @cached_property
    def epochs(self) -> dict[str, float | None]:
        """How often each domain is served whole, by the mixture that the run begins with. With a selector alone rows are drawn
        from what it takes, and this says nothing. Data sets stand for domains that cannot be counted."""
        block = self.config.dataflex
        counted = self.domains.rows if self.domains is not None else {found.name: found.rows for found in self.data}
        unknown = block is not None and block.mix is not None and block.splits and self.domains is None
        if unknown or self.steps is None or not all(counted.values()):
            return dict.fromkeys(counted, None)
        if block is not None and self.domains is not None:  # what waited for their names
            block = settled(block, tuple(counted))
        served, sizes = self.steps * self.global_batch, [float(rows or 0) for rows in counted.values()]
        shares = [size / sum(sizes) for size in sizes]
        if block is not None and block.mix is not None:
            mix = block.mix
            if mix.proportions is not None:
                shares = list(mix.proportions)
            elif mix.initial == "uniform":
                shares = [1 / len(sizes)] * len(sizes)
        return {name: served * share / size for name, share, size in zip(counted, shares, sizes, strict=True)}

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """Parameters of the components that the file leaves at their defaults, by their full names."""
        block = self.config.dataflex
        out: dict[str, Any] = {}
        for slot, component in (block.components if block is not None else {}).items():
            given = self.given.get(slot.partition("[")[0]) or {}
            known = given if isinstance(given, Mapping) else {}
            values = {name: value for name, value in asdict(component).items() if name not in known}  # type: ignore[call-overload]
            out |= {f"dataflex.{slot}.{name}": value for name, value in values.items()}
        return out

    def to_json(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "global_batch": self.global_batch,
            "ranks": self.ranks,
            "tokens": self.tokens,
            "data": [asdict(found) for found in self.data],
            "domains": None if self.domains is None else asdict(self.domains),
            "target": [asdict(found) for found in self.target],
            "held_out": list(self.held_out),
            "timeline": [asdict(act) for act in self.timeline],
            "passes": [{**asdict(each), "effort": each.effort} for each in self.passes],
            "measuring": self.measuring,
            "epochs": self.epochs,
            "defaults": self.defaults,
        }


def _total(data: tuple[DataSet, ...]) -> tuple[int | None, float | None]:
    """Rows and tokens of some data sets together; None where one of them is not known."""
    if any(found.rows is None for found in data):
        return None, None
    rows = sum(found.rows or 0 for found in data)
    if any(found.tokens is None for found in data):
        return rows, None
    return rows, sum((found.rows or 0) * (found.tokens or 0.0) for found in data)


def _first(schedule: Schedule, steps: int) -> tuple[int, ...]:
    found: list[int] = []
    step = schedule.next_due(0)
    while step is not None and step < steps and len(found) < 5:
        found.append(step)
        step = schedule.next_due(step + 1)
    return tuple(found)


def _ranks() -> int:
    """As a launcher says, or as LLaMA-Factory would start them here."""
    if os.environ.get("WORLD_SIZE"):
        return int(os.environ["WORLD_SIZE"])
    return int(os.environ.get("NPROC_PER_NODE") or 1) * int(os.environ.get("NNODES") or 1)


def _hidden_size(model: str) -> int | None:
    try:
        found = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
        return int(found["hidden_size"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
