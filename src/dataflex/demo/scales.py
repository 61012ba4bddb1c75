"""The two sizes of the demonstration: a tiny random model in a minute or two, and a pretrained one in ten."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataflex.demo.data import training_texts


@dataclass(frozen=True)
class Scale:
    """What the runs of a demonstration have in common."""

    steps: int
    rows_per_domain: int
    heldout: int
    """Held-out rows of each domain."""
    wanted_loss: float
    """The reference loss of every domain in the mixture: a domain below it is served less."""
    keys: Mapping[str, Any]
    """Keys of LLaMA-Factory."""
    pretrained: bool = False
    one_thread: bool = True
    """Where cores are shared, two threads of a tiny model that wait for each other take ten times as long."""

    def model(self, out: Path, seed: int) -> Path:
        """Make or fetch the model; returns its folder."""
        if self.pretrained:
            from dataflex.demo.pretrained import pretrained_model

            return pretrained_model()
        from dataflex.demo.model import build_model

        build_model(out / "model", training_texts(out / "data"), seed)
        return (out / "model").resolve()


TINY = Scale(
    steps=120,
    rows_per_domain=160,
    heldout=32,
    wanted_loss=3.0,
    keys={"finetuning_type": "full", "template": "qwen", "cutoff_len": 256, "learning_rate": 5.0e-3, "bf16": False},
)
PRETRAINED = Scale(
    steps=12,
    rows_per_domain=60,
    heldout=12,
    wanted_loss=1.0,
    keys={
        "finetuning_type": "lora",
        "lora_rank": 16,
        "template": "chatml",
        "cutoff_len": 160,
        "learning_rate": 1.0e-3,
        "bf16": True,
    },
    pretrained=True,
    one_thread=False,
)
