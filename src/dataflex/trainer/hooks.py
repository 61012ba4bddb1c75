"""The one class that is mixed over LLaMA-Factory's trainers: what the Trainer calls, handed on to the parts of a run.

The Trainer's loop is not copied. The hooks are `get_batch_samples` (once per optimizer step, before any forward),
`training_step`, `compute_loss`, `log` and `_save_checkpoint`.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from dataflex import events
from dataflex.config.llamafactory.trainer_keys import global_batch
from dataflex.config.schema import DataflexConfig
from dataflex.data.micro_batch import MICRO_BATCH, MicroBatch, attach
from dataflex.data.rows import SAMPLE_IDS, RowCollator, Rows
from dataflex.deciding.decisions import Deciding
from dataflex.deciding.mixing import Mixing
from dataflex.deciding.ordering import Ordering
from dataflex.deciding.selecting import Selecting
from dataflex.deciding.serving import PlannedServing, RowServing
from dataflex.distributed import collectives
from dataflex.distributed.engine import engine_of
from dataflex.errors import DataflexError
from dataflex.notices import say
from dataflex.record.exposure import Exposure
from dataflex.record.sharded import load_adapter, load_moments
from dataflex.record.sharing import before_selecting, branches
from dataflex.record.snapshot import read_snapshot
from dataflex.signals.asking.ask import Signals
from dataflex.signals.routing import freeze_routers
from dataflex.trainer.announcing import Announcing
from dataflex.trainer.assembly import recorder_of, row_losses, serving_of, signals_of
from dataflex.trainer.checkpoints import Checkpoints, Saves, load_renamed
from dataflex.trainer.epochs import settle_steps, steps_left
from dataflex.trainer.evaluating import DomainEvaluation
from dataflex.trainer.run_state import RunState
from dataflex.trainer.view import StageView
from dataflex.weighting.broken_losses import broken_line
from dataflex.weighting.objectives import Objective
from dataflex.weighting.observing import Observing
from dataflex.weighting.weights import Weights


class DynamicTrainer(Announcing):
    """Mixin; the class attributes are set by `build_trainer`."""

    config: ClassVar[DataflexConfig]
    stage_name: ClassVar[str]
    """pt, sft, rm, dpo or kto."""
    per_row: ClassVar[bool]
    """Whether the stage's loss can be had per row. Where it cannot, it is left as it is, and only the rows are noted."""
    packed: ClassVar[bool]
    """Whether rows hold several sequences."""
    identity: ClassVar[dict[str, Any]]
    """What a resumed run must share."""
    run_record: ClassVar[dict[str, Any]]
    """What config.yaml says."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.target: Rows | None = kwargs.pop("target_dataset", None)
        self.held_out: Rows | None = kwargs.pop("held_out", None)
        references = kwargs.pop("references", {})
        self.order_scores: np.ndarray | None = kwargs.pop("order_scores", None)
        self.view = StageView(self, self.stage_name)
        super().__init__(*args, **kwargs)
        config, self.rows = self.config, self.train_dataset
        self.data_collator: Any = RowCollator(self.data_collator)  # type: ignore[has-type]
        self.recorder = recorder_of(self.rows, self.args.output_dir, self.processing_class)
        shuffle = not self.finetuning_args.disable_shuffling
        self.serving = serving_of(self.rows, config, self.args, self.data_collator, shuffle=shuffle)
        exposure = None if config.streams else Exposure(self.rows.domains)
        goes_by_losses = config.mix is not None or config.weight is not None
        self.observing = Observing(self.rows.domains, self.args.device, watches=goes_by_losses, exposure=exposure)
        self.signals = self.make_signals()
        self.evaluation = DomainEvaluation(self.signals, self.serving, self.recorder, self.processing_class)
        fix_scaling = config.weight is not None and config.weight.fix_scaling
        self.objective = Objective.of(self, self.stage_name, fix_scaling=fix_scaling)
        self.selecting, self.mixing, self.weights = self.make_selecting(), self.make_mixing(), self.make_weights()
        self.ordering = self.make_ordering()
        self.deciding: Deciding | None = None
        if isinstance(self.serving, PlannedServing):
            self.deciding = Deciding(self.serving, self.recorder, self.selecting, self.mixing, self.ordering)
        self.losses = row_losses(config, self.objective, self.view, self.observing, self.weights, references)
        self.state_of_run = RunState(
            self.serving, self.observing, self.selecting, self.mixing, self.weights, self.ordering
        )
        self.checkpoints = Checkpoints(Saves.of(self.args), self.recorder.files, exposure)
        self.in_epochs = isinstance(self.serving, RowServing) and settle_steps(
            self.args, len(self.rows), self.serving.global_batch, down=config.compat.epoch_rounding == "down"
        )
        self.step_batches: list[Any] = []
        if config.freeze_gate:
            freeze_routers(self.model)
        events.emit(events.Prepared(self.rows, self.target, self.held_out, self.eval_dataset, config, self.model))

    # -- what a paradigm adds ----------------------------------------------------------------------------------------

    def make_signals(self) -> Signals:
        return signals_of(self)

    def make_selecting(self) -> Selecting | None:
        """See SelectTrainer."""
        return None

    def make_mixing(self) -> Mixing | None:
        """See MixTrainer."""
        return None

    def make_weights(self) -> Weights | None:
        """See WeightTrainer."""
        return None

    def make_ordering(self) -> Ordering | None:
        """See OrderTrainer."""
        return None

    # -- length of the run -------------------------------------------------------------------------------------------

    def get_total_train_batch_size(self, args: Any) -> int:
        return global_batch(self.config, args)

    def num_examples(self, dataloader: Any) -> int:
        if isinstance(self.serving, PlannedServing):
            return self.serving.examples(self.args.max_steps)
        return super().num_examples(dataloader)

    def get_train_dataloader(self) -> Any:
        """With planned data, a loader that is only counted: `get_batch_samples` does not read it."""
        if not isinstance(self.serving, PlannedServing):
            return super().get_train_dataloader()
        micro_steps = range(self.args.max_steps * self.args.gradient_accumulation_steps)
        return DataLoader(micro_steps, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]

    # -- starting, resuming, ending ----------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        if resume_from_checkpoint:
            self._restore(Path(resume_from_checkpoint))
        else:
            self._begin()
        try:
            result = super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self.serving.close()
        self._end_step()
        self._say_broken(last=True)
        self.signals.caches.remove()
        self.signals.forget()  # the best model may have been loaded
        self.checkpoints.write_exposure()
        if self.mixing is not None and self.args.should_save:
            self.mixing.write_result()
        events.emit(events.Finished(self.view.step, self.serving.served_by_name()))
        return result

    def _begin(self) -> None:
        self.signals.caches.remove(before=0)  # of other runs in this directory
        self.recorder.files.start(self.run_record)
        self.state_of_run.init()
        if self.deciding is not None:
            self.deciding.begin()

    def _restore(self, folder: Path) -> None:
        snapshot, ledger = read_snapshot(folder)
        self.state_of_run.restore(before_selecting(snapshot, ledger, folder) if branches() else snapshot)
        batch, before = self.serving.global_batch, snapshot.global_batch
        if before != batch and self.in_epochs:
            self.args.max_steps = snapshot.step + steps_left(
                self.args.num_train_epochs, len(self.rows), position=snapshot.position, before=before, batch=batch,
                down=self.config.compat.epoch_rounding == "down", drop_last=self.args.dataloader_drop_last,
            )  # fmt: skip
        if before != batch:
            say(
                f"the global batch was {before} rows up to step {snapshot.step} and is {batch} from here on; the order of rows"
                f" goes on from row {snapshot.position}"
            )
        self.checkpoints.restore(folder, ledger, snapshot.step, self.run_record)
        self.signals.caches.remove(before=snapshot.step)
        events.emit(events.Restored(snapshot.step, folder))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        model, folder = self.model if model is None else model, Path(resume_from_checkpoint)
        if not self.is_fsdp_enabled:
            load_renamed(model, folder)
        elif self.accelerator.is_fsdp2:
            load_adapter(model, folder)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.is_fsdp_enabled:
            load_moments(self.model, self.optimizer, Path(checkpoint))

    # -- one optimizer step ------------------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        self._end_step()
        parts = {"select": self.selecting, "mix": self.mixing, "order": self.ordering}
        self.announce_start(self.serving.global_batch, parts)
        step, factors = self.view.step, None
        if self.deciding is None:
            batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        elif not self.deciding.before(self.view):
            self._end_early(step)
            return [], None
        else:
            batches = self.deciding.serve()
            items = self._get_num_items_in_batch(batches, device)
            if self.mixing is not None:
                factors = self.mixing.domain_factors(batches, items, step)
        attach(batches, factors)
        self.step_batches = batches
        if batches:
            micro = [batch[MICRO_BATCH] for batch in batches]
            events.emit(events.BatchServed(step, batches, micro, self.view))
        return batches, items

    def _end_early(self, step: int) -> None:
        """End the run before optimizer step `step`: as at its normal end, what has not been evaluated or saved yet is."""
        args, fresh = self.args, step > self.serving.origin[0]
        if not step:
            raise DataflexError("no global batch can be filled, so there is nothing to train on")
        self.control.should_training_stop = True
        if fresh and args.save_strategy == SaveStrategy.STEPS:
            self.control.should_save = step % self.state.save_steps != 0
        if fresh and args.eval_strategy == IntervalStrategy.STEPS and args.eval_delay <= step:
            self.control.should_evaluate = step % self.state.eval_steps != 0

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        micro: MicroBatch | None = inputs.get(MICRO_BATCH)
        if self.weights is not None and micro is not None and micro.number == 0:
            with events.timing("weighing"):
                self._aim(self.weights)
                if self.weights.wants_survey(micro, self.view.step):
                    self.losses.survey(self.weights, model, self.step_batches)
        self.signals.forget()
        return super().training_step(model, inputs, num_items_in_batch)

    def _aim(self, weights: Weights) -> None:
        """Show the target, as the current model sees it, to the weighters that are due."""
        step = self.view.step
        for slot, part, request in weights.due_targets(step):
            begin = time.perf_counter()
            weights.aim(slot, self.signals.measure(request), step)
            decided, name = {"target_rows": len(self.signals.rows_of(request))}, f"{slot}:{part.name}"
            seconds = time.perf_counter() - begin
            self.recorder.decision(step, self.serving.position(step), name, decided, {}, seconds)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None, **kwargs: Any
    ) -> Any:
        micro: MicroBatch | None = inputs.pop(MICRO_BATCH, None)  # only while training
        if micro is not None and self.per_row and self.stage_name in ("pt", "sft"):
            loss, outputs = self.losses.of_tokens(micro, model, inputs, num_items_in_batch)
            return (loss, outputs) if return_outputs else loss
        if micro is not None and self.per_row and self.stage_name == "rm":
            return self.losses.of_reward_pairs(micro, model, inputs)
        with ExitStack() as stack:
            if micro is not None and self.per_row:
                stack.enter_context(self.losses.reading(self.losses.reader_of(micro)))
            elif micro is not None:
                self.observing.note(micro, self.view.step + 1, None)
            return super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch, **kwargs
            )

    def compute_preference_loss(self, *args: Any, **kwargs: Any) -> Any:
        """dpo: LLaMA-Factory takes the mean of the losses returned here, so this is where pairs are seen and weighted."""
        losses, *rewards = super().compute_preference_loss(*args, **kwargs)
        return (self.losses.passed(losses), *rewards)

    def kto_loss(self, *args: Any, **kwargs: Any) -> Any:
        """kto: one loss per answer, wanted ones first; LLaMA-Factory takes their mean."""
        losses, *rest = super().kto_loss(*args, **kwargs)
        return (self.losses.passed(losses), *rest)

    def score(self, model: Any, batch: Any) -> torch.Tensor:
        """What the signal `loss` is, float32 [B]."""
        ids = batch.pop(SAMPLE_IDS, None)
        losses = self.view.score(model, batch)
        events.emit(events.ScoredBatch(self.view.step, ids, losses))
        return losses

    def _end_step(self) -> None:
        """Called on all ranks between two optimizer steps."""
        self._say_broken()
        if self.weights is not None:
            self.weights.end_step(self.view.step)
        self.step_batches = []

    def _say_broken(self, *, last: bool = False) -> None:
        found = self.observing.end_step(self.view.step, last=last)
        line = None if found is None else broken_line(self.config, *found)
        if line is not None:
            say(line)

    # -- evaluation, scalars, checkpoints -------------------------------------------------------------------------------------

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        if eval_dataset is None:  # else one set of several, or of the caller's own
            by_token = self.per_row and self.stage_name in ("pt", "sft")
            self.evaluation.due = self.held_out is not None and self.config.evaluate_domains and by_token
        return super().evaluate(eval_dataset, *args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        output = super().evaluation_loop(*args, **kwargs)
        output.metrics.update(self.evaluation.take(self.view.step))
        return output

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            logs.update(self.signals.take_scalars() | self.recorder.take_scalars())
            logs.update(self.state_of_run.scalars(self.view.step, per_row=self.per_row))
        super().log(logs, *args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._end_step()
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.view.step}"
        facts = {"engine": engine_of(self.args), "ranks": collectives.ranks(), "model_only": self.args.save_only_model}
        snapshot = self.state_of_run.snapshot(self.view.step, self.identity, **facts)
        with self.checkpoints.saving(folder, snapshot):
            super()._save_checkpoint(model, trial)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        step = self.view.step
        if isinstance(self.serving, PlannedServing):
            self.state.epoch = self.serving.epoch(step, self.args.max_steps)
        with self.checkpoints.callbacks_reported(step):
            super()._maybe_log_save_evaluate(*args, **kwargs)
        folder = self.checkpoints.seal(step)
        if folder is not None:
            self.signals.caches.remove(before=step)
            self.checkpoints.rotate(folder, self.state.best_model_checkpoint)
            events.emit(events.Saved(step, folder))
        events.emit(events.StepEnded(step, self.view))
