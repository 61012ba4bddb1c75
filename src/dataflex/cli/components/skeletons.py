"""What `new` writes. `<name>`, `<cls>`, `<package>` and `<kind>` are filled in."""

from __future__ import annotations

PROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "<package>"
version = "0.1.0"
description = "The <kind> <name> for dataflex."
requires-python = ">=3.11"
dependencies = ["dataflex"]

# The name can be used in the dataflex block once this package is installed.
[project.entry-points."dataflex.<kind>s"]
<name> = "<package>.<name>:<cls>"

[tool.setuptools.packages.find]
where = ["src"]

[tool.pytest.ini_options]
testpaths = ["tests"]
pythonpath = ["src"]
"""

_SELECTOR = '''\
"""One sentence about the selector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dataflex import Request, Selection, SelectionContext, Selector, State


@dataclass(frozen=True, kw_only=True)
class <cls>(Selector):
    """Rows with the highest losses, but for the share at the very top.

    That is where broken rows are. Write here what it does, with its formula, and the paper where there is one.
    """

    skip: float = 0.01
    """Share of the rows that is left out at the top."""

    def check(self) -> None:
        self.require("skip", 0 <= self.skip < 1, "in [0, 1)")

    def needs(self) -> frozenset[Request]:
        return frozenset({"loss"})

    def select(
        self, state: State, signals: Mapping[str, np.ndarray], context: SelectionContext
    ) -> tuple[Selection, State]:
        losses = signals["loss"]  # float64 [context.rows]
        first = min(int(self.skip * context.rows), context.rows - context.budget)
        order = np.argsort(-losses, kind="stable")
        return Selection(order[first : first + context.budget], losses), state
'''

_SELECTOR_TEST = """\
from __future__ import annotations

import numpy as np
from <package>.<name> import <cls>

from dataflex import SelectionContext


def test_the_top_is_left_out_and_the_next_rows_are_taken() -> None:
    context = SelectionContext(
        budget=3, rows=10, step=0, update=0, updates=None, domain=None, rng=np.random.default_rng(0)
    )
    selection, _ = <cls>(skip=0.2).select({}, {"loss": np.arange(10.0)}, context)
    assert selection.chosen.tolist() == [7, 6, 5]
"""

_MIXER = '''\
"""One sentence about the mixer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dataflex import Decision, DomainInfo, Mixer, Observations, Request, State


@dataclass(frozen=True, kw_only=True)
class <cls>(Mixer):
    """More of the domains with a high training loss.

    With l_d the mean training loss of domain d since the last update, p_d is proportional to exp(l_d / temperature). A domain
    without a row keeps its loss. Write here what it does, with its formula, and the paper where there is one.
    """

    temperature: float = 1.0
    """The larger, the nearer the proportions are to each other."""

    def check(self) -> None:
        self.require("temperature", self.temperature > 0, "positive")

    def needs(self) -> frozenset[Request]:
        return frozenset({"train_loss"})

    def init(self, domains: DomainInfo) -> State:
        return {"losses": np.zeros(len(domains))}

    def update(self, state: State, observations: Observations) -> tuple[Decision, State]:
        losses, seen = np.array(state["losses"]), observations.rows > 0
        losses[seen] = observations.loss[seen] / observations.rows[seen]
        weights = np.exp((losses - losses.max()) / self.temperature)
        return Decision(weights / weights.sum()), {"losses": losses}
'''

_MIXER_TEST = """\
from __future__ import annotations

import numpy as np
from <package>.<name> import <cls>

from dataflex import DomainInfo, Observations


def test_the_domain_with_the_higher_loss_is_drawn_more() -> None:
    half = np.array([0.5, 0.5])
    mixer = <cls>(temperature=1.0)
    state = mixer.init(DomainInfo(names=("code", "docs"), sizes=np.array([60, 40]), proportions=half))
    rows, loss = np.array([10.0, 10.0]), np.array([30.0, 20.0])
    seen = Observations(
        step=10,
        update=1,
        proportions=half,
        rows=rows,
        loss=loss,
        tokens=rows,
        token_loss=loss,
        signals={},
        rng=np.random.default_rng(0),
    )
    decision, _ = mixer.update(state, seen)
    share = 1 / (1 + np.exp(-1.0))  # mean losses of 3 and 2
    np.testing.assert_allclose(decision.proportions, [share, 1 - share])
"""

_WEIGHTER = '''\
"""One sentence about the weighter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dataflex import State, WeightContext, Weighter

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class <cls>(Weighter):
    """Rows far above the usual loss pull no harder than a row at a cap.

    w_i = min(1, cap / l_i), with cap = factor x the mean loss of the comparison batch. Write here what it does, with its
    formula, and the paper where there is one.
    """

    factor: float = 2.0
    """The cap, as a multiple of the mean loss."""

    def check(self) -> None:
        self.require("factor", self.factor > 0, "positive")

    def weights(self, state: State, losses: torch.Tensor, context: WeightContext) -> torch.Tensor:
        cap = self.factor * context.reference.mean()
        return (cap / losses.clamp_min(1e-6)).clamp_max(1.0)
'''

_WEIGHTER_TEST = """\
from __future__ import annotations

import torch
from <package>.<name> import <cls>

from dataflex import WeightContext


def test_no_weighted_loss_is_above_the_cap() -> None:
    losses = torch.tensor([1.0, 2.0, 9.0])
    rows = torch.arange(3)
    context = WeightContext(reference=losses, ids=rows, domains=torch.zeros_like(rows), step=0)
    weights = <cls>(factor=1.5).weights({}, losses, context)
    torch.testing.assert_close(weights * losses, torch.tensor([1.0, 2.0, 6.0]))  # 1.5 x the mean of 4
"""

_ORDER = '''\
"""One sentence about the order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dataflex import Order


@dataclass(frozen=True, kw_only=True)
class <cls>(Order):
    """By their scores, from both ends of them to the middle.

    Position t serves rank t / 2, or from the other end. Write here what it does, with its formula, and the paper where there is
    one.
    """

    low_first: bool = True
    """Whether the first row is that of the lowest rank."""

    def ranks(self, rows: int, shuffled: Callable[[int, int], np.ndarray]) -> np.ndarray:
        positions = np.arange(rows)
        from_below = positions % 2 == (0 if self.low_first else 1)
        return np.where(from_below, positions // 2, rows - 1 - positions // 2)
'''

_ORDER_TEST = """\
from __future__ import annotations

import numpy as np
from <package>.<name> import <cls>


def test_the_ends_come_first() -> None:
    ranks = <cls>().ranks(5, lambda count, number: np.arange(count))
    assert ranks.tolist() == [0, 4, 1, 3, 2]
"""

COMPONENTS = {"selector": _SELECTOR, "mixer": _MIXER, "weighter": _WEIGHTER, "order": _ORDER}
TESTS = {"selector": _SELECTOR_TEST, "mixer": _MIXER_TEST, "weighter": _WEIGHTER_TEST, "order": _ORDER_TEST}
