"""What becomes of a mixture when a domain has been served as often as its rows may be."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from dataflex.config.schema import MixConfig
from dataflex.deciding.serving import Serving
from dataflex.notices import Once
from dataflex.plan.quota import quantise
from dataflex.plan.stages import Stage
from dataflex.record.recorder import Recorder

EXHAUSTED = "exhausted"


class Limits:
    """Ends domains with `max_repetition`.

    The plan knows in advance when a domain serves its last row. A new stage is opened there before rows are read that
    far.
    """

    def __init__(self, spec: MixConfig, serving: Serving, recorder: Recorder) -> None:
        self.spec, self.serving, self.recorder = spec, serving, recorder
        self._once = Once()
        self._nothing_left = False

    @cached_property
    def most_rows(self) -> list[int | None]:
        return self.spec.most_rows(self.serving.domains.names, self.serving.domains.sizes)

    def turn_to(self, step: int, proportions: np.ndarray) -> Stage | None:
        """Open a stage with these proportions before `step`; None if they are in force already, or nothing of them can be."""
        plan, position = self.serving.plan, self.serving.position(step)
        last = plan.stages[-1]
        shares = self._in_force(proportions, position)
        if shares is None:
            self._nothing_left = True
            self._once.say(f"the run ends after step {step}: every domain with a share of the mixture is exhausted")
        if shares is None or tuple(quantise(shares.tolist())) == last.parts:
            return None
        return plan.append(position, last.pools, shares.tolist())

    def servable(self, step: int, horizon: int) -> int:
        """Up to which step, at most `horizon`, global batches can be filled."""
        if self._nothing_left:
            return step
        if self.spec.max_repetition is None:
            return horizon
        plan, begin, stop = self.serving.plan, self.serving.position(step), self.serving.position(horizon)
        if self.spec.when_exhausted == "repeat":
            self._say_repeated(begin, stop)
            return horizon
        if self.spec.when_exhausted == "renormalise":
            end = self._cut(stop)
        else:
            found = plan.first_reach([None if m is None else m + 1 for m in self.most_rows], stop)
            end = None if found is None else (found[0] - 1, found[1])
        if end is None or begin < end[0] == stop:  # what begins at `stop` is not decided yet
            return horizon
        last = self.serving.step_at(end[0])
        self._once.say(
            f"the run ends after step {last}: {self._spent(end[1])}, and the next global batch cannot be filled"
        )
        return last

    def _in_force(self, proportions: np.ndarray, position: int) -> np.ndarray | None:
        """Proportions over the domains that are left at a position; None if none of them has a share."""
        if self.spec.max_repetition is None or self.spec.when_exhausted != "renormalise":
            return proportions
        served = self.serving.plan.served(position)
        left = np.array([m is None or n < m for n, m in zip(served, self.most_rows, strict=True)])
        shares = np.where(left, proportions, 0.0)
        return None if shares.sum() <= 0 else proportions if left.all() else shares / shares.sum()

    def _cut(self, stop: int) -> tuple[int, int] | None:
        """Cut the latest stage wherever a domain serves its last row by `stop`. The position and domain with which nothing is
        left, or None."""
        plan, names = self.serving.plan, self.serving.domains.names
        while (found := plan.first_reach(self.most_rows, stop)) is not None:
            position, d = found
            last = plan.stages[-1]
            shares = self._in_force(np.asarray(last.proportions), position)
            if shares is None:
                return found
            stage = plan.append(position, last.pools, shares.tolist())
            decided = {"domain": names[d], "proportions": dict(zip(names, stage.proportions, strict=True))}
            step, source = self.serving.step_at(position), {"rows": self.most_rows[d]}
            self.recorder.decision(step, position, EXHAUSTED, decided, source, 0.0, stage)
        return None

    def _say_repeated(self, begin: int, stop: int) -> None:
        before, after = self.serving.plan.served(begin), self.serving.plan.served(stop)
        for d, most in enumerate(self.most_rows):
            if most is not None and before[d] <= most < after[d]:
                self._once.say(f"{self._spent(d)}; it goes on all the same (when_exhausted: repeat)")

    def _spent(self, d: int) -> str:
        name, most = self.serving.domains.names[d], self.most_rows[d]
        return f"{name!r} has been served as often as max_repetition allows ({most} rows)"
