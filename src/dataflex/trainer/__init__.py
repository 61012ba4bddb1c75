"""One mixin over LLaMA-Factory's own trainer of each stage; the three paradigms compose by inheritance."""

from __future__ import annotations

from typing import Any

from dataflex.config.schema import DataflexConfig
from dataflex.trainer.core import DynamicTrainer
from dataflex.trainer.mix import MixTrainer
from dataflex.trainer.select import SelectTrainer
from dataflex.trainer.streaming import StreamTrainer
from dataflex.trainer.weight import WeightTrainer

__all__ = ["DynamicTrainer", "MixTrainer", "SelectTrainer", "WeightTrainer", "build_trainer"]


def build_trainer(
    base: type,
    config: DataflexConfig,
    *,
    stage: str,
    per_row: bool,
    packed: bool = False,
    identity: dict[str, Any],
    run_record: dict[str, Any],
    select: type = SelectTrainer,
    **more: Any,
) -> type:
    """The trainer class of a run: `base` (LLaMA-Factory's) under the mixins its configuration asks for. select: the mixin
    of a selector; more: class attributes of its."""
    mixins = [
        mixin
        for slot, mixin in (("select", select), ("mix", MixTrainer), ("weight", WeightTrainer))
        if slot in config.components
    ]
    if config.streams:
        mixins.insert(0, StreamTrainer)
    name = "".join(m.__name__.removesuffix("Trainer") for m in mixins) + base.__name__
    attributes = {
        "config": config,
        "stage_name": stage,
        "per_row": per_row,
        "packed": packed,
        "identity": identity,
        "run_record": run_record,
        **more,
    }
    return type(name, (*mixins, base), attributes)
