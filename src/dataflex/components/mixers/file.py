"""A mixture that a file says, which may be edited while training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dataflex.components.contexts import Decision, DomainInfo, Observations, State
from dataflex.components.contracts import Mixer
from dataflex.components.tools.proportions import in_order, read_proportions
from dataflex.errors import ConfigError
from dataflex.notices import say


@dataclass(frozen=True, kw_only=True)
class FileMixer(Mixer):
    """The proportions that a file says, which may be edited while the run trains.

    The file is read again at every update. Content that cannot be used while training is said in one line, and the
    proportions stay.

    Departures:

    Nowhere known, compared with what the file says. It has no authors.
    """

    path: str
    """A JSON or YAML file with a proportion for each name in `dataset`, adding up to 1."""

    example: ClassVar[Mapping[str, Any]] = {"path": "mixture.json"}

    def check(self) -> None:
        read_proportions("path", self.path)

    def check_domains(self, names: tuple[str, ...]) -> None:
        self._read(names)

    def _read(self, names: tuple[str, ...]) -> np.ndarray:
        return np.asarray(in_order("path", read_proportions("path", self.path), names))

    def initial(self, domains: DomainInfo) -> np.ndarray:
        return self._read(domains.names)

    def init(self, domains: DomainInfo) -> State:
        return {"complaint": ""}

    def update(self, state: State, observations: Observations) -> tuple[Decision | None, State]:
        try:
            found = self._read(observations.names)
        except ConfigError as error:
            if str(error) != state["complaint"]:
                say(f"the mixture stays as it is: dataflex.mix.{error}")
            return None, {"complaint": str(error)}
        unchanged = np.array_equal(found, observations.asked)
        return (None if unchanged else Decision(found)), {"complaint": ""}
