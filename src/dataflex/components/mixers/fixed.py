"""Proportions that follow from the sizes of the domains and stay as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dataflex.components.contexts import Decision, DomainInfo, Observations, State
from dataflex.components.contracts import Mixer
from dataflex.components.paper import Paper
from dataflex.errors import DataflexError


@dataclass(frozen=True, kw_only=True)
class FixedMixer(Mixer):
    """Base of mixers that decide once, in `initial`."""

    fixed: ClassVar[bool] = True

    def update(self, state: State, observations: Observations) -> tuple[Decision, State]:
        raise DataflexError("fixed proportions are not updated")


@dataclass(frozen=True, kw_only=True)
class StaticMixer(FixedMixer):
    """The proportions that the run starts with: `proportions` of the mix block, or by `initial` where none are given.

    Departures:

    Nowhere known, compared with the proportions it was given. It has no authors.
    """


@dataclass(frozen=True, kw_only=True)
class UniformMixer(FixedMixer):
    """Equal proportions: p_d = 1 / k.

    Departures:

    Nowhere known, compared with the formula. It has no authors.
    """

    def initial(self, domains: DomainInfo) -> np.ndarray:
        return np.full(len(domains), 1 / len(domains))


@dataclass(frozen=True, kw_only=True)
class TemperatureMixer(FixedMixer):
    """Proportions between those of the sizes and equal ones.

    p_d is proportional to n_d^(1 / temperature), n_d the size of the domain. 5 is the temperature of the paper.

    Departures:

    - The paper counts sentences; here n_d are rows or tokens, as `unit` says.
    """

    temperature: float = 5.0
    """1 is `proportional`; large values come near `uniform`."""

    paper: ClassVar[Paper | None] = Paper(
        authors="Arivazhagan et al.",
        title="Massively Multilingual Neural Machine Translation in the Wild: Findings and Challenges",
        arxiv="1907.05019",
    )
    needs_sizes: ClassVar[bool] = True

    def check(self) -> None:
        self.require("temperature", 0 < self.temperature < np.inf, "positive and finite")

    def initial(self, domains: DomainInfo) -> np.ndarray:
        logs = np.log(np.asarray(domains.sizes, dtype=np.float64)) / self.temperature
        p = np.exp(logs - logs.max())
        return p / p.sum()


@dataclass(frozen=True, kw_only=True)
class ProportionalMixer(FixedMixer):
    """Proportions by size, as plain training on all rows draws them: p_d = n_d / N.

    Departures:

    Nowhere known, compared with the formula. It has no authors.
    """

    needs_sizes: ClassVar[bool] = True

    def initial(self, domains: DomainInfo) -> np.ndarray:
        sizes = np.asarray(domains.sizes, dtype=np.float64)
        return sizes / sizes.sum()
