"""OfflineTrainer: measures and selects once, with the model as it is loaded, and trains nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from dataflex.components.tools.files import read_array
from dataflex.config.schema import OfflineConfig, SelectConfig
from dataflex.deciding.choosing import Chooser, Chosen, DecisionPoint
from dataflex.errors import DataflexError
from dataflex.plan.permutation import Purpose, generator
from dataflex.signals.asking.ask import Signals
from dataflex.signals.keeping.selection import SelectionCaches
from dataflex.trainer.assembly import available_of
from dataflex.trainer.hooks import DynamicTrainer


class OfflineTrainer(DynamicTrainer):
    """Selects as soon as it is made, and then tells LLaMA-Factory's workflow that there is nothing to train. Signals of rows go
    through a store on disk, so that they are measured once. Needs `rows.raw`. made: takes the trainer."""

    offline: ClassVar[OfflineConfig]
    made: ClassVar[list[OfflineTrainer]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._restore_model(self.args.resume_from_checkpoint)
        self.model: Any = self.accelerator.prepare_model(self.model, evaluation_mode=True)  # type: ignore[has-type]
        assert self.config.select is not None
        self.chosen = self._choose(self.config.select)
        self.args.do_train = self.args.do_eval = self.args.do_predict = False
        self.made.append(self)

    def _restore_model(self, checkpoint: str | None) -> None:
        """Weights, and moments of the optimizer, that signals are measured with."""
        if checkpoint:
            self._load_from_checkpoint(str(checkpoint))
        if any(r.takes_gradients for r in self.config.requests("select")):
            optimizer, file = self.create_optimizer(), Path(str(checkpoint)) / "optimizer.pt"
            if checkpoint and file.is_file():  # else nobody asks for its moments
                optimizer.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))

    def _choose(self, spec: SelectConfig) -> Chosen:
        chooser = Chooser(
            spec,
            available_of(self.rows, self.target, self.processing_class, by_domain=False),
            self.signals.measure,
            budget=lambda candidates, _: wanted(self.offline, candidates),
            rng=lambda number, group_index: generator(
                self.serving.plan.seed, Purpose.SELECTING, spec.component.seed, number, group_index
            ),
        )
        chooser.init()
        update, updates = spec.schedule.turn(0), spec.schedule.turns(1)
        point = DecisionPoint(update=update, updates=updates, learning_rate=float(self.args.learning_rate))
        chosen = chooser.choose(point, self.optimizer)
        self.recorder.remarks.add(f"select:{spec.name}", chosen.remarks)
        return chosen

    def make_signals(self) -> Signals:
        offline, rows, files = self.offline, self.rows, dict[str, Callable[[], np.ndarray]]()
        if offline.embeddings:
            files["embedding"] = lambda: given_embeddings(offline, rows.raw, rows.raw_total)
        if target := offline.target_embeddings:
            files["target_embedding"] = lambda: read_array("target_embeddings", target, dimensions=2)
        folder = Path(offline.store or Path(str(self.args.output_dir)) / "signals")
        caches = SelectionCaches(self.view, folder, rows, self.target, self.serving.plan.seed)
        return Signals(super().make_signals().context, caches, files=files, keeps_encoder=True)


def wanted(offline: OfflineConfig, rows: int) -> int:
    """Rows to select of `rows` that can be."""
    return offline.budget or int(np.ceil((offline.keep_ratio or 0.0) * rows))


def given_embeddings(offline: OfflineConfig, raw: np.ndarray, total: int) -> np.ndarray:
    """Rows `raw` of the file `embeddings`; DataflexError if it is not about `total` rows."""
    assert offline.embeddings is not None
    values = read_array("embeddings", offline.embeddings, dimensions=2)
    if len(values) != total:
        raise DataflexError(
            f"dataflex.offline.embeddings must hold {total} rows, one per row of the data, {offline.embeddings} has {len(values)}"
        )
    return values if np.array_equal(raw, np.arange(total)) else values[raw]
