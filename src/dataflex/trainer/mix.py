"""MixTrainer: how much of each domain."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from dataflex.components.contracts import Decision, DomainInfo, Observations, declared
from dataflex.components.requests import SignalRequest, by_name
from dataflex.config.schema import MixConfig, Schedule
from dataflex.distributed.collectives import decide, ranks, sum_over_ranks
from dataflex.errors import ConfigError, DataflexError
from dataflex.plan.permutation import generator
from dataflex.trainer.limits import LimitedTrainer
from dataflex.weighting.domain_weights import TokenShares, factors, on_device, trained_tokens
from dataflex.weighting.objectives import divisor
from dataflex.writing import write_atomically

PROPORTIONS = "proportions.json"
_OLDER = "the checkpoint was saved by an older version of DataFlex, and this run cannot go on from it"
_PURPOSE = 0x3173  # keeps this family's random numbers apart from those of the plan and of selectors


class MixTrainer(LimitedTrainer):
    """At each update the mixer sets the proportions, from sums over all ranks and all samples since the last one.

    loss_weights: what the mean loss of each domain counts in the loss of a step, float64[k]; None: all tokens count alike.
    """

    loss_weights: np.ndarray | None = None
    _asked: np.ndarray  # proportions, as the mixer last gave them

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        none = np.zeros(len(self.served))
        self._amounts = none  # what was served since the last update, in the plan's unit
        self._amounts_decided = none  # and since the last update that decided something
        self._amounts_of_step = none
        self._shares = TokenShares(none, none)

    def _initial_proportions(self) -> list[float]:
        spec = self.config.mix
        assert spec is not None
        found = decide(lambda: spec.component.initial(self._domain_info()))  # may read a file
        self._asked = np.asarray(found, dtype=np.float64)
        return self._asked.tolist()

    @cached_property
    def _mix_schedule(self) -> Schedule:
        """Asked for once the run has begun or has been restored."""
        assert self.config.mix is not None
        return self.config.mix.settled(self.global_batch, self._origin)

    def _schedules(self) -> dict[str, Any]:
        found = super()._schedules()
        return found | {"mix": self._mix_schedule} if "mix" in found else found

    def _domain_info(self) -> DomainInfo:
        assert self.config.mix is not None
        return domain_info(self.config.mix, self.rows)

    def _init_component(self, slot: str) -> dict[str, Any]:
        if slot == "mix":
            assert self.config.mix is not None
            return self.config.mix.component.init(self._domain_info())
        return super()._init_component(slot)

    def _open_first_stage(self) -> None:
        super()._open_first_stage()
        assert self.config.mix is not None
        weights = self.config.mix.component.initial_loss_weights(self._domain_info())
        if weights is not None:
            check_loss_weights(self.config.mix.name, weights, len(self.served))
        self._weigh_domains(weights)

    def _weigh_domains(self, weights: np.ndarray | None) -> None:
        if weights is not None and not self.per_row:
            raise DataflexError("mix: this stage or loss has no loss per row that a mixer could weigh")
        self.loss_weights = None if weights is None else np.asarray(weights, dtype=np.float64)

    def _count(self, rows: np.ndarray, amounts: np.ndarray) -> None:
        super()._count(rows, amounts)
        self._amounts, self._amounts_of_step = self._amounts + amounts, amounts
        self._amounts_decided = self._amounts_decided + amounts

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.domain_factors = None
        if self.loss_weights is not None and batches:
            trained = sum_over_ranks(torch.from_numpy(self._trained(batches, items)).to(self.args.device)).cpu().numpy()
            self._shares.add(trained, self._amounts_of_step)
            proportions = self.plan.stage_at(self.position(self.state.global_step)).proportions
            found = factors(self.loss_weights, self._shares.of(np.asarray(proportions)), trained)
            self.domain_factors = on_device(found, self.args.device)
        return batches, items

    def _trained(self, batches: list[Any], items: Any) -> np.ndarray:
        """What each domain counts for in the loss of this step on this rank, if all tokens count alike, float64[k]."""
        if self.stage_name not in ("pt", "sft"):
            return trained_tokens(batches, self.rows.domains, pairs=True)
        _, of_step = divisor(self, self._objective_kind, items, torch.ones(()))
        found = trained_tokens(batches, self.rows.domains, pairs=False, mean_of_each=not of_step)
        if of_step and ranks() > 1 and not self.args.average_tokens_across_devices:
            return found / max(found.sum(), 1.0)  # gradients are averaged over ranks, each with a mean of its own
        return found

    def _adjust(self, step: int) -> None:
        assert self.config.mix is not None
        if not declared(self.config.mix.component.moves_proportions):
            self._mix(step)

    def _mix(self, step: int) -> None:
        spec = self.config.mix
        if spec is None or not self._mix_schedule.due(step):
            return super()._mix(step)
        begin = time.perf_counter()
        mixer, names = spec.component, self.rows.domains.names
        asked = by_name(mixer.needs_now(self.states["mix"]))
        measured = {r.name: self._by_domains(r) for r in asked if not r.free}
        totals, served, self._amounts = self.sums.take(), self._amounts, np.zeros_like(self._amounts)
        observations = Observations(
            step=step,
            update=self._mix_schedule.turn(step),
            proportions=np.asarray(self.plan.stage_at(self.position(step)).proportions),
            rows=totals[:, 0],
            loss=totals[:, 1],
            tokens=totals[:, 2],
            token_loss=totals[:, 3],
            excess=totals[:, 4],
            realized=served / max(served.sum(), 1.0),
            signals=measured,
            learning_rate=float(self._get_learning_rate()),
            rng=generator(self.plan.seed, _PURPOSE, mixer.seed, self.plan.stages[-1].index + 1),
            asked=self._asked,
            position=self.position(step),
            names=names,
        )

        def run() -> tuple[Decision | None, dict[str, Any]]:
            decision, state = mixer.update(self.states["mix"], observations)
            if decision is not None:
                check_decision(spec.name, decision, len(names))
            return decision, state

        decision, self.states["mix"] = decide(run)
        if decision is None:
            return super()._mix(step)
        served, self._amounts_decided = self._amounts_decided, np.zeros_like(self._amounts_decided)
        self.remarks.add(f"mix:{spec.name}", decision.remarks)
        self._weigh_domains(decision.loss_weights)
        decided: dict[str, Any] = {}
        stage = None
        if declared(mixer.moves_proportions):
            self._asked = np.asarray(decision.proportions, dtype=np.float64)
            stage = self._turn_to(step, self._asked)
            decided["proportions"] = dict(zip(names, self._asked.tolist(), strict=True))
            in_force = self.plan.stages[-1].proportions
            if np.abs(self._asked - in_force).max() > 1e-9:  # domains are exhausted
                decided["in_force"] = dict(zip(names, in_force, strict=True))
        if decision.loss_weights is not None:
            decided["loss_weights"] = dict(zip(names, np.asarray(decision.loss_weights).tolist(), strict=True))
        source = {
            "requested": observations.proportions, "realized": served.astype(np.int64),
            "rows": observations.rows, "loss": observations.loss, "signals": self.config.signals("mix"),
        }  # fmt: skip
        self._log_decision(step, f"mix:{spec.name}", decided, source, time.perf_counter() - begin, stage)
        return super()._mix(step)

    def _by_domains(self, request: SignalRequest) -> list[np.ndarray]:
        """The value of a signal, one array per domain."""
        values = self.signals.measure(request)
        if request.per == "domain":
            return list(values)
        return [values[a:b] for a, b in pairwise(self.signals.rows_of(request).domains.offsets)]

    def _extra_state(self) -> dict[str, Any]:
        weights = {} if self.loss_weights is None else {"loss_weights": self.loss_weights}
        own = {
            "amounts": self._amounts.copy(), "amounts_decided": self._amounts_decided.copy(), "asked": self._asked,
            "trained_tokens": self._shares.trained, "trained_amounts": self._shares.served,
        }  # fmt: skip
        return {**super()._extra_state(), **own, **weights}

    def _restore_extra(self, extra: Mapping[str, Any]) -> None:
        super()._restore_extra(extra)
        assert self.config.mix is not None
        if "amounts" in extra:
            served = extra["amounts"]
        elif self.config.mix.unit == "samples":
            served = self.served - extra["served_before"]
        else:
            served = np.zeros(len(self.served))
        self._amounts = np.array(served, dtype=np.float64)
        self._amounts_decided = np.array(extra.get("amounts_decided", served), dtype=np.float64)
        self._weigh_domains(extra.get("loss_weights"))
        if "trained_tokens" in extra:
            self._shares = TokenShares(extra["trained_tokens"], extra["trained_amounts"])
        self._asked = extra["asked"]

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
            stage = self.plan.stage_at(self.position(self.state.global_step) - 1)
            for d, name in enumerate(self.rows.domains.names):
                out[f"dataflex/proportion/{name}"] = float(stage.proportions[d])
                if not self.config.streams:
                    out[f"dataflex/epochs/{name}"] = float(self.served[d] / len(stage.pools[d]))
        if self.loss_weights is not None:
            for name, w in zip(self.rows.domains.names, self.loss_weights.tolist(), strict=True):
                out[f"dataflex/loss_weight/{name}"] = w
        return out


def domain_info(spec: MixConfig, rows: Any) -> DomainInfo:
    """What a mixer is told when it begins."""
    names, sizes = rows.domains.names, np.asarray(rows.sizes, dtype=np.int64)
    if spec.unit == "tokens":
        sizes = np.array([rows.lengths()[a:b].sum(dtype=np.int64) for a, b in pairwise(rows.domains.offsets)])
    if spec.proportions is not None:
        proportions = np.asarray(spec.proportions)
    elif spec.initial == "stratified":
        proportions = sizes / sizes.sum()
    else:
        proportions = np.full(len(names), 1.0 / len(names))
    return DomainInfo(names, sizes, proportions)


def check_older(spec: MixConfig, state: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
    """ConfigError where an older version left out what this one goes on with. state: of the mixer; extra: of the trainer; both
    from a checkpoint."""
    if spec.name == "ado" and "step" not in state:
        raise ConfigError(f"{_OLDER}: the state of mix: ado has no 'step'")
    if "loss_weights" in extra and "trained_tokens" not in extra:
        raise ConfigError(f"{_OLDER}: its weights of domains are those of rows, whatever their lengths")
    if "amounts" not in extra and spec.unit == "tokens" and "train_loss" in declared(spec.component.needs):
        raise ConfigError(f"{_OLDER}: it does not say how many tokens of each domain were served")


def check_decision(name: str, decision: Decision, k: int) -> None:
    """Raise DataflexError unless the proportions are k finite non-negative numbers adding up to one (to 1e-6), and the loss
    weights, where there are any, are as `check_loss_weights` wants them."""
    p = np.asarray(decision.proportions, dtype=np.float64)
    if p.shape != (k,) or not np.isfinite(p).all() or (p < 0).any() or abs(p.sum() - 1) > 1e-6:
        raise DataflexError(f"mix: {name} must return {k} proportions that add up to 1, got {p.tolist()}")
    if decision.loss_weights is not None:
        check_loss_weights(name, decision.loss_weights, k)


def check_loss_weights(name: str, weights: Any, k: int) -> None:
    """Raise DataflexError unless they are k finite non-negative numbers, not all zero."""
    w = np.asarray(weights, dtype=np.float64)
    if w.shape != (k,) or not np.isfinite(w).all() or (w < 0).any() or not w.any():
        raise DataflexError(f"mix: {name} must return {k} non-negative loss weights, not all zero, got {w.tolist()}")
