"""SelectTrainer: which rows may be drawn."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from dataflex.components.contracts import SelectionContext
from dataflex.errors import DataflexError
from dataflex.trainer.collectives import decide
from dataflex.trainer.core import DynamicTrainer
from dataflex.trainer.plan import Pool, chosen_pool
from dataflex.trainer.random import generator

_PURPOSE = 0x5E1EC7  # keeps this family's random numbers apart from those of the plan and of mixers


class SelectTrainer(DynamicTrainer):
    """At each update the selector replaces the pools rows are drawn from.

    Without a mixer: exactly `budget` = interval x global batch rows of the whole data. With one: `keep_ratio` of each
    domain's rows.
    """

    def _select(self, step: int) -> None:
        spec = self.config.select
        if spec is None or not spec.schedule.due(step):
            return super()._select(step)
        begin = time.perf_counter()
        domains, selector = self.rows.domains, spec.component
        signals = {name: self.signal(name) for name in sorted(selector.needs)}
        measured = np.ones(len(self.rows), dtype=bool)
        for values in signals.values():
            measured &= np.isfinite(values)
        offsets = domains.offsets
        if self.config.mix is None:
            groups: list[tuple[str | None, np.ndarray]] = [(None, np.arange(len(self.rows), dtype=np.int64))]
        else:
            groups = [(name, np.arange(offsets[d], offsets[d + 1])) for d, name in enumerate(domains.names)]

        key = self.plan.stages[-1].index + 1  # the number this stage will have: no other pool shares it
        turn = spec.schedule.turn(step)
        chosen: list[np.ndarray] = []
        scores = np.full(len(self.rows), np.nan)

        def run() -> tuple[list[np.ndarray], dict[str, Any]]:
            state = self.states["select"]
            for place, (name, ids) in enumerate(groups):
                candidates = ids[measured[ids]]
                budget = self._budget(len(candidates), name is not None)
                if not len(candidates) or (budget > len(candidates) and not selector.with_replacement):
                    where = f" of {name}" if name else ""
                    raise DataflexError(
                        f"select: {spec.name} was asked for {budget} rows at step {step}, but only {len(candidates)} of the"
                        f" {len(ids)} rows{where} have a finite {' and '.join(sorted(selector.needs)) or 'score'}"
                    )
                context = SelectionContext(
                    budget=budget,
                    rows=len(candidates),
                    step=step,
                    update=turn,
                    updates=spec.schedule.updates,
                    domain=name,
                    rng=generator(self.plan.seed, _PURPOSE, getattr(selector, "seed", 0), key, place),
                )
                given = {n: v[candidates] for n, v in signals.items()}
                selection, state = selector.select(state, given, context)
                picked = np.asarray(selection.chosen)
                check_choice(spec.name, picked, budget, len(candidates), bool(selector.with_replacement))
                chosen.append(candidates[picked])
                if selection.scores is not None:
                    scores[candidates] = selection.scores
            return chosen, state

        chosen, self.states["select"] = decide(run)  # scores stay on rank 0, which writes them
        seconds = time.perf_counter() - begin
        pools: list[Pool] = [chosen_pool(key, ids) for ids in chosen]
        proportions = self.plan.stages[-1].proportions
        self.plan.append(self.position(step), pools, proportions)

        selected = np.concatenate(chosen)
        file = self.run_files.write_selection(step, scores, selected, np.arange(len(self.rows), dtype=np.int64))
        invalid = int((~measured).sum())
        self._log_decision(
            step,
            f"select:{spec.name}",
            {"rows": [len(c) for c in chosen], "file": file},
            {"signals": sorted(selector.needs), "rows": len(self.rows), "without_score": invalid},
            seconds,
        )
        self._pending_scalars |= {
            "dataflex/selection/rows": float(len(selected)),
            "dataflex/selection/without_score": float(invalid),
            "dataflex/selection/seconds": seconds,
        }
        if np.isfinite(scores).any():
            self._pending_scalars |= {
                "dataflex/selection/mean_score": float(np.nanmean(scores[selected])),
                "dataflex/selection/mean_score_of_pool": float(np.nanmean(scores)),
            }
        return super()._select(step)

    def _budget(self, rows: int, per_domain: bool) -> int:
        spec = self.config.select
        assert spec is not None and spec.schedule.interval is not None
        return int(np.ceil(spec.keep_ratio * rows)) if per_domain else spec.schedule.interval * self.global_batch


def check_choice(name: str, chosen: np.ndarray, budget: int, rows: int, repeats: bool) -> None:
    """Raise DataflexError unless `chosen` holds exactly `budget` candidates, each once unless repeats are allowed."""
    if chosen.shape != (budget,) or not np.issubdtype(chosen.dtype, np.integer):
        raise DataflexError(
            f"select: {name} must return {budget} integer positions, got {chosen.dtype}{list(chosen.shape)}"
        )
    if budget and (chosen.min() < 0 or chosen.max() >= rows):
        raise DataflexError(f"select: {name} returned positions outside its {rows} candidates")
    if not repeats and len(np.unique(chosen)) != budget:
        raise DataflexError(f"select: {name} returned a row more than once")
