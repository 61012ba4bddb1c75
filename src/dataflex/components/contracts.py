"""What a component is: a frozen configuration, a pure update, a serialisable state.

A component is a frozen dataclass whose fields are its parameters; the defaults are the paper's. It asks for *signals* by
name and returns a decision. It never touches a model, a process group or a trainer.

States are flat dictionaries of str -> int, float, str, bool, None or numpy array; they are saved as they are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import numpy as np

from dataflex.components.requests import Request
from dataflex.errors import ConfigError, closest

if TYPE_CHECKING:
    import torch

State = dict[str, Any]
T = TypeVar("T")

# Values of a projected gradient: 64 MiB a row in fp32.
MAX_PROJ_DIM = 1 << 24


def declared(fact: Callable[[], T]) -> T:
    """What a component says of itself: `declared(component.needs)`.

    The contract has a method for each fact that may depend on parameters. Components written for earlier versions have a
    class attribute, a property or a parameter of that name instead; every fact is read here, so both work."""
    return fact() if callable(fact) else fact


@dataclass(frozen=True, kw_only=True)
class Component:
    """Base of every component. Subclasses are frozen dataclasses; check parameters in `check`.

    What is the same for every object of a class is a class attribute. What may depend on parameters is a method, and is
    read through `declared`."""

    retired: ClassVar[Mapping[str, str]] = {}
    """Parameters of dataflex 1.1.0 that are accepted without effect, each with the reason."""

    defaults_of_1_1: ClassVar[Mapping[str, Any]] = {}
    """Defaults of dataflex 1.1.0 where they differ from those of today: they hold in files that are written for it."""

    seed = 0
    """Mixed into the generators (`rng`) of its decisions. A component that draws may make it a parameter: `seed: int = 0`."""

    def needs(self) -> frozenset[Request]:
        """Signals to be measured before each update (see `components.requests`)."""
        return frozenset()

    def default_warmup(self) -> int:
        """Optimizer steps before it first acts, where the configuration does not say."""
        return 0

    def files(self) -> Mapping[str, str]:
        """Files and folders that `check`, `init` or a decision reads, by the parameter that names them, if any are named. What
        is in them is part of what makes the run: a resumed run with other contents is refused, wherever they lie. Leave out
        what may change while the run goes on."""
        return {}

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raise ConfigError (see `require`) for a parameter outside its range."""

    def require(self, parameter: str, holds: bool, expectation: str) -> None:
        if not holds:
            raise ConfigError(f"{parameter} must be {expectation}, got {getattr(self, parameter)!r}")

    def require_choice(self, parameter: str, choices: Iterable[str]) -> None:
        value = getattr(self, parameter)
        if value not in choices:
            raise ConfigError(
                f"{parameter} must be one of {', '.join(choices)}, got {value!r}{closest(str(value), choices)}"
            )

    def require_proj_dim(self) -> None:
        """That `proj_dim` is a length a projection can have (None: no projection)."""
        length = getattr(self, "proj_dim")  # noqa: B009
        self.require("proj_dim", length is None or 1 <= length <= MAX_PROJ_DIM, f"between 1 and {MAX_PROJ_DIM}")


