"""What parts may know of LLaMA-Factory's trainer while it trains, and the passes of a stage that it makes for them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

from dataflex.distributed.trainer_view import TrainerView
from dataflex.trainer.scoring import score_rows


class StageView(TrainerView):
    """What parts may know of the Trainer, and the passes of its training stage.

    Args:
        stage: pt, sft, rm, dpo or kto.
    """

    def __init__(self, trainer: Any, stage: str) -> None:
        super().__init__(trainer)
        self.stage = stage

    def unwrapped(self, model: Any) -> Any:
        """A model without the wrapper of the engine."""
        return self._trainer.accelerator.unwrap_model(model)

    def autocast(self) -> AbstractContextManager[Any]:
        """What a forward pass of training runs in."""
        return self._trainer.compute_loss_context_manager()  # type: ignore[no-any-return]

    def turn_to_training(self, model: Any) -> None:
        """Model and optimizer (a schedule-free one has two modes), as the Trainer does it before a step."""
        model.train()
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()

    def score(self, model: Any, batch: Any) -> torch.Tensor:
        """See `score_rows`."""
        return score_rows(self._trainer, self.stage, model, batch)

    def pass_of_pairs(self, model: Any, batch: Any) -> None:
        """A forward pass of dpo or kto, whose losses go through the hook of the stage."""
        self._trainer.get_batch_loss_metrics(model, batch)
