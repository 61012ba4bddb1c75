"""The trainers of a run: one class of hooks over LLaMA-Factory's trainer of each stage, and the parts that it hands on to."""

from __future__ import annotations

from typing import Any

from dataflex.config.schema import DataflexConfig
from dataflex.trainer.hooks import DynamicTrainer
from dataflex.trainer.paradigms import MixTrainer, OrderTrainer, SelectTrainer, WeightTrainer

__all__ = ["DynamicTrainer", "MixTrainer", "OrderTrainer", "SelectTrainer", "WeightTrainer", "build_trainer"]


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
    """The trainer class of a run: LLaMA-Factory's `base` under the mixins that the configuration asks for.

    Args:
        select: The mixin of a selector.
        more: Class attributes of that mixin.
    """
    mixins = [
        mixin
        for slot, mixin in (("select", select), ("mix", MixTrainer), ("weight", WeightTrainer), ("order", OrderTrainer))
        if slot in config.components
    ]
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
