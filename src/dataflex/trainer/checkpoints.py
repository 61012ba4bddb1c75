"""Saving and restoring a dynamic run by the Trainer's own checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from safetensors import SafetensorError
from transformers.trainer_utils import rotate_checkpoints

from dataflex.errors import DataflexError
from dataflex.trainer import collectives
from dataflex.trainer.exposure import Exposure
from dataflex.trainer.host import Host
from dataflex.trainer.ledger import EXPOSURE, RunFiles, write_table
from dataflex.trainer.observations import DomainSums
from dataflex.trainer.plan import Plan
from dataflex.trainer.state import Snapshot, exposure_path, mark_complete, read_snapshot, write_snapshot


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

    def _restore(self, folder: Path) -> None:
        snapshot, ledger = read_snapshot(folder)
        self.states = snapshot.components
        self.sums.load(snapshot.extra["sums"] if collectives.rank() == 0 else None)
        self._restore_extra(snapshot.extra)
        self._origin = (snapshot.step, snapshot.position)
        if snapshot.stage is not None:
            self.plan.stages = [snapshot.stage]
        if collectives.rank() == 0 and exposure_path(folder).is_file():
            self.exposure.load(exposure_path(folder))
        if snapshot.global_batch != self.global_batch and collectives.rank() == 0:
            print(
                f"dataflex: the global batch was {snapshot.global_batch} rows up to step {snapshot.step} and is"
                f" {self.global_batch} from here on; the order of rows goes on from row {snapshot.position}",
                flush=True,
            )
        self.run_files.cut_back(self.run_record, ledger, snapshot.step, exposure_path(folder))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Ours and the Trainer's files, then the completeness mark, and only then are older checkpoints rotated away."""
        step = self.state.global_step
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{step}"
        self._close_step()
        snapshot = Snapshot(
            step=step,
            position=self.position(step) if self.config.plans_data else step * self.global_batch,
            global_batch=self.global_batch,
            identity=self.identity,
            stage=self.plan.stages[-1] if self.plan.stages else None,
            components=self.states,
            extra=self._extra_state(),
        )
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            (folder / "dataflex" / "COMPLETE").unlink(missing_ok=True)
            super()._save_checkpoint(model, trial)
            self._write_exposure(folder)
            if self.args.should_save:
                write_snapshot(folder, snapshot, self.run_files.ledger_text)
            collectives.barrier()
            if self.args.should_save:
                mark_complete(folder)
        except (OSError, RuntimeError, SafetensorError) as error:
            # torch's writer reports a failed write as a RuntimeError; other ones are faults of another kind
            if not isinstance(error, RuntimeError) or "writ" in str(error):
                raise DataflexError(
                    f"checkpoint-{step} could not be saved ({' '.join(str(error).split())}); "
                    "the checkpoints before it are untouched and training can be resumed from the newest of them"
                ) from error
            raise
        finally:
            self.args.save_total_limit = limit
        collectives.barrier()
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=str(folder.parent),
                save_total_limit=limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    def _write_exposure(self, folder: Path | None = None) -> None:
        """Collect the notes of all ranks and write the table to the run's files and into `folder`."""
        self.exposure.collect()
        if self.args.should_save:
            table = self.exposure.table()
            for target in [self.run_files.path / EXPOSURE, *([exposure_path(folder)] if folder else [])]:
                write_table(target, table)
