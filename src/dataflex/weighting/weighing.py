"""Weights of rows, or of tokens: what they refer to, how they are normalised, and what is reported of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from dataflex.components.contracts import WeightContext, Weighter, declared
from dataflex.components.requests import SignalRequest, as_requests
from dataflex.config.schema import WeightPart
from dataflex.distributed.collectives import gather_rows, sum_over_ranks
from dataflex.errors import DataflexError
from dataflex.plan.plan import Domains
from dataflex.weighting.units import Sample, joined

States = Mapping[str, dict[str, Any]]


class Weighing:
    """The weighters of one level, whose weights multiply.

    parts: by slot. even: every rank has as many rows in every micro-batch, so that nothing must be said about their number.
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
        even: bool,
        rounding: float = 0.0,
    ) -> None:
        self.parts, self.domains, self.device, self.prefix, self.even = parts, domains, device, prefix, even
        self.rounding = rounding
        self.reference: Sample | None = None
        self._seen: list[Sample] = []
        # For which reference and step, what counts of it, and the means found there.
        self._means: tuple[Sample, int, Sample, list[torch.Tensor]] | None = None
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
        self.reference = sample.gathered(self.even)

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
        self, sample: Sample, counted: torch.Tensor, states: States, step: int, within: bool = True
    ) -> torch.Tensor | None:
        """float32 [n], zero where not counted, bool [n]; None if all weigh one. within: the sample is part of the reference."""
        strengths = {slot: part.strength(step) for slot, part in self.parts.items()}
        acting = {slot: part for slot, part in self.parts.items() if strengths[slot] > 0}
        if not acting or self.reference is None:
            return None
        counted = counted & sample.finite()
        if self._means is None or self._means[0] is not self.reference or self._means[1] != step:
            valid = self.reference.valid()
            if not len(valid):
                return None
            found: list[torch.Tensor] = []
            self._product(valid, valid, acting, strengths, states, step, found)
            self._means = (self.reference, step, valid, found)
        _, _, valid, means = self._means
        # A weighter is given finite values only; what it makes of the rows that do not count is thrown away.
        safe = sample.mapped(lambda v: torch.where(_aligned(counted, v), v, torch.zeros_like(v)))
        safe = Sample(torch.where(counted, sample.losses, valid.losses.mean()), sample.ids.clamp_min(0), safe.signals)
        product = self._product(safe, valid, acting, strengths, states, step, list(means), known=True, within=within)
        weights = torch.where(counted, product, 0.0)
        self._record(weights, counted, sample.ids >= 0)
        return weights

    def _product(
        self,
        sample: Sample,
        reference: Sample,
        acting: Mapping[str, WeightPart],
        strengths: Mapping[str, float],
        states: States,
        step: int,
        means: list[torch.Tensor],
        known: bool = False,
        within: bool = True,
    ) -> torch.Tensor:
        """The normalised product; the means are taken from the list (known), or found on this sample and put there."""

        def divided(values: torch.Tensor) -> torch.Tensor:
            if not known:
                means.append(values.mean())
            mean = means.pop(0) if known else means[-1]
            ratios = values / torch.where(mean > 0, mean, 1.0)
            # All zero in the reference: zero they stay there, and elsewhere there is nothing to compare with.
            return ratios if within else torch.where(mean > 0, ratios, 1.0)

        product = torch.ones_like(sample.losses)
        for slot, part in acting.items():
            found = part.component.weights(states[slot], sample.losses, self._context(part, sample, reference, step))
            own = divided(checked(found, sample, part.name, values_too=not known))
            product = product * (own if strengths[slot] == 1 else 1 + strengths[slot] * (own - 1))
        return divided(product) if len(acting) > 1 else product

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

    def _places(self) -> dict[str, SignalRequest]:
        """The signals by the names they are saved under."""
        return {f"{i}.{r.name}": r for i, r in enumerate(sorted(self.requests(), key=str))}

    def saved(self) -> dict[str, np.ndarray]:
        """The reference, as arrays."""
        if self.reference is None:
            return {}
        signals = {name: self.reference.signals[r] for name, r in self._places().items()}
        arrays = {"losses": self.reference.losses, "ids": self.reference.ids, **signals}
        return {f"{self.prefix}/{name}": values.cpu().numpy() for name, values in arrays.items()}

    def restore(self, extra: Mapping[str, Any]) -> None:
        if f"{self.prefix}/losses" not in extra:
            return

        def read(name: str) -> torch.Tensor:
            return torch.as_tensor(np.asarray(extra[f"{self.prefix}/{name}"]), device=self.device)

        self.reference = Sample(read("losses"), read("ids"), {r: read(name) for name, r in self._places().items()})


def checked(weights: Any, sample: Sample, name: str, values_too: bool) -> torch.Tensor:
    """As float32; DataflexError if these are no weights of the sample. values_too: look at them, which waits for the device."""
    if not torch.is_tensor(weights) or weights.shape != sample.losses.shape:
        shape = list(weights.shape) if torch.is_tensor(weights) else type(weights).__name__
        raise DataflexError(f"weight: {name} returned {shape} for {len(sample)} losses; one weight each was expected")
    weights = weights.to(sample.losses.dtype)
    if values_too and not bool((torch.isfinite(weights) & (weights >= 0)).all()):
        raise DataflexError(f"weight: {name} returned weights that are negative or not finite")
    return weights


def _aligned(counted: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return counted.reshape(-1, *[1] * (values.ndim - 1))


def _max_over_ranks(value: torch.Tensor) -> float:
    return float(gather_rows(value.reshape(1)).max())
