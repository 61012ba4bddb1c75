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
    """What a selector may know besides its signals.

    budget: rows to return; rows: number of candidates; step: optimizer steps done; update: updates made before this one;
    updates: those of the whole run; domain: name of the domain the candidates
    come from, None when all domains are one pool; rng: generator of this decision alone. ids: sample ids of the
    candidates. learning_rate: that of the next step. shortlist: positions of the candidates that the signals
    in `refines` were measured on. target_sizes: rows of each data set of the target. raw_rows: for a selector that
    `reads_raw_rows`, the number that each candidate has among the rows of the data sets as they are stored, laid end to end.
    """

    budget: int
    rows: int
    step: int
    update: int
    updates: int
    domain: str | None
    rng: np.random.Generator
    ids: Int64[np.ndarray, " rows"] | None = None
    learning_rate: float = 0.0
    shortlist: Int64[np.ndarray, " shortlist"] | None = None
    target_sizes: tuple[int, ...] = ()
    raw_rows: Int64[np.ndarray, " rows"] | None = None


@dataclass(frozen=True)
class Selection:
    """chosen: positions among the candidates; scores: of the candidates (None: no score).

    remarks: what a user should know of this decision, a line each under a name of its own. The ledger has all of them; the
    run's log shows the first under each name."""

    chosen: Int[np.ndarray, " budget"]
    scores: Float[np.ndarray, " rows"] | None = None
    remarks: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DomainInfo:
    """The domains a mixer decides over: names, sizes and the proportions the run starts with.

    sizes: in the unit of the proportions, rows or tokens. The size of a stream is the `num_samples` of its entry in
    dataset_info.json, and 0 where it has none."""

    names: tuple[str, ...]
    sizes: Shaped[np.ndarray, " domains"]
    proportions: Float[np.ndarray, " domains"]

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Observations:
    """Sums over all samples and all ranks since the last update.

    rows: samples trained on; loss: sum of their losses (token mean of each row); tokens: trainable tokens; token_loss:
    sum of their cross entropies; excess: sum over tokens of max(cross entropy - that of the reference, 0), zero unless an
    ExcessLoss is asked for.

    proportions: what was in force in the interval; asked: what the mixer last asked for, which is the same while no domain
    is exhausted. realized: the share of each domain in what was served in the interval. It is in the unit of the
    proportions: where these are shares of tokens, prompts count in both. So a mixer compares `realized`, and never `rows`
    or `tokens`, with `proportions`. It adds up to one, or is zero where nothing was served.

    signals: per-domain arrays of the other signals asked for, one array per domain. learning_rate: that of the next step.
    rng: generator of this decision alone. position: samples served since training began. names: of the domains.
    """

    step: int
    update: int
    proportions: Float64[np.ndarray, " domains"]
    rows: Float64[np.ndarray, " domains"]
    loss: Float64[np.ndarray, " domains"]
    tokens: Float64[np.ndarray, " domains"]
    token_loss: Float64[np.ndarray, " domains"]
    signals: Mapping[str, list[np.ndarray]]
    rng: np.random.Generator
    excess: Float64[np.ndarray, " domains"] = field(default_factory=lambda: np.zeros(0))
    realized: Float64[np.ndarray, " domains"] = field(default_factory=lambda: np.zeros(0))
    learning_rate: float = 0.0
    asked: Float64[np.ndarray, " domains"] = field(default_factory=lambda: np.zeros(0))
    position: int = 0
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decision:
    """proportions: non-negative, adding up to one. loss_weights: non-negative, of which only ratios matter: what the mean loss
    over the tokens of each domain counts in the loss of a step until the next decision, however often the domain is drawn
    and however long its rows are; None: every token counts alike. remarks: as those of a Selection."""

    proportions: Float[np.ndarray, " domains"]
    loss_weights: Float[np.ndarray, " domains"] | None = None
    remarks: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class OwnPlan:
    """When a mixer acts that brings a plan of its own, and what the plan is made for.

    steps: the optimizer steps before which it acts, ascending.
    positions: the same in samples served; each must be a whole number of global batches.
    unit: what its proportions are shares of (samples, tokens); None: of either.
    limited: whether it makes sense only with `max_repetition`.
    """

    steps: tuple[int, ...] | None = None
    positions: tuple[int, ...] | None = None
    unit: str | None = None
    limited: bool = False

    @property
    def timed(self) -> bool:
        """Whether the plan says when it acts; otherwise it acts by interval."""
        return self.steps is not None or self.positions is not None


@dataclass(frozen=True)
class WeightContext:
    """What a weighter may know besides the losses.

    reference: losses of the rows (or tokens) that define the statistics: those of the whole global batch, or with
    accumulation and `scope: running` those of the global batch before. ids, domains: the row that each loss belongs to,
    and its domain, on the device of the losses. step: optimizer steps done. names: of the domains. signals: a tensor
    [losses, ...] for each name in `needs` that is measured on the rows trained on. reference_signals: [references, ...],
    the same of the reference. rounding: eps of the coarsest type that the forward pass computes in (2^-7 for bf16, 2^-10
    for fp16).
    """

    reference: Float32[Tensor, " references"]
    ids: Int64[Tensor, " losses"]
    domains: Int64[Tensor, " losses"]
    step: int
    names: tuple[str, ...] = ()
    signals: Mapping[str, torch.Tensor] = field(default_factory=dict)
    reference_signals: Mapping[str, torch.Tensor] = field(default_factory=dict)
    rounding: float = 0.0
