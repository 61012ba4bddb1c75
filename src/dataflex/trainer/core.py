"""The mixin over LLaMA-Factory's own trainers: serves the plan, keeps the ledger, saves and restores.

`DynamicTrainer` holds what every dynamic run shares; SelectTrainer, MixTrainer and WeightTrainer add one paradigm each
and compose by inheritance (see `trainer/__init__.py`). The Trainer's loop is not copied: the seams are
`get_batch_samples` (once per optimizer step, before any forward), `training_step`, `compute_loss`, `log` and
`_save_checkpoint`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from dataflex.components.contracts import declared
from dataflex.config.llamafactory.trainer_keys import global_batch
from dataflex.config.schema import DataflexConfig
from dataflex.data.feed import Feed
from dataflex.data.rows import GIVEN_WEIGHTS, SAMPLE_IDS, RowCollator, Rows
from dataflex.distributed import collectives
from dataflex.distributed.trainer_view import TrainerView
from dataflex.errors import DataflexError
from dataflex.notices import Once, detail, say
from dataflex.plan.plan import Plan, Stage
from dataflex.plan.quota import HORIZON
from dataflex.record.exposure import Exposure
from dataflex.record.ledger import RunFiles
from dataflex.record.remarks import Remarks
from dataflex.trainer.checkpoints import Checkpoints
from dataflex.trainer.epochs import steps_per_epoch
from dataflex.trainer.losses import RowLosses
from dataflex.trainer.measuring import Measuring
from dataflex.weighting.broken_losses import BrokenLosses, broken_line
from dataflex.weighting.observations import DomainSums

# A stage is continued by another one after this many positions, so that finding a position stays cheap.
MAX_STAGE = HORIZON
_OPENING, _CONTINUATION = "start", "continue"


class DynamicTrainer(RowLosses, Measuring, Checkpoints):
    """Mixin; `config`, the run's block, and the class attributes of its bases are set by `build_trainer`."""

    config: ClassVar[DataflexConfig]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.target: Rows | None = kwargs.pop("target_dataset", None)
        self.references = kwargs.pop("references", {})
        self.held_out: Rows | None = kwargs.pop("held_out", None)
        self.view = TrainerView(self)
        super().__init__(*args, **kwargs)
        self.rows: Rows = self.train_dataset
        self.data_collator: Any = RowCollator(self.data_collator)  # type: ignore[has-type]
        domains = self.rows.domains
        self.run_files = RunFiles(self.args.output_dir, domains, writes=collectives.rank() == 0)
        self.exposure = Exposure(domains)
        self.sums = DomainSums(len(domains), self.args.device)
        self.broken = BrokenLosses(
            self.args.device, watches=self.config.mix is not None or self.config.weight is not None
        )
        self.states: dict[str, dict[str, Any]] = {}
        self.plan = Plan(
            domains,
            self.args.data_seed if self.args.data_seed is not None else self.args.seed,
            shuffle=not self.finetuning_args.disable_shuffling,
            lengths=self.rows.lengths() if self.config.mix is not None and self.config.mix.unit == "tokens" else None,
        )
        self._origin = (0, 0)  # (step, position) the current global batch has been in force since
        self._feed: Feed | None = None
        self._horizon = 0
        self._pending_scalars: dict[str, float] = {}
        self.remarks = Remarks()
        self._once = Once()
        self._served = np.zeros(len(domains))  # rows (or tokens) of each domain since the last log
        self.served = np.zeros(len(domains), dtype=np.int64)  # and rows since training began
        self._micro_ids: torch.Tensor | None = None
        self._step_batches: list[Any] = []
        self.signals = self._make_signals()
        if self.config.freeze_gate:
            freeze_routers(self.model)
        if self.config.plans_data:
            self._settle_steps()

    # -- length of the run -------------------------------------------------------------------------------------------

    @property
    def global_batch(self) -> int:
        return global_batch(self.config, self.args)

    def get_total_train_batch_size(self, args: Any) -> int:
        return global_batch(self.config, args)

    def _settle_steps(self) -> None:
        """Epochs become steps: the Trainer sees one pseudo-epoch that lasts the whole run."""
        down = self.config.epoch_rounding == "down"
        per_epoch = steps_per_epoch(len(self.rows), self.global_batch, down=down or self.args.dataloader_drop_last)
        self._counts_epochs = self.args.max_steps <= 0
        if self._counts_epochs:
            steps = self.args.num_train_epochs * per_epoch
            self.args.max_steps = max(1, int(steps)) if down else int(np.ceil(steps))
        for name, strategy in (("eval", IntervalStrategy), ("save", SaveStrategy), ("logging", IntervalStrategy)):
            if getattr(self.args, f"{name}_strategy") == strategy.EPOCH:
                setattr(self.args, f"{name}_strategy", strategy.STEPS)
                setattr(self.args, f"{name}_steps", per_epoch)
                if name == "eval":
                    self.args.eval_delay = int(self.args.eval_delay * per_epoch)

    def num_examples(self, dataloader: Any) -> int:
        return len(self.rows) if self.config.plans_data else super().num_examples(dataloader)

    def get_train_dataloader(self) -> Any:
        """With planned data, a loader that is only counted: `get_batch_samples` does not read it."""
        if not self.config.plans_data:
            return super().get_train_dataloader()
        micro_steps = range(self.args.max_steps * self.args.gradient_accumulation_steps)
        return DataLoader(micro_steps, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]

    # -- starting and resuming ---------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        if resume_from_checkpoint:
            self._restore(Path(resume_from_checkpoint))
        else:
            self.signals.caches.remove(before=0)  # of other runs in this directory
            self.run_files.start(self.run_record)
            self.states = {slot: self._init_component(slot) for slot in self.config.components}
            if self.config.plans_data:
                self._open_first_stage()
        try:
            result = super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            if self._feed is not None:
                self._feed.close()
        self._close_step()
        self._tell_broken(last=True)
        self.signals.caches.remove()
        self.signals.forget()  # the best model may have been loaded
        self._write_exposure()
        self._conclude()
        return result

    def _conclude(self) -> None:
        """After the last step."""

    def _init_component(self, slot: str) -> dict[str, Any]:
        return self.config.components[slot].init()  # type: ignore[attr-defined]

    def _restore_extra(self, extra: Mapping[str, Any]) -> None:
        """Take back what `_extra_state` gave."""
        self.served = np.array(extra["served"])

    def _extra_state(self) -> dict[str, Any]:
        return {"sums": self.sums.fold(), "served": self.served.copy()}

    # -- one optimizer step ------------------------------------------------------------------------------------------

    def position(self, step: int) -> int:
        """Samples served when `step` optimizer steps are done."""
        return self._origin[1] + (step - self._origin[0]) * self.global_batch

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        self._close_step()
        if not self.config.plans_data:
            self._step_batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
            return self._step_batches, items
        step = self.state.global_step
        if self._feed is None or step >= self._horizon:
            self._decide(step)
            self._open_feed(step)
            if self._horizon <= step:
                self._end_early(step)
                return [], None
        else:
            self._adjust(step)
        assert self._feed is not None
        self._step_batches, rows, amounts = self._feed.next_step()
        self._count(rows, amounts)
        return self._step_batches, self._get_num_items_in_batch(self._step_batches, device)

    def _count(self, rows: np.ndarray, amounts: np.ndarray) -> None:
        """Of the global batch that comes next, the rows of each domain and what they count as in the plan's unit, each [k]."""
        self._served += amounts
        self.served += rows

    def _open_feed(self, step: int) -> None:
        if self._feed is None:
            self._feed = self._make_feed()
        left = self.plan.stages[-1].start + MAX_STAGE - self.position(step)
        dues = [s.next_due(step + 1) for s in self._schedules().values()]
        steps = [self.args.max_steps, step + -(-left // self.global_batch), *(due for due in dues if due is not None)]
        self._horizon = self._servable(step, min(steps))
        self._feed.open(self.position(step), self._horizon - step)

    def _make_feed(self) -> Feed:
        args = self.args
        return Feed(
            self.rows,
            self.data_collator,
            self.plan.rows,
            per_device=self._train_batch_size,
            accumulation=args.gradient_accumulation_steps,
            rank=collectives.rank(),
            ranks=self.global_batch // (self._train_batch_size * args.gradient_accumulation_steps),
            workers=args.dataloader_num_workers,
            prefetch=args.dataloader_prefetch_factor,
            pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
            lengths=self.plan.lengths,
        )

    def _servable(self, step: int, horizon: int) -> int:
        """Up to which step, at most `horizon`, global batches can be filled."""
        return horizon

    def _end_early(self, step: int) -> None:
        """End the run before optimizer step `step`: as at its normal end, what has not been evaluated or saved yet is."""
        args, fresh = self.args, step > self._origin[0]
        if not step:
            raise DataflexError("no global batch can be filled, so there is nothing to train on")
        self._step_batches, self.control.should_training_stop = [], True
        if fresh and args.save_strategy == SaveStrategy.STEPS:
            self.control.should_save = step % self.state.save_steps != 0
        if fresh and args.eval_strategy == IntervalStrategy.STEPS and args.eval_delay <= step:
            self.control.should_evaluate = step % self.state.eval_steps != 0

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        self._micro_ids, self._micro_given = inputs.pop(SAMPLE_IDS, None), inputs.pop(GIVEN_WEIGHTS, None)
        if self._micro_ids is not None:
            self._micro_ids = self._micro_ids.cpu()
        self.signals.forget()
        return super().training_step(model, inputs, num_items_in_batch)

    def _close_step(self) -> None:
        """Called on all ranks between two optimizer steps."""
        self._tell_broken()

    def _tell_broken(self, *, last: bool = False) -> None:
        found = self.broken.close(self.state.global_step, last=last)
        line = None if found is None else broken_line(self.config, *found)
        if line is not None:
            say(line)

    # -- decisions ---------------------------------------------------------------------------------------------------

    def _schedules(self) -> dict[str, Any]:
        """Of the components whose updates change what is read."""
        specs = {"select": self.config.select, "mix": self.config.mix}
        moving = {slot: spec for slot, spec in specs.items() if spec is not None}
        if self.config.mix is not None and not declared(self.config.mix.component.moves_proportions):
            del moving["mix"]
        return {slot: spec.schedule for slot, spec in moving.items()}

    def _open_first_stage(self) -> None:
        merged = self.config.mix is None
        pools = self.plan.merged_pool() if merged else self.plan.domain_pools()
        stage = self.plan.append(0, pools, [1.0] if merged else self._initial_proportions())
        named = {} if merged else {"proportions": dict(zip(self.rows.domains.names, stage.proportions, strict=True))}
        self._log_decision(0, _OPENING, {**self._extent(), **named}, {}, 0.0, stage)

    def _extent(self) -> dict[str, Any]:
        """How much data there is, for the ledger."""
        return {"rows": len(self.rows)}

    def _initial_proportions(self) -> list[float]:
        return [1.0]

    def _decide(self, step: int) -> None:
        """Let the components that are due before `step` append their stages: select first, then mix."""
        position = self.position(step)
        self.plan.forget(position - 1)
        if position - self.plan.stages[-1].start >= MAX_STAGE:
            last = self.plan.stages[-1]
            stage = self.plan.append(position, last.pools, last.proportions)
            self._log_decision(step, _CONTINUATION, {}, {}, 0.0, stage)
        self._select(step)
        self._mix(step)

    def _adjust(self, step: int) -> None:
        """Before a step at which nothing may change what is read."""

    def _select(self, step: int) -> None:
        """SelectTrainer's turn."""

    def _mix(self, step: int) -> None:
        """MixTrainer's turn."""

    def _log_decision(
        self,
        step: int,
        component: str,
        decided: dict[str, Any],
        source: dict[str, Any],
        seconds: float,
        stage: Stage | None = None,
    ) -> None:
        """stage: the one that the decision opened."""
        remarks = self.remarks.take()
        detail(f"step {step}: {component} {json.dumps(decided, default=str)} ({seconds:.1f} s)")
        self.run_files.record(
            {
                "step": step,
                "position": stage.start if stage is not None else self.position(step),
                "component": component,
                "decided": decided,
                "from": source,
                "seconds": round(seconds, 3),
                **({"remarks": remarks} if remarks else {}),
                **({"stage": stage.to_json()} if stage is not None else {}),
            }
        )

    # -- scalars -----------------------------------------------------------------------------------------------------

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if self.config.plans_data:
            self.state.epoch = self._epoch()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _epoch(self) -> float:
        return self.position(self.state.global_step) / len(self.rows)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            logs.update(self._scalars())
        super().log(logs, *args, **kwargs)

    def _scalars(self) -> dict[str, float]:
        """What has happened since the last log; called on all ranks."""
        names = self.rows.domains.names
        out, self._pending_scalars = {**self.signals.take_scalars(), **self._pending_scalars}, {}
        if self.per_row:
            for name, value in zip(names, self.sums.mean_since_log(), strict=True):
                if np.isfinite(value):
                    out[f"dataflex/loss/{name}"] = float(value)
        if self.config.plans_data and self._served.sum():
            for name, count in zip(names, self._served, strict=True):
                out[f"dataflex/realized/{name}"] = float(count / self._served.sum())
            self._served[:] = 0
        return out


def freeze_routers(model: torch.nn.Module) -> None:
    """Keep mixture-of-experts routers fixed: modules called `gate` or `router`, not the `gate_proj` of every MLP."""
    for name, module in model.named_modules():
        if name.rsplit(".", 1)[-1] in ("gate", "router"):
            module.requires_grad_(False)
