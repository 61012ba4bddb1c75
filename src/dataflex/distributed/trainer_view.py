"""What the parts of a run may know of the Trainer as it goes on."""

from __future__ import annotations

from typing import Any

import torch


class TrainerView:
    """Reads a Trainer and changes nothing of it. All but `args` may be another thing at the next look."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self._trainer.state.global_step)

    @property
    def max_steps(self) -> int:
        """Optimizer steps of the whole run, once it has begun."""
        return int(self._trainer.state.max_steps)

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return float(self._trainer._get_learning_rate())

    @property
    def model(self) -> Any:
        """The model that trains, without the engine around it."""
        return self._trainer.model

    @property
    def reference_model(self) -> Any:
        """That of dpo; None where there is none."""
        return getattr(self._trainer, "ref_model", None)

    @property
    def optimizer(self) -> Any:
        return self._trainer.optimizer

    @property
    def accelerator(self) -> Any:
        return self._trainer.accelerator

    @property
    def args(self) -> Any:
        """TrainingArguments."""
        return self._trainer.args

    @property
    def finetuning_args(self) -> Any:
        """LLaMA-Factory's FinetuningArguments."""
        return self._trainer.finetuning_args

    @property
    def device(self) -> torch.device:
        return self._trainer.args.device  # type: ignore[no-any-return]

    def on_device(self, batch: Any) -> Any:
        """A batch as the Trainer gives it to the model."""
        return self._trainer._prepare_inputs(batch)
