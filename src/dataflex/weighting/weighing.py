"""Weights of rows, or of tokens: what they refer to, how they are normalised, and what is reported of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dataflex.components.contexts import WeightContext
from dataflex.components.contracts import Weighter, declared
from dataflex.components.requests import as_requests
from dataflex.components.signal_request import SignalRequest
from dataflex.config.schema import WeightPart
from dataflex.distributed.collectives import gather_rows, sum_over_ranks
from dataflex.errors import DataflexError
from dataflex.plan.plan import Domains
from dataflex.weighting.units import Sample, joined

States = Mapping[str, dict[str, Any]]


@dataclass(frozen=True, eq=False)
class _Means:
    """What weights are divided by in a step."""

    of: Sample
    """The reference they were found on."""
    step: int
    rows: Sample
    """Those of the reference that count."""
    by_slot: Mapping[str, torch.Tensor]
    """The mean of each weighter."""
    product: torch.Tensor | None
    """The mean of the product of several."""


class Weighing:
    """The weighters of one level (rows or tokens), whose weights multiply.

    parts: by slot.
    equal_counts: every rank has as many rows in every micro-batch, so that ranks need not exchange their numbers.
    rounding: eps of the forward pass.
    A weight is divided by its mean over the *reference*, the rows (or tokens) of the global batch, or with accumulation of
    the step before, and the product of several by its mean there once more: whatever weighters return, weights have mean
    one over the reference.
    """

    def __init__(
        self,
        parts: Mapping[str, WeightPart],
        domains: Domains,
        device: torch.device,
        prefix: str,
        equal_counts: bool,
        rounding: float = 0.0,
    ) -> None:
        self.parts, self.domains, self.device, self.prefix = parts, domains, device, prefix
        self.equal_counts, self.rounding = equal_counts, rounding
        self.reference: Sample | None = None
        self._seen: list[Sample] = []
        self._means: _Means | None = None
        self._statistics = self._nothing()
        self._offsets = torch.as_tensor(domains.offsets, device=device)

    def requests(self) -> frozenset[SignalRequest]:
        """What is measured on the rows trained on."""
        return frozenset(r for part in self.parts.values() for r in self._of_rows(part))

    @staticmethod
    def _of_rows(part: WeightPart) -> frozenset[SignalRequest]:
        """What one of them is given beside its target."""
        return frozenset(r for r in as_requests(declared(part.component.needs)) if r.per != "target row")

    # -- the reference -----------------------------------------------------------------------------------------------

    def refer(self, sample: Sample) -> None:
        """Refer to this sample of every rank."""
        self.reference = sample.gathered(self.equal_counts)

    def see(self, sample: Sample) -> None:
        """Keep a micro-batch for the reference of the next step."""
        self._seen.append(sample)

    def close(self) -> bool:
        """The step is over; whether anything was kept of it."""
        if not self._seen:
            return False
        self.refer(joined(self._seen))
        self._seen = []
        return True

    def learn(self, states: dict[str, dict[str, Any]], step: int) -> None:
        """Let the weighters that learn see the step."""
        for slot, part in self.parts.items():
            if type(part.component).update is Weighter.update or self.reference is None or step < part.warmup:
                continue
            reference = self.reference.valid()
            states[slot] = part.component.update(states[slot], self._context(part, reference, reference, step))
            self._means = None

    # -- weights -----------------------------------------------------------------------------------------------------

    def weigh(
        self, sample: Sample, counted: torch.Tensor, states: States, step: int, in_reference: bool = True
    ) -> torch.Tensor | None:
        """float32 [n], zero where not counted, bool [n]; None if all weigh one. in_reference: whether the reference holds the
        sample."""
        acting = {slot: part for slot, part in self.parts.items() if part.strength(step) > 0}
        if not acting or self.reference is None:
            return None
        counted = counted & sample.finite()
        if self._means is None or self._means.of is not self.reference or self._means.step != step:
            rows = self.reference.valid()
            if not len(rows):
                return None
            self._means = self._means_over(self.reference, rows, acting, states, step)
        means = self._means
        # A weighter is given finite values only; what it makes of the rows that do not count is thrown away.
        filled = sample.mapped(lambda v: torch.where(_aligned(counted, v), v, torch.zeros_like(v)))
        losses = torch.where(counted, sample.losses, means.rows.losses.mean())
        filled = Sample(losses, sample.ids.clamp_min(0), filled.signals)
        product = torch.ones_like(losses)
        for slot, part in acting.items():
            found = self._found(part, filled, means.rows, states[slot], step)
            product = product * faded(divided(found, means.by_slot[slot], in_reference), part.strength(step))
        if means.product is not None:
            product = divided(product, means.product, in_reference)
        weights = torch.where(counted, product, 0.0)
        self._record(weights, counted, sample.ids >= 0)
        return weights

    def _means_over(
        self, reference: Sample, rows: Sample, acting: Mapping[str, WeightPart], states: States, step: int
    ) -> _Means:
        """rows: those of the reference that count."""
        means: dict[str, torch.Tensor] = {}
        product = torch.ones_like(rows.losses)
        for slot, part in acting.items():
            found = self._found(part, rows, rows, states[slot], step)
            check_values(found, part.name)
            means[slot] = found.mean()
            product = product * faded(divided(found, means[slot]), part.strength(step))
        return _Means(reference, step, rows, means, product.mean() if len(acting) > 1 else None)

    def _found(
        self, part: WeightPart, sample: Sample, reference: Sample, state: dict[str, Any], step: int
    ) -> torch.Tensor:
        """What a weighter returns, float32 [n]."""
        found = part.component.weights(state, sample.losses, self._context(part, sample, reference, step))
        return checked_shape(found, sample, part.name)

    def _context(self, part: WeightPart, sample: Sample, reference: Sample, step: int) -> WeightContext:
        wanted = self._of_rows(part)
        return WeightContext(
            reference=reference.losses,
            ids=sample.ids,
            domains=torch.searchsorted(self._offsets, sample.ids, right=True) - 1,
            step=step,
            names=self.domains.names,
            signals={r.name: sample.signals[r] for r in wanted},
            reference_signals={r.name: reference.signals[r] for r in wanted},
            rounding=self.rounding,
        )

    # -- what is reported and saved ----------------------------------------------------------------------------------

    def _nothing(self) -> torch.Tensor:
        """min, max, sum, sum of squares, rows that count, those of weight zero, rows that do not count"""
        return torch.tensor([torch.inf, -torch.inf, 0.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float32, device=self.device)

    def _record(self, weights: torch.Tensor, counted: torch.Tensor, present: torch.Tensor) -> None:
        if not len(weights):
            return
        s, w = self._statistics, weights.float()
        s[0] = torch.minimum(s[0], torch.where(counted, w, torch.inf).min())
        s[1] = torch.maximum(s[1], torch.where(counted, w, -torch.inf).max())
        zeros = (counted & (w == 0)).sum()
        s[2:] += torch.stack([w.sum(), w.square().sum(), counted.sum(), zeros, (present & ~counted).sum()]).float()

    def scalars(self) -> dict[str, float]:
        """Since the last call, over all ranks."""
        low, high = -_max_over_ranks(-self._statistics[0]), _max_over_ranks(self._statistics[1])
        total, squares, rows, zeros, left_out = sum_over_ranks(self._statistics[2:]).tolist()
        self._statistics = self._nothing()
        out = {f"{self.prefix}/left_out": left_out} if left_out else {}
        if not rows:
            return out
        return out | {
            f"{self.prefix}/min": low,
            f"{self.prefix}/max": high,
            f"{self.prefix}/effective_share": total**2 / squares / rows if squares else 0.0,
            f"{self.prefix}/zero_share": zeros / rows,
        }

    def _saved_names(self) -> dict[str, SignalRequest]:
        """The signals by the names they are saved under."""
        return {f"{i}.{r.name}": r for i, r in enumerate(sorted(self.requests(), key=str))}

    def state_dict(self) -> dict[str, np.ndarray]:
        """The reference, as arrays."""
        if self.reference is None:
            return {}
        signals = {name: self.reference.signals[r] for name, r in self._saved_names().items()}
        arrays = {"losses": self.reference.losses, "ids": self.reference.ids, **signals}
        return {name: values.cpu().numpy() for name, values in arrays.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if not state:
            return

        def read(name: str) -> torch.Tensor:
            return torch.as_tensor(np.asarray(state[name]), device=self.device)

        self.reference = Sample(read("losses"), read("ids"), {r: read(name) for name, r in self._saved_names().items()})


def divided(values: torch.Tensor, mean: torch.Tensor, in_reference: bool = True) -> torch.Tensor:
    """values / mean. Where the mean is zero, all values of the reference are. They stay zero, and values outside it, which have
    nothing to be compared with, become one."""
    ratios = values / torch.where(mean > 0, mean, 1.0)
    return ratios if in_reference else torch.where(mean > 0, ratios, 1.0)


def faded(weights: torch.Tensor, strength: float) -> torch.Tensor:
    """Weights with mean one, drawn towards one as far as the strength is below one."""
    return weights if strength == 1 else 1 + strength * (weights - 1)


def checked_shape(weights: Any, sample: Sample, name: str) -> torch.Tensor:
    """As float32; DataflexError unless there is one weight for each loss."""
    if not torch.is_tensor(weights) or weights.shape != sample.losses.shape:
        shape = list(weights.shape) if torch.is_tensor(weights) else type(weights).__name__
        raise DataflexError(f"weight: {name} returned {shape} for {len(sample)} losses; one weight each was expected")
    return weights.to(sample.losses.dtype)


def check_values(weights: torch.Tensor, name: str) -> None:
    """DataflexError unless all are finite and non-negative. Waits for the device."""
    if not bool((torch.isfinite(weights) & (weights >= 0)).all()):
        raise DataflexError(f"weight: {name} returned weights that are negative or not finite")


def _aligned(counted: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return counted.reshape(-1, *[1] * (values.ndim - 1))


def _max_over_ranks(value: torch.Tensor) -> float:
    return float(gather_rows(value.reshape(1)).max())
