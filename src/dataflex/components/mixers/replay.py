"""The mixture of a finished run, as a schedule."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dataflex.components.contexts import Decision, DomainInfo, Observations, OwnPlan, State
from dataflex.components.contracts import Mixer
from dataflex.components.tools.proportions import in_order
from dataflex.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ReplayMixer(Mixer):
    """The mixture of a finished run, as a schedule.

    It serves the proportions that the ledger of that run records, from the positions on at which they came into force. With
    the seed and the data of that run it serves the same rows. Domains are matched by name. What exhausted domains leave to
    the others is not replayed but happens again, by `max_repetition`.

    Departures:

    Nowhere known, compared with the run that it takes up. It has no authors.
    """

    ledger: str
    """`<output_dir>/dataflex/ledger.jsonl` of a run with a mixer."""

    example: ClassVar[Mapping[str, Any]] = {"ledger": "ledger.jsonl"}

    def files(self) -> Mapping[str, str]:
        return {"ledger": self.ledger}

    def check(self) -> None:
        if not self._changes:
            raise ConfigError(f"ledger: {self.ledger} records no mixture")

    @cached_property
    def _lines(self) -> list[dict[str, Any]]:
        """The decisions that opened a stage."""
        try:
            text = Path(self.ledger).read_text(encoding="utf-8")
            lines = [json.loads(line) for line in text.splitlines()]
            return [line for line in lines if "stage" in line]
        except FileNotFoundError:
            raise ConfigError(f"ledger must be a file, and {self.ledger} does not exist") from None
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"ledger: {self.ledger} is not the ledger of a run: {error}") from None

    @cached_property
    def _changes(self) -> list[tuple[int, dict[str, float]]]:
        """(position, proportions by name), each unlike the one before."""
        out: list[tuple[int, dict[str, float]]] = []
        try:
            named = (line["decided"].get("proportions") for line in self._lines)
            names = next((list(found) for found in named if found), [])
            for line in self._lines:
                if line["component"] == "exhausted" or not names:
                    continue
                stage = line["stage"]
                proportions = dict(zip(names, stage["proportions"], strict=True))
                if not out or proportions != out[-1][1]:
                    out.append((int(stage["start"]), proportions))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"ledger: {self.ledger} is not the ledger of a run with a mixer: {error!r}") from None
        if out and out[0][0] != 0:
            raise ConfigError(f"ledger: {self.ledger} begins at position {out[0][0]} instead of 0")
        return out

    def own_plan(self) -> OwnPlan:
        return OwnPlan(
            positions=tuple(position for position, _ in self._changes[1:]),
            unit=str(self._lines[0]["stage"].get("unit", "samples")),
            limited=any(line["component"] == "exhausted" for line in self._lines),
        )

    def check_domains(self, names: tuple[str, ...]) -> None:
        for _, proportions in self._changes:
            in_order("ledger", proportions, names)

    def initial(self, domains: DomainInfo) -> np.ndarray:
        return np.asarray(in_order("ledger", self._changes[0][1], domains.names))

    def update(self, state: State, observations: Observations) -> tuple[Decision | None, State]:
        now = [p for position, p in self._changes if position <= observations.position][-1]
        found = np.asarray(in_order("ledger", now, observations.names))
        return (None if np.array_equal(found, observations.asked) else Decision(found)), state
