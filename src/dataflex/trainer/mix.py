"""MixTrainer: how much of each domain."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from dataflex.components.contracts import Decision, DomainInfo, Observations
from dataflex.components.requests import name_of
from dataflex.errors import DataflexError
from dataflex.trainer.collectives import decide
from dataflex.trainer.core import DynamicTrainer
from dataflex.trainer.random import generator
from dataflex.writing import write_atomically

PROPORTIONS = "proportions.json"
_FREE = ("train_loss", "excess_loss")  # sums that training adds up by itself
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
        sizes = np.asarray(self.rows.sizes, dtype=np.int64)
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

    def _open_first_stage(self) -> None:
        super()._open_first_stage()
        assert self.config.mix is not None
        self._weigh_domains(self.config.mix.component.initial_loss_weights(self._domain_info()))

    def _weigh_domains(self, weights: np.ndarray | None) -> None:
        self.loss_weights = (
            None if weights is None else torch.as_tensor(np.asarray(weights, np.float32), device=self.args.device)
        )

    def _adjust(self, step: int) -> None:
        assert self.config.mix is not None
        if not self.config.mix.component.moves_proportions:
            self._mix(step)

    def _mix(self, step: int) -> None:
        spec = self.config.mix
        if spec is None or not spec.schedule.due(step):
            return super()._mix(step)
        begin = time.perf_counter()
        mixer, names = spec.component, self.rows.domains.names
        offsets = self.rows.domains.offsets
        asked = [r for r in mixer.needs_now(self.states["mix"]) if name_of(r) not in _FREE]
        measured = {name_of(r): self.signal(r) for r in sorted(asked, key=name_of)}
        totals = self.sums.take()
        observations = Observations(
            step=step,
            update=spec.schedule.turn(step),
            proportions=np.asarray(self.plan.stages[-1].proportions),
            rows=totals[:, 0],
            loss=totals[:, 1],
            tokens=totals[:, 2],
            token_loss=totals[:, 3],
            excess=totals[:, 4],
            signals={n: [v[offsets[d] : offsets[d + 1]] for d in range(len(names))] for n, v in measured.items()},
            learning_rate=float(self._get_learning_rate()),
            rng=generator(self.plan.seed, _PURPOSE, getattr(mixer, "seed", 0), self.plan.stages[-1].index + 1),
        )

        def run() -> tuple[Decision, dict[str, Any]]:
            decision, state = mixer.update(self.states["mix"], observations)
            check_decision(spec.name, decision, len(names))
            return decision, state

        decision, self.states["mix"] = decide(run)
        self._weigh_domains(decision.loss_weights)
        decided: dict[str, Any] = {}
        if mixer.moves_proportions:
            proportions = np.asarray(decision.proportions).tolist()
            self.plan.append(self.position(step), self.plan.stages[-1].pools, proportions)
            decided["proportions"] = dict(zip(names, proportions, strict=True))
        if decision.loss_weights is not None:
            decided["loss_weights"] = dict(zip(names, np.asarray(decision.loss_weights).tolist(), strict=True))
        source = {"rows": observations.rows, "loss": observations.loss, "signals": self.config.signals("mix")}
        self._log_decision(step, f"mix:{spec.name}", decided, source, time.perf_counter() - begin)
        return super()._mix(step)

    def _extra_state(self) -> dict[str, Any]:
        weights = {} if self.loss_weights is None else {"loss_weights": self.loss_weights.cpu().numpy()}
        return {**super()._extra_state(), **weights}

    def _restore_extra(self, extra: Mapping[str, Any]) -> None:
        super()._restore_extra(extra)
        self._weigh_domains(extra.get("loss_weights"))

    def _conclude(self) -> None:
        super()._conclude()
        assert self.config.mix is not None
        found = self.config.mix.component.result(self.states["mix"])
        if found is not None and self.args.should_save:
            named = dict(zip(self.rows.domains.names, np.asarray(found).tolist(), strict=True))
            write_atomically(self.run_files.path / PROPORTIONS, json.dumps(named, indent=1).encode())

    def _scalars(self) -> dict[str, float]:
        out = super()._scalars()
        if self.config.mix is not None:
            requested = self.plan.stages[-1].proportions
            for name, p in zip(self.rows.domains.names, requested, strict=True):
                out[f"dataflex/proportion/{name}"] = float(p)
        if self.loss_weights is not None:
            for name, w in zip(self.rows.domains.names, self.loss_weights.tolist(), strict=True):
                out[f"dataflex/loss_weight/{name}"] = w
        return out


def check_decision(name: str, decision: Decision, k: int) -> None:
    """Raise DataflexError unless the proportions are k finite non-negative numbers adding up to one (to 1e-6), and the loss
    weights, where there are any, k finite non-negative numbers."""
    p = np.asarray(decision.proportions, dtype=np.float64)
    if p.shape != (k,) or not np.isfinite(p).all() or (p < 0).any() or abs(p.sum() - 1) > 1e-6:
        raise DataflexError(f"mix: {name} must return {k} proportions that add up to 1, got {p.tolist()}")
    if decision.loss_weights is not None:
        w = np.asarray(decision.loss_weights, dtype=np.float64)
        if w.shape != (k,) or not np.isfinite(w).all() or (w < 0).any():
            raise DataflexError(f"mix: {name} must return {k} non-negative loss weights, got {w.tolist()}")
