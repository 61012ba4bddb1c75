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
from dataflex.components.requests import Request
from dataflex.errors import ConfigError, closest

if TYPE_CHECKING:
    import torch

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
