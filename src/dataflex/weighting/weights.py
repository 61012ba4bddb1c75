"""The weighters of a run: what they weigh in a micro-batch, what weights refer to, and their targets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from dataflex.components.contracts import declared
from dataflex.components.requests import as_requests
from dataflex.components.signal_request import SignalRequest
from dataflex.config.schema import WeightConfig, WeightPart
from dataflex.data.micro_batch import MicroBatch
from dataflex.plan.plan import Domains
from dataflex.weighting.units import Sample, Tokens
from dataflex.weighting.weighing import Weighing

Looked = tuple[dict[str, Sample], torch.Tensor | None]
"""What each level weighs of a micro-batch; and for sequences of packed rows the entry of every token, int64 [B, T]."""


class Weights:
    """Row and token weights with mean one over what they refer to (see `Weighing`).

    Without accumulation that is the global batch: its losses are gathered between forward and backward. With
    accumulation, `running` uses the global batch of the step before (the first step is unweighted), and `global` the losses
    of a survey: a pass over the micro-batches of the step before its first backward.
    packed: rows hold several sequences, each weighed by itself. rows: of a micro-batch. rounding: eps of the forward pass.
    """

    def __init__(
        self,
        spec: WeightConfig,
        domains: Domains,
        device: torch.device,
        *,
        packed: bool,
        rows: int,
        rounding: float,
    ) -> None:
        self.spec, self.packed, self.rows = spec, packed, rows
        self.states: dict[str, dict[str, Any]] = {}
        self.last_target_step: dict[str, int] = {}
        """By slot: the step at which a weighter has last taken in its target."""
        by_level: dict[str, dict[str, WeightPart]] = {}
        for slot, part in spec.slots().items():
            by_level.setdefault(declared(part.component.level), {})[slot] = part
        self._levels = {
            level: Weighing(
                parts,
                domains,
                device,
                prefix="dataflex/weight" if level == "row" else "dataflex/weight/token",
                equal_counts=level == "row" and not packed,
                rounding=rounding,
            )
            for level, parts in by_level.items()
        }
        self._count = 0  # micro-batches of the step that is open
        self._surveyed = False  # whether the reference is that of this step

    def init(self) -> None:
        self.states = {slot: part.component.init() for slot, part in self.spec.slots().items()}

    @property
    def hidden_layers(self) -> frozenset[int]:
        """Those whose states a weighter reads."""
        states = [r.hidden_states() for level in self._levels.values() for r in level.requests()]
        return frozenset(found[0] for found in states if found is not None)

    # -- one optimizer step ------------------------------------------------------------------------------------------

    def wants_survey(self, micro: MicroBatch, step: int) -> bool:
        acts = any(part.strength(step) > 0 for part in self.spec.parts)
        return acts and not micro.alone and self.spec.scope == "global"

    def refer_to(self, survey: list[Looked]) -> None:
        """Refer to the micro-batches of this step."""
        self._surveyed = True
        for level, weighing in self._levels.items():
            for samples, _ in survey:
                weighing.see(samples[level])
            weighing.close()

    def look(self, micro: MicroBatch, losses: torch.Tensor, tokens: Tokens | None) -> Looked:
        """losses: of the rows, [B]. tokens: None in stages of pairs."""
        ids, entry = micro.ids, None
        out = {}
        for level, weighing in self._levels.items():
            requests = weighing.requests()
            if tokens is None:
                given = {r: micro.weights.to(losses) for r in requests if micro.weights is not None}
                out[level] = Sample(losses.float(), ids.to(losses.device), given)
            elif level == "token":
                out[level] = tokens.by_token(ids, requests)
            elif self.packed:
                out[level], entry = tokens.by_sequence(ids, requests)
            else:
                out[level] = tokens.by_row(ids, losses, requests)
            if weighing.equal_counts:
                out[level] = out[level].padded(self.rows)
        return out, entry

    def weigh(
        self,
        micro: MicroBatch,
        losses: torch.Tensor,
        trainable: torch.Tensor,
        tokens: Tokens | None,
        step: int,
    ) -> torch.Tensor | None:
        """Weights [B], or of tokens [B, T], with mean one over those that count; None leaves everything at one."""
        samples, entry = self.look(micro, losses, tokens)
        self._count = micro.count
        out: torch.Tensor | None = None
        for level, weighing in self._levels.items():
            sample = samples[level]
            if micro.alone:
                weighing.refer(sample)
            elif self.spec.scope == "running":
                weighing.see(sample)
            counted = torch.ones(len(sample), dtype=torch.bool, device=sample.losses.device)
            of_rows = level == "row" and entry is None
            if of_rows:
                counted[: len(trainable)] = trainable
            in_reference = micro.alone or self.spec.scope == "global"
            weights = weighing.weigh(sample, counted, self.states, step, in_reference)
            if weights is None:
                continue
            found = (
                weights[: len(losses)] if of_rows else _on_tokens(weights, tokens, entry if level == "row" else None)
            )
            out = found if out is None else times(out, found)
        return out

    def end_step(self, step: int) -> None:
        """Called on all ranks between two optimizer steps; more than once does no harm."""
        if not self._count:
            return
        for weighing in self._levels.values():
            if weighing.close() or self._count == 1 or self._surveyed:
                weighing.learn(self.states, step)
        self._count, self._surveyed = 0, False

    # -- targets -----------------------------------------------------------------------------------------------------

    def due_targets(self, step: int) -> Iterator[tuple[str, WeightPart, SignalRequest]]:
        """Slot, weighter, and the request for its target, of those that are to take it in as the model sees it now."""
        for slot, part in self.spec.slots().items():
            interval, last = declared(part.component.target_interval), self.last_target_step.get(slot)
            if interval is None or part.strength(step) == 0 or (last is not None and step - last < interval):
                continue
            (request,) = [r for r in as_requests(declared(part.component.needs)) if r.per == "target row"]
            yield slot, part, request

    def aim(self, slot: str, target: np.ndarray, step: int) -> None:
        self.states[slot] = self.spec.slots()[slot].component.aim(self.states[slot], target)
        self.last_target_step[slot] = step

    # -- what is saved and reported ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for weighing in self._levels.values():
            out |= {f"{weighing.prefix}/{name}": value for name, value in weighing.state_dict().items()}
        return out | {f"aimed {slot}": step for slot, step in self.last_target_step.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for weighing in self._levels.values():
            start = f"{weighing.prefix}/"
            names = [k for k in state if k.startswith(start) and "/" not in k.removeprefix(start)]
            weighing.load_state_dict({k.removeprefix(start): state[k] for k in names})
        self.last_target_step = {k.removeprefix("aimed "): int(v) for k, v in state.items() if k.startswith("aimed ")}

    def scalars(self) -> dict[str, float]:
        out: dict[str, float] = {}
        for weighing in self._levels.values():
            out |= weighing.scalars()
        return out


def _on_tokens(weights: torch.Tensor, tokens: Tokens | None, entry: torch.Tensor | None) -> torch.Tensor:
    """Weights of the tokens that are learned, or of the sequences that `entry` tells of each token, as [B, T]."""
    assert tokens is not None
    out = torch.zeros_like(tokens.losses)
    out[tokens.active] = weights if entry is None else weights[entry[tokens.active]]
    return out


def times(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The product of weights of rows, [B], or tokens, [B, T]."""
    if a.ndim == b.ndim:
        return a * b
    return a[:, None] * b if a.ndim == 1 else a * b[:, None]


def rounding_of(model: torch.nn.Module, autocast: str) -> float:
    """eps of the coarsest floating type among the parameters and that of autocast (`bf16`, `fp16`, `no`, ...)."""
    types = {
        p.dtype for p in model.parameters() if p.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    }
    types |= {"bf16": {torch.bfloat16}, "fp16": {torch.float16}}.get(autocast, set())
    return max((torch.finfo(t).eps for t in types), default=torch.finfo(torch.float32).eps)
