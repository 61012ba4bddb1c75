"""Tells experiment trackers about the dataflex block, as LLaMA-Factory tells them about its own arguments."""

from __future__ import annotations

import importlib
from typing import Any

from transformers import TrainerCallback


class BlockReporter(TrainerCallback):
    """Adds `dataflex` to the run configuration of wandb, trackio and swanlab, whichever are reported to."""

    def __init__(self, block: dict[str, Any], swanlab: bool) -> None:
        self.block, self.swanlab = block, swanlab

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        trackers = [name for name in ("wandb", "trackio") if name in (args.report_to or [])]
        for name in [*trackers, *(["swanlab"] if self.swanlab else [])]:
            importlib.import_module(name).config.update({"dataflex": self.block})
