"""What a component is: a frozen configuration, a pure update, a serialisable state.

A component is a frozen dataclass whose fields are its parameters; the defaults are the paper's. It asks for *signals* by
name and returns a decision. It never touches a model, a process group or a trainer.

States are flat dictionaries of str -> int, float, str, bool, None or numpy array; they are saved as they are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import numpy as np

from dataflex.components.contexts import (
    Decision,
    DomainInfo,
    Observations,
    OwnPlan,
    Selection,
    SelectionContext,
    State,
    WeightContext,
)
from dataflex.components.paper import Paper
from dataflex.components.requests import Request
from dataflex.errors import ConfigError, closest

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, Int
    from torch import Tensor

T = TypeVar("T")

# Values of a projected gradient: 64 MiB a row in fp32.
MAX_PROJ_DIM = 1 << 24


def declared(fact: Callable[[], T]) -> T:
    """A fact that a component states about itself: `declared(component.needs)`.

    A fact that may depend on parameters is a method. Components written for earlier versions have a class attribute, a
    property or a parameter of that name instead. Every fact is read here, so both work.
    """
    return fact() if callable(fact) else fact


@dataclass(frozen=True, kw_only=True)
class Component:
    """Base of every component. Subclasses are frozen dataclasses; check parameters in `check`.

    What is the same for every object of a class is a class attribute. What may depend on parameters is a method, and is
    read through `declared`."""

    paper: ClassVar[Paper | None] = None
    """What its algorithm is from. A docstring tells where it differs, after a line `Departures:`."""

    example: ClassVar[Mapping[str, Any]] = {}
    """Values for its block in an example: parameters without a default, and keys whose usual value does not fit."""

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

    def without_effect(self) -> str | None:
        """Why its decisions change nothing, where its parameters make it so; shown once when a run starts."""
        return None

    def unobserving_updates(self, domains: int) -> int:
        """How many updates, from the first on, answer without regard to what was measured. domains: their number."""
        return 0

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
        """Whether it needs the numbers of stored rows, as files made elsewhere use them."""
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
    ) -> tuple[Int[np.ndarray, " shortlist"], State]:
        """Indices of the candidates, ascending, that `refines` is measured on; asked only if there are any."""
        return np.arange(context.rows), state

    @abstractmethod
    def select(
        self, state: State, signals: Mapping[str, np.ndarray], context: SelectionContext
    ) -> tuple[Selection, State]:
        """The rows to train on, and the next state.

        Args:
            signals: By name, a float array for each signal in `needs`, with a value per candidate (of the target: per
                target row). Signals in `refines` have a value for each of `context.shortlist`, NaN for a row without
                one.
        """


# -- mixture -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Mixer(Component, ABC):
    """Sets domain proportions, and what the losses of each domain weigh."""

    fixed: ClassVar[bool] = False
    """Whether the proportions of `initial` hold for the whole run, and `update` is never called."""

    needs_sizes: ClassVar[bool] = False
    """Whether it needs the sizes of the domains. They must then be known even where data is streamed."""

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

    def initial(self, domains: DomainInfo) -> Float[np.ndarray, " domains"]:
        """Proportions before the first update; the run's own unless the mixer brings some."""
        return domains.proportions

    def init(self, domains: DomainInfo) -> State:
        return {}

    def initial_loss_weights(self, domains: DomainInfo) -> Float[np.ndarray, " domains"] | None:
        """`Decision.loss_weights` before the first update."""
        return None

    def needs_now(self, state: State) -> frozenset[Request]:
        """What of `needs` the next update takes."""
        return declared(self.needs)

    @abstractmethod
    def update(self, state: State, observations: Observations) -> tuple[Decision | None, State]:
        """None: everything stays as it is, and nothing is recorded."""

    def result(self, state: State) -> Float[np.ndarray, " domains"] | None:
        """Proportions that the finished run recommends for another one; None: it was not run for that."""
        return None


# -- order ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Order(Component, ABC):
    """The shape of the scores over an epoch of a pool. What the scores are, the user says (`by`)."""

    unscored: ClassVar[bool] = False
    """Whether the shape is the same whatever the scores are, so that none are needed."""

    def same_as_sorting(self) -> str | None:
        """What makes its shape that of `sorting`, such as `layers: 1`; said once. None: it has a shape of its own."""
        return None

    @abstractmethod
    def ranks(self, rows: int, shuffled: Callable[[int, int], np.ndarray]) -> Int[np.ndarray, " rows"]:
        """The rank that is served at each position, a permutation of range(rows). Rank 0 has the lowest score, or with
        `polarity: higher_earlier` the highest one.

        Args:
            rows: At least 1.
            shuffled: (n, number) -> a random permutation of range(n), another one for each number.
        """


# -- reweighting ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Weighter(Component, ABC):
    """Weighs rows, or their tokens, by a function of their losses. Only ratios matter: the trainer normalises.

    A row is one example of LLaMA-Factory: a sequence of a packed row, or a pair of answers. In `needs` a weighter may
    ask for `embedding`, `reference_loss` and `given_weight`. These come from the forward pass that trains, or from the
    data. It may also ask for `target_embedding`, measured every `target_interval` steps.
    """

    goes_by_domain: ClassVar[bool] = False
    """Whether it must know the data set of a row, which a run with weight alone does not."""

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
    def weights(
        self, state: State, losses: Float32[Tensor, " losses"], context: WeightContext
    ) -> Float32[Tensor, " losses"]:
        """Non-negative weights of rows (or tokens). Each must depend on its own row and the context alone.

        Args:
            losses: Finite losses.
        """

    def aim(self, state: State, target: Float32[np.ndarray, "targets dims"]) -> State:
        """The next state, with what it needs of the target. Called before the first weighed step, then every
        `target_interval` steps.

        Args:
            target: Embeddings of the target's rows; NaN for a row without one.
        """
        return state

    def update(self, state: State, context: WeightContext) -> State:
        """The next state. Called once per optimizer step, with its global batch as `context.reference`."""
        return state
