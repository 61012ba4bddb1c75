"""How much of each domain: at its updates a mixer sets the proportions of the plan, and what losses weigh."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from dataflex import events
from dataflex.components.contexts import Decision, DomainInfo, Observations, State
from dataflex.components.contracts import declared
from dataflex.components.requests import by_name
from dataflex.components.signal_request import SignalRequest
from dataflex.config.schema import MixConfig, Schedule
from dataflex.deciding.limits import Limits
from dataflex.deciding.serving import PlannedServing
from dataflex.distributed.collectives import decide
from dataflex.distributed.trainer_view import TrainerView
from dataflex.errors import ConfigError, DataflexError
from dataflex.plan.permutation import Purpose, generator
from dataflex.record.recorder import Recorder
from dataflex.weighting.domain_weights import DomainWeights
from dataflex.weighting.observations import DomainSums
from dataflex.writing import write_atomically

PROPORTIONS = "proportions.json"
_OLDER = "the checkpoint was saved by an older version of DataFlex, and this run cannot go on from it"


class Mixing:
    """Decides from sums over all ranks and all samples since the last update.

    Args:
        info: Gives the domains at the start.
        measure: Gives the values of a signal, one array per domain.
        sums: Losses of the rows trained on.
        weights: Loss weights of domains; None where the training stage has no loss per row.
        signals: Names of the mixer's signals, for the ledger.
    """

    def __init__(
        self,
        spec: MixConfig,
        info: Callable[[], DomainInfo],
        measure: Callable[[SignalRequest], list[np.ndarray]],
        *,
        serving: PlannedServing,
        recorder: Recorder,
        sums: DomainSums,
        weights: DomainWeights | None,
        signals: list[str],
    ) -> None:
        self.spec, self.info, self.measure = spec, info, measure
        self.serving, self.recorder, self.sums, self.weights = serving, recorder, sums, weights
        self.signals = signals
        self.limits = Limits(spec, serving, recorder)
        self.component_state: State = {}
        self.names = serving.domains.names
        none = np.zeros(len(self.names))
        self.asked = none
        """Proportions, as the mixer last gave them."""
        self._amounts = none  # what was served since the last update, in the plan's unit
        self._amounts_decided = none  # and since the last update that decided something
        self._amounts_of_step = none

    @cached_property
    def schedule(self) -> Schedule:
        """Asked for once the run has begun or has been restored."""
        return self.spec.settled(self.serving.global_batch, self.serving.origin)

    def init(self) -> None:
        self.component_state = self.spec.component.init(self.info())

    # -- before the first step ---------------------------------------------------------------------------------------

    def initial_proportions(self) -> list[float]:
        found = decide(lambda: self.spec.component.initial(self.info()))  # may read a file
        self.asked = np.asarray(found, dtype=np.float64)
        return self.asked.tolist()

    def begin_weights(self) -> None:
        """The weights of losses that the run begins with."""
        found = self.spec.component.initial_loss_weights(self.info())
        if found is not None:
            check_loss_weights(self.spec.name, found, len(self.names))
        self._weigh(found)

    # -- before and in a step ----------------------------------------------------------------------------------------

    def count(self, amounts: np.ndarray) -> None:
        """The global batch that comes next. amounts: what it counts of each domain in the plan's unit, [k]."""
        self._amounts, self._amounts_of_step = self._amounts + amounts, amounts
        self._amounts_decided = self._amounts_decided + amounts

    def domain_factors(self, batches: list[Any], num_items: Any, step: int) -> torch.Tensor | None:
        """See `DomainWeights.factors_of`."""
        if self.weights is None:
            return None
        proportions = np.asarray(self.serving.plan.stage_at(self.serving.position(step)).proportions)
        return self.weights.factors_of(batches, num_items, self._amounts_of_step, proportions)

    def act(self, step: int, view: TrainerView) -> None:
        """Called on every rank before a step at which the mixer may be due."""
        if self.schedule.due(step):
            with events.timing("mixing"):
                self._decide(step, view)

    def _decide(self, step: int, view: TrainerView) -> None:
        begin, mixer = time.perf_counter(), self.spec.component
        observations = self._observations(step, view.learning_rate)

        def run() -> tuple[Decision | None, State]:
            decision, state = mixer.update(self.component_state, observations)
            if decision is not None:
                check_decision(self.spec.name, decision, len(self.names))
            return decision, state

        decision, self.component_state = decide(run)
        if decision is not None:
            self._apply(step, decision, observations, begin)

    def _observations(self, step: int, learning_rate: float) -> Observations:
        """Of the interval that ends here. A new one begins."""
        mixer, plan, position = self.spec.component, self.serving.plan, self.serving.position(step)
        measured = {r.name: self.measure(r) for r in by_name(mixer.needs_now(self.component_state)) if not r.free}
        totals, served, self._amounts = self.sums.take(), self._amounts, np.zeros_like(self._amounts)
        return Observations(
            step=step,
            update=self.schedule.turn(step),
            proportions=np.asarray(plan.stage_at(position).proportions),
            rows=totals[:, 0],
            loss=totals[:, 1],
            tokens=totals[:, 2],
            token_loss=totals[:, 3],
            excess=totals[:, 4],
            realized=served / max(served.sum(), 1.0),
            signals=measured,
            learning_rate=learning_rate,
            rng=generator(plan.seed, Purpose.MIXING, mixer.seed, plan.stages[-1].index + 1),
            asked=self.asked,
            position=position,
            names=self.names,
        )

    def _apply(self, step: int, decision: Decision, observations: Observations, begin: float) -> None:
        served, self._amounts_decided = self._amounts_decided, np.zeros_like(self._amounts_decided)
        self.recorder.remarks.add(f"mix:{self.spec.name}", decision.remarks)
        self._weigh(decision.loss_weights)
        decided: dict[str, Any] = {}
        stage = None
        if declared(self.spec.component.moves_proportions):
            self.asked = np.asarray(decision.proportions, dtype=np.float64)
            stage = self.limits.turn_to(step, self.asked)
            decided["proportions"] = self._named(self.asked)
            in_force = self.serving.plan.stages[-1].proportions
            if np.abs(self.asked - in_force).max() > 1e-9:  # domains are exhausted
                decided["in_force"] = dict(zip(self.names, in_force, strict=True))
        if decision.loss_weights is not None:
            decided["loss_weights"] = self._named(decision.loss_weights)
        source = {
            "requested": observations.proportions, "realized": served.astype(np.int64),
            "rows": observations.rows, "loss": observations.loss, "signals": self.signals,
        }  # fmt: skip
        position, seconds = self.serving.position(step), time.perf_counter() - begin
        self.recorder.decision(step, position, f"mix:{self.spec.name}", decided, source, seconds, stage)

    def _named(self, values: np.ndarray) -> dict[str, float]:
        return dict(zip(self.names, np.asarray(values).tolist(), strict=True))

    def _weigh(self, alpha: np.ndarray | None) -> None:
        if self.weights is not None:
            self.weights.alpha = None if alpha is None else np.asarray(alpha, dtype=np.float64)
        elif alpha is not None:
            raise DataflexError("mix: this stage or loss has no loss per row that a mixer could weigh")

    # -- what is reported and saved ----------------------------------------------------------------------------------

    def scalars(self, step: int) -> dict[str, float]:
        """Of the step that is over."""
        stage, out = self.serving.plan.stage_at(self.serving.position(step) - 1), dict[str, float]()
        for d, name in enumerate(self.names):
            out[f"dataflex/proportion/{name}"] = float(stage.proportions[d])
            epochs = self.serving.epochs_of(d, stage)
            if epochs is not None:
                out[f"dataflex/epochs/{name}"] = epochs
        if self.weights is not None and self.weights.alpha is not None:
            out |= {f"dataflex/loss_weight/{n}": w for n, w in self._named(self.weights.alpha).items()}
        return out

    def write_result(self) -> None:
        """What the finished run recommends, if its mixer was run for that."""
        found = self.spec.component.result(self.component_state)
        if found is not None:
            named, file = self._named(found), self.recorder.files.path / PROPORTIONS
            write_atomically(file, json.dumps(named, indent=1).encode())
            events.emit(events.Recommended(named, file))

    def state_dict(self) -> dict[str, Any]:
        own = {"amounts": self._amounts.copy(), "amounts_decided": self._amounts_decided.copy(), "asked": self.asked}
        return {**own, **({} if self.weights is None else self.weights.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """`rows_since_update`: what older versions kept in the place of `amounts`."""
        if "amounts" in state:
            amounts = state["amounts"]
        else:
            amounts = state["rows_since_update"] if self.spec.unit == "samples" else np.zeros(len(self.names))
        self._amounts = np.array(amounts, dtype=np.float64)
        self._amounts_decided = np.array(state.get("amounts_decided", amounts), dtype=np.float64)
        self._weigh(state.get("loss_weights"))
        if self.weights is not None:
            self.weights.load_state_dict(state)
        self.asked = state["asked"]


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


def check_older(spec: MixConfig, state: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """ConfigError where an older version left out what this one goes on with. Both are from a checkpoint: the state of the mixer,
    and what `Mixing` saved."""
    if spec.name == "ado" and "step" not in state:
        raise ConfigError(f"{_OLDER}: the state of mix: ado has no 'step'")
    if "loss_weights" in saved and "trained_tokens" not in saved:
        raise ConfigError(f"{_OLDER}: its weights of domains are those of rows, whatever their lengths")
    if "amounts" not in saved and spec.unit == "tokens" and "train_loss" in declared(spec.component.needs):
        raise ConfigError(f"{_OLDER}: it does not say how many tokens of each domain were served")


def check_decision(name: str, decision: Decision, k: int) -> None:
    """Raise DataflexError for a decision that is not valid.

    Proportions must be k finite non-negative numbers that add up to one (to 1e-6). Loss weights must pass
    `check_loss_weights`.
    """
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