# -- selection -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SelectionContext:
    """What a selector may know besides its signals.

    budget: rows to return; rows: number of candidates; step: optimizer steps done; update: updates made before this one;
    updates: those of the whole run; domain: name of the domain the candidates
    come from, None when all domains are one pool; rng: generator of this decision alone. ids: sample ids of the
    candidates, int64[rows]. learning_rate: that of the next step. shortlist: positions of the candidates that the signals
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
    ids: np.ndarray | None = None
    learning_rate: float = 0.0
    shortlist: np.ndarray | None = None
    target_sizes: tuple[int, ...] = ()
    raw_rows: np.ndarray | None = None


@dataclass(frozen=True)
class Selection:
    """chosen: positions among the candidates, int64[budget]; scores: one per candidate, float[rows] (None: no score).

    remarks: what a user should know of this decision, a line each under a name of its own. The ledger has all of them; the
    run's log shows the first under each name."""

    chosen: np.ndarray
    scores: np.ndarray | None = None
    remarks: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Selector(Component, ABC):
    """Chooses rows. Candidates are the rows of a pool that have a finite value for every signal in `needs`."""

    per_domain: ClassVar[bool] = True
    """Whether it can rank the rows of one domain by themselves, as it must beside a mixer."""

    before_training: ClassVar[bool] = True
    """Whether it makes sense to select once, with no training before."""

    def with_replacement(self) -> bool:
        """Whether `select` may return a row twice (and a budget above the pool's size)."""
        return False

    def refines(self) -> frozenset[Request]:
        """Costly signals, measured on the rows of `shortlist` only."""
        return frozenset()

    def reads_raw_rows(self) -> bool:
        """Whether it goes by the numbers of rows before tokenization, as files made elsewhere do."""
        return False

    def check_rows(self, raw_rows: int) -> None:
        """Raise ConfigError (see `require`) if what it reads does not fit data sets of so many rows in all."""

    def init(self) -> State:
        return {}

    def needs_now(self, state: State) -> frozenset[Request]:
        """What of `needs` this update takes; a part that the state already holds may be left out."""
        return declared(self.needs)

    def shortlist(
        self, state: State, signals: Mapping[str, np.ndarray], context: SelectionContext
    ) -> tuple[np.ndarray, State]:
        """Positions of the candidates, ascending, that `refines` is to be measured on; asked only where there are such."""
        return np.arange(context.rows), state

    @abstractmethod
    def select(
        self, state: State, signals: Mapping[str, np.ndarray], context: SelectionContext
    ) -> tuple[Selection, State]:
        """signals: one float array per name in `needs`, each of length context.rows, aligned with the candidates (those of
        the target: one value per target row), and one per name in `refines`, aligned with context.shortlist, NaN where a row
        has no value."""


# -- mixture -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DomainInfo:
    """The domains a mixer decides over: names, sizes and the proportions the run starts with, each of length k.

    sizes: in the unit of the proportions, rows or tokens. The size of a stream is the `num_samples` of its entry in
    dataset_info.json, and 0 where it has none."""

    names: tuple[str, ...]
    sizes: np.ndarray
    proportions: np.ndarray

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Observations:
    """Sums over all samples and all ranks since the last update, each float64[k].

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
    proportions: np.ndarray
    rows: np.ndarray
    loss: np.ndarray
    tokens: np.ndarray
    token_loss: np.ndarray
    signals: Mapping[str, list[np.ndarray]]
    rng: np.random.Generator
    excess: np.ndarray = field(default_factory=lambda: np.zeros(0))
    realized: np.ndarray = field(default_factory=lambda: np.zeros(0))
    learning_rate: float = 0.0
    asked: np.ndarray = field(default_factory=lambda: np.zeros(0))
    position: int = 0
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decision:
    """proportions: float[k], non-negative, adding up to one. loss_weights: float[k], non-negative, of which only ratios matter:
    what the mean loss over the tokens of each domain counts in the loss of a step until the next decision, however often the
    domain is drawn and however long its rows are; None: every token counts alike. remarks: as those of a Selection."""

    proportions: np.ndarray
    loss_weights: np.ndarray | None = None
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


@dataclass(frozen=True, kw_only=True)
class Mixer(Component, ABC):
    """Sets domain proportions, and what the losses of each domain weigh."""

    fixed: ClassVar[bool] = False
    """Whether the proportions of `initial` hold for the whole run, and `update` is never called."""

    needs_sizes: ClassVar[bool] = False
    """Whether it goes by the sizes of the domains, which must be known then even where data is streamed."""

    default_interval: ClassVar[int | None] = None
    """Optimizer steps between two updates where the configuration names none; None: it must."""

    default_initial: ClassVar[Literal["uniform", "stratified"]] = "uniform"
    """The mixture that the run starts with where the configuration names none: equal shares, or by size."""

    def moves_proportions(self) -> bool:
        """Whether `update` may change the proportions. Where it only weighs losses, rows are read ahead past its updates."""
        return True

    def own_plan(self) -> OwnPlan:
        """When it acts, if not every `interval` steps.

        A mixer written for earlier versions has `steps`, `positions`, `unit` or `needs_limit` instead."""
        before = (getattr(self, name, None) for name in ("steps", "positions", "unit", "needs_limit"))
        steps, positions, unit, limited = before
        return OwnPlan(steps, positions, unit, bool(limited))

    def check_domains(self, names: tuple[str, ...]) -> None:
        """Raise ConfigError (see `require`) for parameters that do not fit data sets of these names."""

    def initial(self, domains: DomainInfo) -> np.ndarray:
        """Proportions before the first update, float[k]; the run's own unless the mixer brings some."""
        return domains.proportions

    def init(self, domains: DomainInfo) -> State:
        return {}

    def initial_loss_weights(self, domains: DomainInfo) -> np.ndarray | None:
        """`Decision.loss_weights` before the first update."""
        return None

    def needs_now(self, state: State) -> frozenset[Request]:
        """What of `needs` the next update takes."""
        return declared(self.needs)

    @abstractmethod
    def update(self, state: State, observations: Observations) -> tuple[Decision | None, State]:
        """None: everything stays as it is, and nothing is recorded."""

    def result(self, state: State) -> np.ndarray | None:
        """Proportions that the finished run recommends for another one, float[k]; None: it was not run for that."""
        return None


