"""What a measurement may use of the run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch

from dataflex.components.signal_request import SignalRequest
from dataflex.data.rows import GIVEN_WEIGHTS, SAMPLE_IDS, RowCollator, Rows
from dataflex.distributed.trainer_view import TrainerView
from dataflex.errors import DataflexError
from dataflex.notices import Once
from dataflex.signals.batching import ScoringRows, default_batch_tokens

T = TypeVar("T")


@dataclass
class MeasureContext:
    view: TrainerView
    rows: Rows
    """The training data."""
    collator: RowCollator
    """Rows -> batch, as they are trained on."""
    tokenizer: Any
    row_loss: Callable[[torch.nn.Module, Any], torch.Tensor]
    """(model, batch) -> the training stage's own loss of each row, float32 [B], NaN for a row without one."""
    stage: str
    """pt, sft, rm, dpo or kto."""
    seed: int
    """Seed of the run's data."""
    target: Rows | None = None
    """The target of selectors and weighters."""
    held_out: Rows | None = None
    """Held-out rows, one part per domain."""
    held_out_named: bool = False
    """Whether the held-out rows are those that a mixer's `eval_dataset` names."""
    scoring_tokens: int | None = None
    """Padded tokens of a scoring batch; None: chosen by the device."""
    remark: Callable[[Mapping[str, str]], None] = lambda _: None
    """Takes remarks on what the selector is given."""
    scalars: dict[str, float] = field(default_factory=dict)
    """Scalars for the next log."""
    _of_step: tuple[int, dict[Any, Any]] = field(default=(-1, {}), init=False)
    _once: Once = field(default_factory=Once, init=False)

    # -- rows --------------------------------------------------------------------------------------------------------

    @property
    def target_rows(self) -> Rows:
        if self.target is None:
            raise DataflexError("there is no target to align with")
        return self.target

    @property
    def held_out_rows(self) -> Rows:
        if self.held_out is None:
            raise DataflexError("there are no held-out rows")
        return self.held_out

    def rows_of(self, request: SignalRequest) -> Rows:
        """The rows that the values of a request belong to."""
        if request.per == "target row":
            return self.target_rows
        return self.held_out_rows if request.per == "held-out row" else self.rows

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each training row, int64 [N]."""
        return self.rows.lengths()

    def batches(self, request: SignalRequest, rows: Rows, ids: np.ndarray | None = None) -> ScoringRows:
        """Some rows (None: all), ready to be measured for a request."""
        own = rows is self.rows

        def prepare(batch: Any) -> Any:
            inputs = self.view.on_device(batch)
            inputs.pop(GIVEN_WEIGHTS, None)
            if not request.stage_loss:  # `row_loss` takes them off itself
                inputs.pop(SAMPLE_IDS, None)
            return inputs

        lengths = self.lengths if own else rows.lengths()
        return ScoringRows(
            rows=rows,
            ids=np.arange(len(rows), dtype=np.int64) if ids is None else ids,
            lengths=lengths if ids is None else lengths[ids],
            batch_tokens=self.scoring_tokens or default_batch_tokens(self.view.device, request.takes_gradients),
            collate=self.collator if own else self.collate_single,
            prepare=prepare,
            device=self.view.device,
            workers=self.view.args.dataloader_num_workers,
        )

    @cached_property
    def collate_single(self) -> Any:
        """For rows that are never packed: with FlashAttention, LLaMA-Factory's collator of packs takes one row at a time."""
        collator: Any = copy.copy(self.collator)
        if getattr(collator.inner, "neat_packing", False):
            collator.inner = copy.copy(collator.inner)
            collator.inner.neat_packing = False
        return collator

    # -- once --------------------------------------------------------------------------------------------------------

    def of_step(self) -> dict[Any, Any]:
        """What is known under the parameters of this step."""
        if self._of_step[0] != self.view.step:
            self._of_step = (self.view.step, {})
        return self._of_step[1]

    def once(self, key: Any, make: Callable[[], T]) -> T:
        """What `make` gives, made once per step."""
        known = self.of_step()
        if key not in known:
            known[key] = make()
        return known[key]  # type: ignore[no-any-return]

    def forget(self) -> None:
        self._of_step = (-1, {})

    def describe(self, line: str) -> None:
        """Say once what a measurement covers."""
        self._once.say(line)
