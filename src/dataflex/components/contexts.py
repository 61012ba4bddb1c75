"""What components are given, and what they give back. The contracts that use them are in `contracts.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, Float32, Float64, Int, Int64, Shaped
    from torch import Tensor

State = dict[str, Any]


@dataclass(frozen=True)
class SelectionContext:
    """What a selector may know besides its signals."""

    budget: int
    """Rows to return."""
    rows: int
    """Number of candidates."""
    step: int
    """Optimizer steps done."""
    update: int
    """Updates made before this one."""
    updates: int
    """Updates of the whole run."""
    domain: str | None
    """The domain of the candidates; None when all domains are one pool."""
    rng: np.random.Generator
    """Generator of this decision alone."""
    ids: Int64[np.ndarray, " rows"] | None = None
    """Sample ids of the candidates."""
    learning_rate: float = 0.0
    """Learning rate of the next step."""
    shortlist: Int64[np.ndarray, " shortlist"] | None = None
    """Indices of the candidates that the signals in `refines` were measured on."""
    target_sizes: tuple[int, ...] = ()
    """Rows of each data set of the target."""
    raw_rows: Int64[np.ndarray, " rows"] | None = None
    """For a selector that `reads_raw_rows`: the number of each candidate among the stored rows of all data sets."""


@dataclass(frozen=True)
class Selection:
    """What a selector returns."""

    chosen: Int[np.ndarray, " budget"]
    """Indices of the chosen candidates."""
    scores: Float[np.ndarray, " rows"] | None = None
    """A score for each candidate; None: no scores."""
    remarks: Mapping[str, str] = field(default_factory=dict)
    """Lines about this decision for the user, each under its own name. The ledger has all of them. The log shows the
    first one of each name."""
    turn: Int[np.ndarray, " budget"] | None = None
    """For each chosen row the turn, from 1, in which it was taken; None: the target takes no turns."""
    chosen_for: Int[np.ndarray, " budget"] | None = None
    """For each chosen row the index of the target row that it was taken for; -1: none."""
    score_from: Int[np.ndarray, " rows"] | None = None
    """For each candidate the index of the target row that its score comes from; -1: none."""
    for_datasets: bool = False
    """Whether `chosen_for` and `score_from` are indices of the target's data sets, not of its rows."""


@dataclass(frozen=True)
class DomainInfo:
    """The domains of a mixer."""

    names: tuple[str, ...]
    """Names of the data sets."""
    sizes: Shaped[np.ndarray, " domains"]
    """Rows, or tokens if proportions are shares of tokens. The size of a stream is `num_samples` in dataset_info.json,
    or 0."""
    proportions: Float[np.ndarray, " domains"]
    """Proportions at the start of the run."""

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Observations:
    """Observations of a mixer since its last update.

    Sums are over all samples and all ranks, one for each domain. Arrays hold a number for each domain, unless stated
    otherwise.
    """

    step: int
    """Optimizer steps done."""
    update: int
    """Updates made before this one."""
    proportions: Float64[np.ndarray, " domains"]
    """Proportions in force in the interval."""
    rows: Float64[np.ndarray, " domains"]
    """Samples trained on."""
    loss: Float64[np.ndarray, " domains"]
    """Sum of their losses (token mean of each row)."""
    tokens: Float64[np.ndarray, " domains"]
    """Trainable tokens."""
    token_loss: Float64[np.ndarray, " domains"]
    """Sum of their cross entropies."""
    signals: Mapping[str, list[np.ndarray]]
    """The other signals asked for, by name: a list with one array per domain."""
    rng: np.random.Generator
    """Generator of this decision alone."""
    excess: Float64[np.ndarray, " domains"] = field(default_factory=lambda: np.zeros(0))
    """Sum over tokens of max(cross entropy - that of the reference model, 0). Zero unless an ExcessLoss is asked for."""
    realized: Float64[np.ndarray, " domains"] = field(default_factory=lambda: np.zeros(0))
    """The share of each domain in what was served in the interval; zeros where nothing was served. Its unit is that of
    the proportions: in tokens, prompts count in both. So compare `realized`, not `rows` or `tokens`, with
    `proportions`."""
    learning_rate: float = 0.0
    """Learning rate of the next step."""
    asked: Float64[np.ndarray, " domains"] = field(default_factory=lambda: np.zeros(0))
    """The proportions that the mixer last asked for. They equal `proportions` unless a domain is exhausted."""
    position: int = 0
    """Samples served since training began."""
    names: tuple[str, ...] = ()
    """Names of the domains."""


@dataclass(frozen=True)
class Decision:
    """What a mixer returns."""

    proportions: Float[np.ndarray, " domains"]
    """Non-negative, adding up to one."""
    loss_weights: Float[np.ndarray, " domains"] | None = None
    """How much the mean loss over the tokens of each domain counts until the next decision. It does not depend on how
    often the domain is drawn, nor on the length of its rows. Only ratios matter. None: all tokens count alike."""
    remarks: Mapping[str, str] = field(default_factory=dict)
    """As those of a Selection."""


@dataclass(frozen=True)
class OwnPlan:
    """The times at which a mixer with a plan of its own acts, and what the plan is made for."""

    steps: tuple[int, ...] | None = None
    """The optimizer steps before which it acts, ascending."""
    positions: tuple[int, ...] | None = None
    """The positions at which it acts, ascending; each a whole number of global batches."""
    unit: str | None = None
    """What its proportions are shares of (samples, tokens); None: either."""
    limited: bool = False
    """Whether it makes sense only with `max_repetition`."""

    @property
    def timed(self) -> bool:
        """Whether the plan says when it acts; otherwise it acts by interval."""
        return self.steps is not None or self.positions is not None


@dataclass(frozen=True)
class WeightContext:
    """What a weighter may know besides the losses."""

    reference: Float32[Tensor, " references"]
    """Losses of the comparison batch: the rows (or tokens) of the global batch, or with accumulation and
    `scope: running` of the global batch before."""
    ids: Int64[Tensor, " losses"]
    """Sample id of each loss, on the device of the losses."""
    domains: Int64[Tensor, " losses"]
    """Domain of each loss, on the same device."""
    step: int
    """Optimizer steps done."""
    names: tuple[str, ...] = ()
    """Names of the domains."""
    signals: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """By name, the signals in `needs` of the rows trained on, [losses, ...] each."""
    reference_signals: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """By name, the same of the comparison batch, [references, ...] each."""
    rounding: float = 0.0
    """eps of the coarsest type that the forward pass computes in (2^-7 for bf16, 2^-10 for fp16)."""