# -- reweighting ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WeightContext:
    """What a weighter may know besides the losses.

    reference: losses of the rows (or tokens) that define the statistics, float[m]: those of the whole global batch, or with
    accumulation and `scope: running` those of the global batch before. ids, domains: int64[n], on the device of the
    losses: the row that each belongs to. step: optimizer steps done. names: of the domains. signals: a tensor [n, ...] for
    each name in `needs` that is measured on the rows trained on, reference_signals: [m, ...], the same of the reference.
    rounding: eps of the coarsest type that the forward pass computes in (2^-7 for bf16, 2^-10 for fp16).
    """

    reference: torch.Tensor
    ids: torch.Tensor
    domains: torch.Tensor
    step: int
    names: tuple[str, ...] = ()
    signals: Mapping[str, torch.Tensor] = field(default_factory=dict)
    reference_signals: Mapping[str, torch.Tensor] = field(default_factory=dict)
    rounding: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Weighter(Component, ABC):
    """Weighs rows, or their tokens, by a function of their losses. Only ratios matter: the trainer normalises.

    A row is what LLaMA-Factory makes an example of: a sequence of a packed row, a pair of answers. Beside its losses a
    weighter may ask in `needs` for `embedding`, `reference_loss` and `given_weight`, which come from the forward pass that
    trains or from the data, and for `target_embedding`, measured every `target_interval` steps.
    """

    goes_by_domain: ClassVar[bool] = False
    """Whether it must know the data set of a row, which a run without select or mix does not."""

    def level(self) -> Literal["row", "token"]:
        """What is weighed: rows by their token-mean losses, or every token by its own cross entropy."""
        return "row"

    def target_interval(self) -> int | None:
        """Optimizer steps between two calls of `aim`; None: it has no target."""
        return None

    def check_domains(self, names: tuple[str, ...]) -> None:
        """Raise ConfigError (see `require`) for parameters that do not fit data sets of these names."""

    def init(self) -> State:
        return {}

    @abstractmethod
    def weights(self, state: State, losses: torch.Tensor, context: WeightContext) -> torch.Tensor:
        """losses: float32[n], finite; returns non-negative float32[n]. Must act on each row (or token) by itself, given
        context."""

    def aim(self, state: State, target: np.ndarray) -> State:
        """Take in the target's embeddings, float32 [target rows, hidden], measured just now; called before the first step
        that is weighed, and again every `target_interval` steps."""
        return state

    def update(self, state: State, context: WeightContext) -> State:
        """Called once per optimizer step, with the global batch as `context.reference` (and `reference_signals`)."""
        return state
