"""OfflineTrainer: measures and selects once, with the model as it is loaded, and trains nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from dataflex.components.tools.files import read_array
from dataflex.config.schema import OfflineConfig
from dataflex.errors import DataflexError
from dataflex.signals.asking.ask import Signals
from dataflex.signals.keeping.selection import SelectionCaches
from dataflex.trainer.select import SelectTrainer


@dataclass(frozen=True)
class Chosen:
    """ids: of the rows taken, in the order of the selector, int64[budget]. scores: float64[N] (rank 0; NaN: none).
    measured: bool [N], whether a row could be chosen. remarks: of the selector, lines."""

    ids: np.ndarray
    scores: np.ndarray
    measured: np.ndarray
    remarks: Sequence[str] = ()


class Selected(BaseException):
    """Ends LLaMA-Factory's workflow where training would begin."""

    def __init__(self, chosen: Chosen, trainer: Any) -> None:
        super().__init__()
        self.chosen, self.trainer = chosen, trainer


class OfflineTrainer(SelectTrainer):
    """Signals of rows go through a store on disk, so that they are measured once. Needs `rows.raw`."""

    offline: ClassVar[OfflineConfig]

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Raises Selected. resume_from_checkpoint: weights, and moments of the optimizer, that signals are measured with."""
        self.state.max_steps = 1
        gradients = any(r.takes_gradients for r in self.config.requests("select"))
        if resume_from_checkpoint:
            self._load_from_checkpoint(str(resume_from_checkpoint))
        if gradients:
            self.create_optimizer()
        if resume_from_checkpoint and gradients:
            self._load_optimizer(Path(str(resume_from_checkpoint)))
        self.model: Any = self.accelerator.prepare_model(self.model, evaluation_mode=True)  # type: ignore[has-type]
        self.states = {"select": self._init_component("select")}
        chosen, scores, measured = self._choose(0)
        raise Selected(Chosen(chosen[0], scores, measured, tuple(self.remarks.take().values())), self)

    def _load_optimizer(self, checkpoint: Path) -> None:
        if not (checkpoint / "optimizer.pt").is_file():  # nobody asks for its moments
            return
        assert self.optimizer is not None
        state = torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True)
        self.optimizer.load_state_dict(state)

    def _make_signals(self) -> Signals:
        offline, rows, files = self.offline, self.rows, dict[str, Callable[[], np.ndarray]]()
        if offline.embeddings:
            files["embedding"] = lambda: given_embeddings(offline, rows.raw, rows.raw_total)  # type: ignore[arg-type]
        if target := offline.target_embeddings:
            files["target_embedding"] = lambda: read_array("target_embeddings", target, dimensions=2)
        folder = Path(offline.store or Path(str(self.args.output_dir)) / "signals")
        context = super()._make_signals().context
        caches = SelectionCaches(self.view, folder, self.rows, self.target, self.plan.seed)
        return Signals(context, caches, files=files, keeps_encoder=True)

    def _get_learning_rate(self) -> float:
        return float(self.args.learning_rate)

    @property
    def _key(self) -> int:
        return 1

    def _budget(self, rows: int, per_domain: bool) -> int:
        return wanted(self.offline, rows)


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
