"""What a configuration says about the losses of rows, and of the weights that the data gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataflex.config.schema.loaded import DataflexConfig
from dataflex.values import number, truth

# Losses of LLaMA-Factory made from the cross entropy.
OTHER_LOSSES = ("use_dft_loss", "use_eaft_loss", "use_asft_loss")
# Kernels that never show the logits.
FUSED = ("enable_liger_kernel", "use_liger_kernel", "use_unsloth")


def given_column(config: DataflexConfig) -> tuple[str, str] | None:
    """The column of the data that weights come from, and whether it is one of rows ("row") or of messages ("message"); None if
    no weighter reads any."""
    for component in readers_of_columns(config):
        return getattr(component, "column", "weight"), getattr(component, "per", "row")
    return None


def readers_of_columns(config: DataflexConfig) -> list[Any]:
    return [config.components[slot] for slot in config.slots("weight") if "given_weight" in config.signals(slot)]


def reads_losses(config: DataflexConfig, slot: str) -> bool:
    """Whether a signal of the component is made from the losses of rows."""
    return any(r.from_losses for r in config.requests(slot))


def fused_kernel(lf: Mapping[str, Any]) -> str | None:
    """The key of a kernel that never shows the logits, from which the loss of a row is made; None without one."""
    return next((key for key in FUSED if truth(lf.get(key), key)), None)


def hides_row_losses(lf: Mapping[str, Any]) -> str | None:
    """Why the loss cannot be had per row (a phrase that begins with the key), or None if it can."""
    key = fused_kernel(lf)
    return None if key is None else f"{key} hides the logits"


def changed_loss(lf: Mapping[str, Any], stage: str) -> str | None:
    """The key that makes the loss of tokens something else than their cross entropy, if there is one."""
    for key in OTHER_LOSSES if stage == "sft" else ():  # LLaMA-Factory ignores them elsewhere
        if truth(lf.get(key), key):
            return key
    if stage in ("pt", "sft") and number(lf.get("label_smoothing_factor") or 0, "label_smoothing_factor") != 0:
        return "label_smoothing_factor"
    return None
