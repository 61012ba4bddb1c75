"""A mixture that changes by a plan made beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from dataflex.components.contexts import Decision, DomainInfo, Observations, OwnPlan, State
from dataflex.components.contracts import Mixer
from dataflex.components.tools.proportions import checked
from dataflex.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ScheduleMixer(Mixer):
    """A mixture that changes by a plan made beforehand.

    At optimizer step s_i the proportions become p_i, the points being (s_i, p_i) with s_0 = 0. With `interpolate` they move
    linearly between two points, p(s) = p_i + (p_{i+1} - p_i) (s - s_i) / (s_{i+1} - s_i). After the last point they stay.

    Departures:

    Nowhere known, compared with the points it was given. It has no authors.
    """

    points: tuple[tuple[int, tuple[float, ...]], ...]
    """Pairs of an optimizer step, ascending from 0, and the proportions from it on, in the order of `dataset`."""
    interpolate: bool = False
    """Move in a line between two points, in updates every `interval` steps."""

    example: ClassVar[Mapping[str, Any]] = {"points": [[0, [0.5, 0.3, 0.2]], [1000, [0.2, 0.3, 0.5]]]}

    def check(self) -> None:
        self.require("points", bool(self.points) and self.points[0][0] == 0, "a list of points that begins at step 0")
        ascending = all(a < b for (a, _), (b, _) in pairwise(self.points))
        self.require("points", ascending, "in ascending order of steps")
        for step, values in self.points:
            checked(f"points at step {step}", values)

    def check_domains(self, names: tuple[str, ...]) -> None:
        for step, values in self.points:
            if len(values) != len(names):
                raise ConfigError(
                    f"points: {len(values)} proportions at step {step} for {len(names)} data sets ({', '.join(names)})"
                )

    def own_plan(self) -> OwnPlan:
        return OwnPlan(steps=None if self.interpolate else tuple(step for step, _ in self.points[1:]))

    def initial(self, domains: DomainInfo) -> np.ndarray:
        return np.asarray(self.points[0][1])

    def update(self, state: State, observations: Observations) -> tuple[Decision | None, State]:
        now = self.at(observations.step)
        return (None if np.array_equal(now, observations.asked) else Decision(now)), state

    def at(self, step: int) -> np.ndarray:
        """Proportions from a step on, float[k]."""
        steps, values = [s for s, _ in self.points], np.array([p for _, p in self.points])
        last = int(np.searchsorted(steps, step, side="right")) - 1
        if not self.interpolate or last == len(steps) - 1:
            return values[last]
        share = (step - steps[last]) / (steps[last + 1] - steps[last])
        return values[last] + (values[last + 1] - values[last]) * share
