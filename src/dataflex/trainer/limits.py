"""What becomes of a mixture when a domain has been served as often as its rows may be."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from dataflex.plan.plan import Stage
from dataflex.plan.quota import quantise
from dataflex.trainer.core import DynamicTrainer

EXHAUSTED = "exhausted"


class LimitedTrainer(DynamicTrainer):
    """Mixin of a run with a mixer. When a domain has served its last row is known to the plan before it happens, so a stage is
    cut there as soon as rows are to be read that far."""

    _nothing_left = False

    @cached_property
    def _most_rows(self) -> list[int | None]:
        assert self.config.mix is not None
        return self.config.mix.most_rows(self.rows.domains.names, self.rows.domains.sizes)

    def _in_force(self, proportions: np.ndarray, position: int) -> np.ndarray | None:
        """Proportions over the domains that are left at a position; None if none of them has a share."""
        assert self.config.mix is not None
        if self.config.mix.max_repetition is None or self.config.mix.when_exhausted != "renormalise":
            return proportions
        served = self.plan.served(position)
        left = np.array([m is None or n < m for n, m in zip(served, self._most_rows, strict=True)])
        shares = np.where(left, proportions, 0.0)
        return None if shares.sum() <= 0 else proportions if left.all() else shares / shares.sum()

    def _turn_to(self, step: int, proportions: np.ndarray) -> Stage | None:
        """Open a stage with these proportions before `step`; None if they are in force already, or nothing of them can be."""
        last, position = self.plan.stages[-1], self.position(step)
        shares = self._in_force(proportions, position)
        if shares is None:
            self._nothing_left = True
            self._once.say(f"the run ends after step {step}: every domain with a share of the mixture is exhausted")
        if shares is None or tuple(quantise(shares.tolist())) == last.parts:
            return None
        return self.plan.append(position, last.pools, shares.tolist())

    def _servable(self, step: int, horizon: int) -> int:
        spec = self.config.mix
        assert spec is not None
        if self._nothing_left:
            return step
        if spec.max_repetition is None:
            return horizon
        begin, stop = self.position(step), self.position(horizon)
        if spec.when_exhausted == "repeat":
            self._say_repeated(begin, stop)
            return horizon
        if spec.when_exhausted == "renormalise":
            end = self._cut(stop)
        else:
            found = self.plan.first_reach([None if m is None else m + 1 for m in self._most_rows], stop)
            end = None if found is None else (found[0] - 1, found[1])
        if end is None or begin < end[0] == stop:  # what begins at `stop` is not decided yet
            return horizon
        last = self._step_at(end[0])
        self._once.say(
            f"the run ends after step {last}: {self._spent(end[1])}, and the next global batch cannot be filled"
        )
        return last

    def _cut(self, stop: int) -> tuple[int, int] | None:
        """Cut the latest stage wherever a domain serves its last row by `stop`. The position and domain with which nothing is
        left, or None."""
        names = self.rows.domains.names
        while (found := self.plan.first_reach(self._most_rows, stop)) is not None:
            position, d = found
            last = self.plan.stages[-1]
            shares = self._in_force(np.asarray(last.proportions), position)
            if shares is None:
                return found
            stage = self.plan.append(position, last.pools, shares.tolist())
            decided = {"domain": names[d], "proportions": dict(zip(names, stage.proportions, strict=True))}
            self._log_decision(self._step_at(position), EXHAUSTED, decided, {"rows": self._most_rows[d]}, 0.0, stage)
        return None

    def _step_at(self, position: int) -> int:
        """Optimizer steps done when the global batch with this position is next."""
        return self._origin[0] + (position - self._origin[1]) // self.global_batch

    def _say_repeated(self, begin: int, stop: int) -> None:
        before, after = self.plan.served(begin), self.plan.served(stop)
        for d, most in enumerate(self._most_rows):
            if most is not None and before[d] <= most < after[d]:
                self._once.say(f"{self._spent(d)}; it goes on all the same (when_exhausted: repeat)")

    def _spent(self, d: int) -> str:
        return f"{self.rows.domains.names[d]!r} has been served as often as max_repetition allows ({self._most_rows[d]} rows)"
