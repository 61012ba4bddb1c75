"""Weights of rows, or of tokens: the comparison batch, normalisation, and what is reported."""

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
from dataflex.data.rows import ScatteredDomains
from dataflex.distributed.collectives import gather_rows, sum_over_ranks
from dataflex.errors import DataflexError
from dataflex.plan.plan import Domains
from dataflex.weighting.units import LossEntries, joined

ComponentStates = Mapping[str, dict[str, Any]]
"""States of weighters, by slot."""


@dataclass(frozen=True, eq=False)
class _Means:
    """The divisors of the weights in one step."""

    comparison: LossEntries
    """The comparison batch that the means were taken over."""
    step: int
    """The step that they belong to."""
    entries: LossEntries
    """The entries of the comparison batch that count."""
    by_slot: Mapping[str, torch.Tensor]
    """The mean weight of each weighter."""
    product: torch.Tensor | None
    """The mean of the product of several weighters; None for one."""


class Weighing:
    """The weighters of one level (rows or tokens), whose weights multiply.

    A weight is divided by its mean over the *comparison batch*: the rows (or tokens) of the global batch, or with
    accumulation of the step before. The product of several weights is divided by its own mean there. So weights have mean
    one over the comparison batch, whatever weighters return.

    Attributes:
        parts: The weighters, by slot.
        equal_counts: Whether every rank has as many entries in every micro-batch. Then ranks need not exchange the counts.
        rounding: eps of the forward pass.
        comparison: The comparison batch of all ranks; None before the first one.
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
        self.comparison: LossEntries | None = None
        self._collected: list[LossEntries] = []
        self._means: _Means | None = None
        self._statistics = self._no_statistics()
        codes = domains.codes if isinstance(domains, ScatteredDomains) else None
        self._codes = None if codes is None else torch.as_tensor(codes, device=device).long()
        self._offsets = torch.as_tensor(domains.offsets, device=device)

    def _domains_of(self, ids: torch.Tensor) -> torch.Tensor:
        """The domain of each id, int64[n]."""
        return self._codes[ids] if self._codes is not None else torch.searchsorted(self._offsets, ids, right=True) - 1

    def requests(self) -> frozenset[SignalRequest]:
        """Signals of the rows trained on."""
        return frozenset(r for part in self.parts.values() for r in self._row_requests(part))

    @staticmethod
    def _row_requests(part: WeightPart) -> frozenset[SignalRequest]:
        """The requests of one weighter, without those about its target."""
        return frozenset(r for r in as_requests(declared(part.component.needs)) if r.per != "target row")

    # -- the comparison batch ----------------------------------------------------------------------------------------

    def compare_with(self, entries: LossEntries) -> None:
        """Make the entries of all ranks the comparison batch."""
        self.comparison = entries.gathered(self.equal_counts)

    def collect(self, entries: LossEntries) -> None:
        """Keep a micro-batch for the next comparison batch."""
        self._collected.append(entries)

    def compare_with_collected(self) -> bool:
        """Make the collected micro-batches the comparison batch; whether there were any."""
        if not self._collected:
            return False
        self.compare_with(joined(self._collected))
        self._collected = []
        return True

    def update_states(self, states: dict[str, dict[str, Any]], step: int) -> None:
        """Call `update` of the weighters that have one."""
        for slot, part in self.parts.items():
            if type(part.component).update is Weighter.update or self.comparison is None or step < part.warmup:
                continue
            comparison = self.comparison.countable()
            states[slot] = part.component.update(states[slot], self._context(part, comparison, comparison, step))
            self._means = None

    # -- weights -----------------------------------------------------------------------------------------------------

    def weigh(
        self,
        entries: LossEntries,
        counting: torch.Tensor,
        states: ComponentStates,
        step: int,
        in_comparison: bool = True,
    ) -> torch.Tensor | None:
        """Weights of a micro-batch, float32 [n], with mean one over the comparison batch; None if all weigh one.

        Args:
            counting: bool [n], the entries that may count. All others weigh zero.
            in_comparison: Whether the comparison batch holds the entries.
        """
        acting = {slot: part for slot, part in self.parts.items() if part.strength(step) > 0}
        if not acting or self.comparison is None:
            return None
        counting = counting & entries.finite()
        # Means belong to one comparison batch and one step.
        if self._means is None or self._means.comparison is not self.comparison or self._means.step != step:
            countable = self.comparison.countable()
            if not len(countable):
                return None
            self._means = self._means_over(self.comparison, countable, acting, states, step)
        means = self._means
        # A weighter sees finite values only. The weights of entries that do not count are dropped below.
        filled = entries.mapped(lambda v: torch.where(_broadcast(counting, v), v, torch.zeros_like(v)))
        losses = torch.where(counting, entries.losses, means.entries.losses.mean())
        filled = LossEntries(losses, entries.ids.clamp_min(0), filled.signals)
        # Each weighter by its own mean, then the product by its mean.
        product = torch.ones_like(losses)
        for slot, part in acting.items():
            returned = self._returned(part, filled, means.entries, states[slot], step)
            normalised = divided(returned, means.by_slot[slot], in_comparison)
            product = product * with_strength(normalised, part.strength(step))
        if means.product is not None:
            product = divided(product, means.product, in_comparison)
        weights = torch.where(counting, product, 0.0)
        self._record(weights, counting, entries.ids >= 0)
        return weights

    def _means_over(
        self,
        comparison: LossEntries,
        countable: LossEntries,
        acting: Mapping[str, WeightPart],
        states: ComponentStates,
        step: int,
    ) -> _Means:
        """countable: the entries of the comparison batch that count."""
        means: dict[str, torch.Tensor] = {}
        product = torch.ones_like(countable.losses)
        for slot, part in acting.items():
            returned = self._returned(part, countable, countable, states[slot], step)
            check_values(returned, part.name)
            means[slot] = returned.mean()
            product = product * with_strength(divided(returned, means[slot]), part.strength(step))
        return _Means(comparison, step, countable, means, product.mean() if len(acting) > 1 else None)

    def _returned(
        self, part: WeightPart, entries: LossEntries, comparison: LossEntries, state: dict[str, Any], step: int
    ) -> torch.Tensor:
        """What a weighter returns, float32 [n]."""
        returned = part.component.weights(state, entries.losses, self._context(part, entries, comparison, step))
        return checked_shape(returned, entries, part.name)

    def _context(self, part: WeightPart, entries: LossEntries, comparison: LossEntries, step: int) -> WeightContext:
        wanted = self._row_requests(part)
        return WeightContext(
            reference=comparison.losses,
            ids=entries.ids,
            domains=self._domains_of(entries.ids),
            step=step,
            names=self.domains.names,
            signals={r.name: entries.signals[r] for r in wanted},
            reference_signals={r.name: comparison.signals[r] for r in wanted},
            rounding=self.rounding,
        )

    # -- what is reported and saved ----------------------------------------------------------------------------------

    def _no_statistics(self) -> torch.Tensor:
        """float32 [7]: min, max, sum, sum of squares, entries that count, those of weight zero, entries that do not count."""
        return torch.tensor([torch.inf, -torch.inf, 0.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float32, device=self.device)

    def _record(self, weights: torch.Tensor, counting: torch.Tensor, present: torch.Tensor) -> None:
        if not len(weights):
            return
        s, w = self._statistics, weights.float()
        s[0] = torch.minimum(s[0], torch.where(counting, w, torch.inf).min())
        s[1] = torch.maximum(s[1], torch.where(counting, w, -torch.inf).max())
        zeros = (counting & (w == 0)).sum()
        s[2:] += torch.stack([w.sum(), w.square().sum(), counting.sum(), zeros, (present & ~counting).sum()]).float()

    def scalars(self) -> dict[str, float]:
        """Statistics since the last call, over all ranks."""
        low, high = -_max_over_ranks(-self._statistics[0]), _max_over_ranks(self._statistics[1])
        total, squares, rows, zeros, left_out = sum_over_ranks(self._statistics[2:]).tolist()
        self._statistics = self._no_statistics()
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
        """The comparison batch, as arrays."""
        if self.comparison is None:
            return {}
        signals = {name: self.comparison.signals[r] for name, r in self._saved_names().items()}
        arrays = {"losses": self.comparison.losses, "ids": self.comparison.ids, **signals}
        return {name: values.cpu().numpy() for name, values in arrays.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if not state:
            return

        def read(name: str) -> torch.Tensor:
            return torch.as_tensor(np.asarray(state[name]), device=self.device)

        signals = {r: read(name) for name, r in self._saved_names().items()}
        self.comparison = LossEntries(read("losses"), read("ids"), signals)


def divided(values: torch.Tensor, mean: torch.Tensor, in_comparison: bool = True) -> torch.Tensor:
    """values / mean.

    A mean of zero means that all values of the comparison batch are zero. They stay zero. Values outside it have nothing to
    be compared with, and become one.
    """
    ratios = values / torch.where(mean > 0, mean, 1.0)
    return ratios if in_comparison else torch.where(mean > 0, ratios, 1.0)


def with_strength(weights: torch.Tensor, strength: float) -> torch.Tensor:
    """1 + strength (w - 1): weights with mean one, moved towards one."""
    return weights if strength == 1 else 1 + strength * (weights - 1)


def checked_shape(weights: Any, entries: LossEntries, name: str) -> torch.Tensor:
    """As float32; DataflexError unless there is one weight for each loss."""
    if not torch.is_tensor(weights) or weights.shape != entries.losses.shape:
        shape = list(weights.shape) if torch.is_tensor(weights) else type(weights).__name__
        raise DataflexError(f"weight: {name} returned {shape} for {len(entries)} losses; one weight each was expected")
    return weights.to(entries.losses.dtype)


def check_values(weights: torch.Tensor, name: str) -> None:
    """DataflexError unless all are finite and non-negative. Waits for the device."""
    if not bool((torch.isfinite(weights) & (weights >= 0)).all()):
        raise DataflexError(f"weight: {name} returned weights that are negative or not finite")


def _broadcast(mask: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The mask [n] as [n, 1, ...], to match values [n, ...]."""
    return mask.reshape(-1, *[1] * (values.ndim - 1))


def _max_over_ranks(value: torch.Tensor) -> float:
    return float(gather_rows(value.reshape(1)).max())
