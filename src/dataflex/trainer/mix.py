"""MixTrainer: how much of each domain."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from dataflex.components.contracts import Decision, DomainInfo, Observations
from dataflex.components.requests import name_of
from dataflex.errors import DataflexError
from dataflex.trainer.collectives import decide
from dataflex.trainer.core import DynamicTrainer
from dataflex.trainer.random import generator

_PURPOSE = 0x3173  # keeps this family's random numbers apart from those of the plan and of selectors


class MixTrainer(DynamicTrainer):
    """At each update the mixer sets the proportions, from sums over all ranks and all samples since the last one."""

    def _initial_proportions(self) -> list[float]:
        spec = self.config.mix
        assert spec is not None
        return np.asarray(spec.component.initial(self._domain_info()), dtype=np.float64).tolist()

    def _domain_info(self) -> DomainInfo:
        spec, domains = self.config.mix, self.rows.domains
        assert spec is not None
        sizes = np.asarray(domains.sizes, dtype=np.int64)
        if spec.proportions is not None:
            proportions = np.asarray(spec.proportions)
        elif spec.initial == "stratified":
            proportions = sizes / sizes.sum()
        else:
            proportions = np.full(len(domains), 1.0 / len(domains))
        return DomainInfo(domains.names, sizes, proportions)

    def _init_component(self, slot: str) -> dict[str, Any]:
        if slot == "mix":
            assert self.config.mix is not None
            return self.config.mix.component.init(self._domain_info())
        return super()._init_component(slot)

    def _mix(self, step: int) -> None:
        spec = self.config.mix
        if spec is None or not spec.schedule.due(step):
            return super()._mix(step)
        begin = time.perf_counter()
        mixer, names = spec.component, self.rows.domains.names
        offsets = self.rows.domains.offsets
        measured = {name_of(r): self.signal(r) for r in sorted(mixer.needs - {"train_loss"}, key=name_of)}
        totals = self.sums.take()
        observations = Observations(
            step=step,
            update=spec.schedule.turn(step),
            proportions=np.asarray(self.plan.stages[-1].proportions),
            rows=totals[:, 0],
            loss=totals[:, 1],
            tokens=totals[:, 2],
            token_loss=totals[:, 3],
            signals={n: [v[offsets[d] : offsets[d + 1]] for d in range(len(names))] for n, v in measured.items()},
            rng=generator(self.plan.seed, _PURPOSE, getattr(mixer, "seed", 0), self.plan.stages[-1].index + 1),
        )

        def run() -> tuple[Decision, dict[str, Any]]:
            decision, state = mixer.update(self.states["mix"], observations)
            check_decision(spec.name, decision.proportions, len(names))
            return decision, state

        decision, self.states["mix"] = decide(run)
        self.plan.append(self.position(step), self.plan.stages[-1].pools, np.asarray(decision.proportions).tolist())
        self._log_decision(
            step,
            f"mix:{spec.name}",
            {"proportions": dict(zip(names, np.asarray(decision.proportions).tolist(), strict=True))},
            {"rows": observations.rows, "loss": observations.loss, "signals": self.config.signals("mix")},
            time.perf_counter() - begin,
        )
        return super()._mix(step)

    def _scalars(self) -> dict[str, float]:
        out = super()._scalars()
        if self.config.mix is not None:
            requested = self.plan.stages[-1].proportions
            for name, p in zip(self.rows.domains.names, requested, strict=True):
                out[f"dataflex/proportion/{name}"] = float(p)
        return out


def check_decision(name: str, proportions: np.ndarray, k: int) -> None:
    """Raise DataflexError unless `proportions` are k finite non-negative numbers adding up to one (to 1e-6)."""
    p = np.asarray(proportions, dtype=np.float64)
    if p.shape != (k,) or not np.isfinite(p).all() or (p < 0).any() or abs(p.sum() - 1) > 1e-6:
        raise DataflexError(f"mix: {name} must return {k} proportions that add up to 1, got {p.tolist()}")
