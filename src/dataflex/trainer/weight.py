"""WeightTrainer: how hard each sample pulls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from dataflex.components.contracts import WeightContext, Weighter
from dataflex.config.schema import WeightConfig
from dataflex.trainer.collectives import gather_rows, sum_over_ranks
from dataflex.trainer.core import DynamicTrainer
from dataflex.trainer.rows import SAMPLE_IDS

_NO_ROW = -1


class WeightTrainer(DynamicTrainer):
    """Row weights with mean one over the rows of the statistics' scope.

    Without accumulation the scope is the global batch: its losses are gathered between forward and backward. With
    accumulation, `running` uses the global batch of the step before (the first step is unweighted), and `global` makes
    a pre-pass over the micro-batches of the step, in training mode and with the random state put back, so that the
    losses seen are those of the step itself.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reference: torch.Tensor | None = None  # [m, 2] float64: loss, sample id
        self._scope_cache: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
        self._step_losses: list[torch.Tensor] = []
        # min, max, sum, sum of squares, rows, zeros
        self._statistics = self._no_statistics()

    def _no_statistics(self) -> torch.Tensor:
        return torch.tensor([torch.inf, -torch.inf, 0.0, 0.0, 0.0, 0.0], dtype=torch.float32, device=self.args.device)

    @property
    def _spec(self) -> WeightConfig:
        assert self.config.weight is not None
        return self.config.weight

    @property
    def _active(self) -> bool:
        return self.state.global_step >= self._spec.warmup

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        first = inputs is self._step_batches[0] if self._step_batches else False
        if first and len(self._step_batches) > 1 and self._active and self._spec.scope == "global":
            self._reference = self._survey()
        return super().training_step(model, inputs, num_items_in_batch)

    def _survey(self) -> torch.Tensor:
        """Losses of all micro-batches of this step before the first backward, [m, 2] as in `_reference`."""
        cpu = torch.random.get_rng_state()
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
        self.model.train()
        found = []
        with torch.no_grad():
            for batch in self._step_batches:
                ids = batch[SAMPLE_IDS]
                inputs = self._prepare_inputs({k: v for k, v in batch.items() if k != SAMPLE_IDS})
                with self.compute_loss_context_manager():
                    losses = self._score(self.model, inputs)
                found.append(self._pair(losses, ids))
        torch.random.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        return gather_rows(torch.cat(found))

    def _pair(self, losses: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """[per-device batch, 2]: loss and id, short batches filled with rows that do not count."""
        out = torch.full((self._train_batch_size, 2), torch.nan, dtype=torch.float64, device=self.args.device)
        out[:, 1] = _NO_ROW
        out[: len(ids), 0], out[: len(ids), 1] = losses.double(), ids.to(out)
        return out

    def _weigh(self, losses: torch.Tensor, trainable: torch.Tensor) -> torch.Tensor | None:
        assert self._micro_ids is not None
        mine = self._pair(losses, self._micro_ids)
        if len(self._step_batches) == 1:
            self._reference = gather_rows(mine)
        else:
            self._step_losses.append(mine)
        if not self._active or self._reference is None:
            return None
        reference, scale = self._scope()
        if not len(reference):
            return None
        weighter, state = self._spec.component, self.states["weight"]
        counted = trainable & torch.isfinite(losses)
        safe = torch.where(counted, losses, reference.mean())
        raw = weighter.weights(state, safe, self._context(reference, self._micro_ids))
        weights = torch.where(counted, raw / scale, 0.0)
        self._record(weights, counted)
        return weights

    def _scope(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The losses that define the statistics, and the mean of their raw weights; kept while the reference stays."""
        assert self._reference is not None
        if self._scope_cache is None or self._scope_cache[0] is not self._reference:
            reference, ids = self._valid(self._reference)
            weighter, state = self._spec.component, self.states["weight"]
            scale = (
                weighter.weights(state, reference, self._context(reference, ids)).mean()
                if len(ids)
                else reference.sum()
            )
            self._scope_cache = (self._reference, reference, scale)
        return self._scope_cache[1:]

    def _valid(self, pairs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses float32[m] and ids int64[m] of the rows that count."""
        kept = pairs[torch.isfinite(pairs[:, 0]) & (pairs[:, 1] >= 0)]
        return kept[:, 0].float(), kept[:, 1].long()

    def _context(self, reference: torch.Tensor, ids: torch.Tensor) -> WeightContext:
        device = reference.device
        domains = torch.as_tensor(self.rows.domains.of(ids.cpu().numpy()), device=device)
        return WeightContext(
            reference=reference,
            ids=ids.to(device),
            domains=domains,
            step=self.state.global_step,
            names=self.rows.domains.names,
        )

    def _record(self, weights: torch.Tensor, counted: torch.Tensor) -> None:
        s, w = self._statistics, weights.float()
        s[0] = torch.minimum(s[0], torch.where(counted, w, torch.inf).min())
        s[1] = torch.maximum(s[1], w.max())
        s[2:] += torch.stack([w.sum(), w.square().sum(), counted.sum().float(), (counted & (w == 0)).sum().float()])

    def _close_step(self) -> None:
        super()._close_step()
        if self._step_losses:
            self._reference = gather_rows(torch.cat(self._step_losses))
            self._step_losses = []
        component = self._spec.component
        learns = type(component).update is not Weighter.update
        if learns and self._reference is not None and self._step_batches and self._active:
            reference, ids = self._valid(self._reference)
            self.states["weight"] = component.update(self.states["weight"], self._context(reference, ids))
            self._scope_cache = None
        self._step_batches = []

    def _extra_state(self) -> dict[str, Any]:
        reference = {} if self._reference is None else {"reference": self._reference.cpu().numpy()}
        return {**super()._extra_state(), **reference}

    def _restore_extra(self, extra: Mapping[str, Any]) -> None:
        super()._restore_extra(extra)
        if "reference" in extra:
            self._reference = torch.as_tensor(np.asarray(extra["reference"]), device=self.args.device)

    def _scalars(self) -> dict[str, float]:
        out = super()._scalars()
        low, high = -max_over_ranks(-self._statistics[0]), max_over_ranks(self._statistics[1])
        total, squares, rows, zeros = sum_over_ranks(self._statistics[2:]).tolist()
        self._statistics = self._no_statistics()
        if rows:
            out |= {
                "dataflex/weight/min": low,
                "dataflex/weight/max": high,
                "dataflex/weight/effective_share": total**2 / squares / rows if squares else 0.0,
                "dataflex/weight/zero_share": zeros / rows,
            }
        return out


def max_over_ranks(value: torch.Tensor) -> float:
    """The maximum over ranks of a scalar."""
    return float(gather_rows(value.reshape(1)).max())
