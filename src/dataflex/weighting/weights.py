"""The weighters of a run: the entries of a micro-batch, the comparison batch, and targets."""

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
from dataflex.weighting.units import LossEntries, Tokens
from dataflex.weighting.weighing import Weighing

LevelEntries = tuple[dict[str, LossEntries], torch.Tensor | None]
"""The entries of a micro-batch, by level. For sequences of packed rows also the entry of every token, int64 [B, T]."""


class Weights:
    """Weights of rows and tokens, with mean one over the comparison batch (see `Weighing`).

    Without accumulation, the comparison batch is the global batch: its losses are gathered between forward and backward.
    With accumulation and scope `running`, it is the global batch of the step before; the first step is unweighted. With
    scope `global`, it is the global batch as a survey finds it: a forward pass over the micro-batches of the step before its
    first backward.

    Attributes:
        packed: Whether rows hold several sequences. Each sequence is weighed by itself.
        rows: Rows of a micro-batch.
        component_states: States of the weighters, by slot.
        last_target_step: By slot, the step at which a weighter last got its target.
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
        self.component_states: dict[str, dict[str, Any]] = {}
        self.last_target_step: dict[str, int] = {}
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
        self._surveyed = False  # whether the comparison batch is that of this step

    def init(self) -> None:
        self.component_states = {slot: part.component.init() for slot, part in self.spec.slots().items()}

    @property
    def hidden_layers(self) -> frozenset[int]:
        """The layers whose hidden states a weighter reads."""
        found = [r.hidden_states() for level in self._levels.values() for r in level.requests()]
        return frozenset(layer_and_pooling[0] for layer_and_pooling in found if layer_and_pooling is not None)

    # -- one optimizer step ------------------------------------------------------------------------------------------

    def wants_survey(self, micro: MicroBatch, step: int) -> bool:
        acts = any(part.strength(step) > 0 for part in self.spec.parts)
        return acts and not micro.alone and self.spec.scope == "global"

    def compare_with_survey(self, survey: list[LevelEntries]) -> None:
        """Make the micro-batches of this step the comparison batch."""
        self._surveyed = True
        for level, weighing in self._levels.items():
            for entries, _ in survey:
                weighing.collect(entries[level])
            weighing.compare_with_collected()

    def entries_of(self, micro: MicroBatch, losses: torch.Tensor, tokens: Tokens | None) -> LevelEntries:
        """The entries of each level.

        Args:
            losses: Losses of the rows, [B].
            tokens: None in training stages of pairs.
        """
        ids, entry = micro.ids, None
        out = {}
        for level, weighing in self._levels.items():
            requests = weighing.requests()
            if tokens is None:
                given = {r: micro.weights.to(losses) for r in requests if micro.weights is not None}
                out[level] = LossEntries(losses.float(), ids.to(losses.device), given)
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
        """Weights of rows [B] or of tokens [B, T]; None leaves all at one. trainable: rows with a trainable token, bool [B]."""
        entries, entry = self.entries_of(micro, losses, tokens)
        self._count = micro.count
        out: torch.Tensor | None = None
        for level, weighing in self._levels.items():
            own = entries[level]
            if micro.alone:
                weighing.compare_with(own)
            elif self.spec.scope == "running":
                weighing.collect(own)
            counting = torch.ones(len(own), dtype=torch.bool, device=own.losses.device)
            of_rows = level == "row" and entry is None
            if of_rows:
                counting[: len(trainable)] = trainable
            in_comparison = micro.alone or self.spec.scope == "global"
            weights = weighing.weigh(own, counting, self.component_states, step, in_comparison)
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
            if weighing.compare_with_collected() or self._count == 1 or self._surveyed:
                weighing.update_states(self.component_states, step)
        self._count, self._surveyed = 0, False

    # -- targets -----------------------------------------------------------------------------------------------------

    def due_targets(self, step: int) -> Iterator[tuple[str, WeightPart, SignalRequest]]:
        """Slot, weighter and request of each target that is due for measurement."""
        for slot, part in self.spec.slots().items():
            interval, last = declared(part.component.target_interval), self.last_target_step.get(slot)
            if interval is None or part.strength(step) == 0 or (last is not None and step - last < interval):
                continue
            (request,) = [r for r in as_requests(declared(part.component.needs)) if r.per == "target row"]
            yield slot, part, request

    def aim(self, slot: str, target: np.ndarray, step: int) -> None:
        self.component_states[slot] = self.spec.slots()[slot].component.aim(self.component_states[slot], target)
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
    """Weights as [B, T]: of trainable tokens, or of sequences. entry: the sequence of each token."""
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
