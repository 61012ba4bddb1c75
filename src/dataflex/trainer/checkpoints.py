"""Saving and restoring a dynamic run by the Trainer's own checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import transformers.trainer as stock
from safetensors import safe_open
from transformers.trainer_utils import rotate_checkpoints

from dataflex.distributed import collectives
from dataflex.distributed.engine import engine_of
from dataflex.distributed.host import Host
from dataflex.notices import say
from dataflex.plan.plan import Plan
from dataflex.record.completeness import begin_checkpoint, mark_complete
from dataflex.record.exposure import Exposure
from dataflex.record.ledger import EXPOSURE, RunFiles
from dataflex.record.sharded import load_adapter, load_moments
from dataflex.record.snapshot import Snapshot, exposure_path, read_snapshot, write_snapshot
from dataflex.signals.asking.ask import Signals
from dataflex.trainer.epochs import steps_left
from dataflex.weighting.observations import DomainSums
from dataflex.writing import failed_writes_reported, write_table


class Checkpoints(Host):  # type: ignore[misc]
    """Mixin: what a checkpoint holds beside the Trainer's files, and in which order it is written.

    identity: what a resumed run must share. run_record: what config.yaml says.
    """

    identity: ClassVar[dict[str, Any]]
    run_record: ClassVar[dict[str, Any]]
    plan: Plan
    run_files: RunFiles
    exposure: Exposure
    sums: DomainSums
    states: dict[str, dict[str, Any]]
    _origin: tuple[int, int]
    _unsealed: Path | None = None
    signals: Signals

    def _restore(self, folder: Path) -> None:
        snapshot, ledger = read_snapshot(folder)
        self.states = snapshot.components
        self.sums.load(snapshot.extra["sums"] if collectives.rank() == 0 else None)
        self._restore_extra(snapshot.extra)
        self._origin = (snapshot.step, snapshot.position)
        self.plan.stages = snapshot.stages
        if collectives.rank() == 0 and exposure_path(folder).is_file():
            self.exposure.load(exposure_path(folder))
        if snapshot.global_batch != self.global_batch and self.config.plans_data and self._counts_epochs:
            self.args.max_steps = snapshot.step + steps_left(
                self.args.num_train_epochs, len(self.rows), position=snapshot.position, before=snapshot.global_batch,
                batch=self.global_batch, down=self.config.epoch_rounding == "down",
                drop_last=self.args.dataloader_drop_last,
            )  # fmt: skip
        if snapshot.global_batch != self.global_batch:
            say(
                f"the global batch was {snapshot.global_batch} rows up to step {snapshot.step} and is"
                f" {self.global_batch} from here on; the order of rows goes on from row {snapshot.position}"
            )
        self.run_files.cut_back(self.run_record, ledger, snapshot.step, exposure_path(folder))
        self.signals.caches.remove(before=snapshot.step)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        model, folder = self.model if model is None else model, Path(resume_from_checkpoint)
        if self.is_fsdp_enabled:
            if self.accelerator.is_fsdp2:
                load_adapter(model, folder)
        else:
            load_renamed(model, folder)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.is_fsdp_enabled:
            load_moments(self.model, self.optimizer, Path(checkpoint))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """The Trainer's files and ours; older checkpoints stay until this one is sealed."""
        step = self.state.global_step
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{step}"
        self._close_step()
        position = self.position(step) if self.config.plans_data else step * self.global_batch
        snapshot = Snapshot(
            step=step,
            position=position,
            global_batch=self.global_batch,
            identity=self.identity,
            stages=self.plan.stages_from(position),
            components=self.states,
            extra=self._extra_state(),
            engine=engine_of(self.args),
            ranks=collectives.ranks(),
            model_only=self.args.save_only_model,
        )
        with _saving(step):
            if self.args.should_save:
                begin_checkpoint(folder, overwrite=getattr(self.args, "overwrite_output_dir", False))
            collectives.barrier()  # no rank writes to what another one clears
            with _rotation_deferred():
                super()._save_checkpoint(model, trial)
            self._write_exposure(folder)
            if self.args.should_save:
                write_snapshot(folder, snapshot, self.run_files.ledger_text)
        self._unsealed = folder

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        try:
            super()._maybe_log_save_evaluate(*args, **kwargs)
        except Exception as error:
            if self._unsealed is None:
                raise
            with _saving(
                self.state.global_step, only_full=True
            ):  # of a callback, which may have a part in the checkpoint
                raise error
        self._seal_checkpoint()

    def _seal_checkpoint(self) -> None:
        """Once the callbacks have had their turn too (LLaMA-Factory's rewrites the value head of a reward model): the
        completeness mark, and only then are older checkpoints rotated away."""
        folder, self._unsealed = self._unsealed, None
        if folder is None:
            return
        with _saving(self.state.global_step):
            collectives.barrier()
            if self.args.should_save:
                mark_complete(folder)
        collectives.barrier()
        self.signals.caches.remove(before=self.state.global_step)
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=str(folder.parent),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    def _write_exposure(self, folder: Path | None = None) -> None:
        """Collect the notes of all ranks and write the table to the run's files and into `folder`, on every node that keeps
        checkpoints: another one may have rank 0 when the run goes on."""
        self.exposure.collect()
        spread = folder is not None and self.args.save_on_each_node
        if not spread and collectives.rank() > 0:
            return
        table = collectives.decide(self.exposure.table) if spread else self.exposure.table()
        if collectives.rank() == 0:
            write_table(self.run_files.path / EXPOSURE, table)
        if folder is not None and self.args.should_save:
            write_table(exposure_path(folder), table)


@contextmanager
def _saving(step: int, *, only_full: bool = False) -> Iterator[None]:
    """A write that fails ends the run with one line; a fault of another kind stays what it is. only_full: where more is done
    than saving."""
    with failed_writes_reported(
        f"checkpoint-{step} could not be saved ({{reason}}); the checkpoints before it are untouched and training can be resumed"
        " from the newest of them",
        only_full=only_full,
    ):
        yield


def load_renamed(model: Any, folder: Path) -> None:
    """Weights that `save_pretrained` writes under other names than the model has them, as it does for the experts of
    mixture-of-experts models: the Trainer would leave these as they are and only warn. Read as `from_pretrained` reads them."""
    files = sorted(folder.glob("model*.safetensors"))
    if not files or not hasattr(type(model), "from_pretrained"):
        return
    stored: set[str] = set()
    for file in files:
        with safe_open(file, framework="pt") as weights:
            stored |= set(weights.keys())
    own = set(model.state_dict())
    if not (own - stored and stored - own):
        return
    read = type(model).from_pretrained(folder, dtype=next(model.parameters()).dtype)
    model.load_state_dict(read.state_dict())


@contextmanager
def _rotation_deferred() -> Iterator[None]:
    """The Trainer deletes older checkpoints as the last act of saving one, before its callbacks and our mark."""
    rotate, stock.rotate_checkpoints = stock.rotate_checkpoints, lambda *_, **__: None
    try:
        yield
    finally:
        stock.rotate_checkpoints = rotate
