"""Writing the checkpoints of a run beside the Trainer's own files, and in which order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers.trainer as stock
from safetensors import safe_open
from transformers.trainer_utils import rotate_checkpoints

from dataflex import events
from dataflex.distributed import collectives
from dataflex.record.completeness import begin_checkpoint, mark_complete
from dataflex.record.exposure import Exposure
from dataflex.record.ledger import EXPOSURE, RunFiles
from dataflex.record.snapshot import Snapshot, exposure_path, write_snapshot
from dataflex.writing import failed_writes_reported, write_table


@dataclass(frozen=True)
class Saves:
    """What the arguments say of saving."""

    here: bool
    """Whether this rank writes files."""
    on_each_node: bool
    overwrite: bool
    """Whether the output directory may be overwritten."""
    limit: int | None
    """Checkpoints that are kept."""

    @classmethod
    def of(cls, args: Any) -> Saves:
        overwrite = getattr(args, "overwrite_output_dir", False)
        return cls(args.should_save, args.save_on_each_node, overwrite, args.save_total_limit)


class Checkpoints:
    """Writes our files of checkpoints, and reads them.

    Args:
        exposure: None where rows are not counted.
    """

    def __init__(self, saves: Saves, files: RunFiles, exposure: Exposure | None) -> None:
        self.saves, self.files, self.exposure = saves, files, exposure
        self.unsealed: Path | None = None
        """The checkpoint that lacks its mark."""

    @contextmanager
    def saving(self, folder: Path, snapshot: Snapshot) -> Iterator[None]:
        """Write our files when the block, in which the Trainer writes its own, is over. Older checkpoints stay until this one is
        sealed."""
        events.emit(events.Saving(snapshot.step, folder))
        with _reported(snapshot.step):
            if self.saves.here:
                begin_checkpoint(folder, overwrite=self.saves.overwrite)
            collectives.barrier()  # no rank writes to what another one clears
            with _rotation_deferred():
                yield
            events.emit(events.SavingState(snapshot.step, folder))
            self.write_exposure(folder)
            if self.saves.here:
                self.files.copy_clusters(folder)
                write_snapshot(folder, snapshot, self.files.ledger_text)
        self.unsealed = folder

    @contextmanager
    def callbacks_reported(self, step: int) -> Iterator[None]:
        """A callback may have a part in the checkpoint that was just written."""
        try:
            yield
        except Exception as error:
            if self.unsealed is None:
                raise
            with _reported(step, only_full=True):
                raise error

    def seal(self, step: int) -> Path | None:
        """Once the callbacks have had their turn too (LLaMA-Factory's rewrites the value head of a reward model): the
        completeness mark. The checkpoint, if there is one to be sealed."""
        folder, self.unsealed = self.unsealed, None
        if folder is None:
            return None
        with _reported(step):
            collectives.barrier()
            if self.saves.here:
                mark_complete(folder)
        collectives.barrier()
        return folder

    def rotate(self, folder: Path, best: str | None) -> None:
        """Remove older checkpoints than one that is sealed."""
        if self.saves.here:
            rotate_checkpoints(
                output_dir=str(folder.parent),
                save_total_limit=self.saves.limit,
                best_model_checkpoint=best,
                use_mtime=True,
            )

    def write_exposure(self, folder: Path | None = None) -> None:
        """Collect the notes of all ranks, and write the table to the run's files and into `folder`.

        Every node that keeps checkpoints writes it, since another node may have rank 0 after a resume.
        """
        if self.exposure is None:
            return
        self.exposure.collect()
        spread = folder is not None and self.saves.on_each_node
        if not spread and collectives.rank() > 0:
            return
        table = collectives.decide(self.exposure.table) if spread else self.exposure.table()
        if collectives.rank() == 0:
            write_table(self.files.path / EXPOSURE, table)
        if folder is not None and self.saves.here:
            write_table(exposure_path(folder), table)

    def restore(self, folder: Path, ledger: bytes, step: int, run_record: dict[str, Any]) -> None:
        """Let the run's files say what they said at a checkpoint."""
        if self.exposure is not None and collectives.rank() == 0 and exposure_path(folder).is_file():
            self.exposure.load(exposure_path(folder))
        self.files.cut_back(run_record, ledger, step, exposure_path(folder))


@contextmanager
def _reported(step: int, *, only_full: bool = False) -> Iterator[None]:
    """A write that fails ends the run with one line; a fault of another kind stays what it is. only_full: where more is done
    than saving."""
    with failed_writes_reported(
        f"checkpoint-{step} could not be saved ({{reason}}); the checkpoints before it are untouched and training can be resumed"
        " from the newest of them",
        only_full=only_full,
    ):
        yield


def load_renamed(model: Any, folder: Path) -> None:
    """Load weights that `save_pretrained` writes under other names, as it does for experts of mixture-of-experts
    models.

    The Trainer would only warn and not load them. They are read as `from_pretrained` reads them.
    """
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
