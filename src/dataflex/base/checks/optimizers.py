"""Which optimizers a checkpoint holds whole, so that a run goes on exactly, and why it does not hold the others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataflex.config.refusals import loaded as refused
from dataflex.values import truth

# All state is in `state_dict`, as tensors and numbers; `tests/test_optimizers.py` goes on with those that run on a CPU.
WHOLE = frozenset({
    "adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused", "adamw_apex_fused", "adafactor", "sgd",
    "adagrad", "rmsprop", "adamw_anyprecision", "stable_adamw", "grokadamw",
    "adamw_torch_4bit", "adamw_torch_8bit", "ademamix", "adamw_bnb_8bit", "adamw_8bit", "ademamix_8bit", "lion_8bit",
    "lion_32bit", "paged_adamw_32bit", "paged_adamw_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit", "paged_lion_32bit",
    "paged_lion_8bit", "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit", "lomo",
})  # fmt: skip
_PROJECTED = "keeps its projections as objects, which the Trainer does not load from a checkpoint"
_LAYERWISE = "steps in hooks of its own, whose moments and learning rates are in no checkpoint"
# The reason why a run cannot go on, by value of `optim`.
LOST: Mapping[str, str] = {
    **dict.fromkeys(("galore_adamw", "galore_adamw_8bit", "galore_adafactor", "apollo_adamw"), _PROJECTED),
    **dict.fromkeys(
        (
            "galore_adamw_layerwise", "galore_adamw_8bit_layerwise", "galore_adafactor_layerwise", "apollo_adamw_layerwise",
        ),
        _LAYERWISE,
    ),
    "adalomo": "keeps its second moments outside its state_dict",
}  # fmt: skip
# Goes on, but weights are saved averaged and turned back with rounding.
ROUNDED = frozenset({"schedule_free_radam", "schedule_free_adamw", "schedule_free_sgd"})
# The same of LLaMA-Factory's own; what is not here (`use_adam_mini`, `use_muon`, `loraplus_lr_ratio`) is whole.
LOST_KEYS: Mapping[str, str] = {
    "use_galore": _PROJECTED,
    "use_apollo": _PROJECTED,
    "use_badam": "keeps which parameters are in turn, and for how long, outside its state_dict",
}


def lost_state(given: Mapping[str, Any]) -> str | None:
    """Why a checkpoint does not hold the optimizer that LLaMA-Factory's keys ask for; None where it does."""
    for key, reason in LOST_KEYS.items():
        if truth(given.get(key), key):
            layerwise = f"{key.removeprefix('use_')}_layerwise"
            return f"{key} {_LAYERWISE if truth(given.get(layerwise), layerwise) else reason}"
    optim = _name(given)
    return f"optim: {optim} {LOST[optim]}" if optim in LOST else None


def optimizer_notices(given: Mapping[str, Any]) -> list[str]:
    """What a run that saves should know before it starts."""
    if str(given.get("save_strategy", "steps")).rsplit(".", 1)[-1].lower() == "no":
        return []
    reason = lost_state(given)
    if reason is not None:
        return [f"{reason}: this run cannot go on from its checkpoints"]
    if _name(given) in ROUNDED:
        return [
            f"optim: {_name(given)} saves averaged weights: a run goes on from its checkpoints, but not to the last bit"
        ]
    return []


def check_resumable(given: Mapping[str, Any], folder: Path) -> None:
    """ConfigError where the state of the optimizer is not in the checkpoint: the run would go on as another one."""
    reason = lost_state(given)
    if reason is not None:
        raise refused.LOST_OPTIMIZER.error(folder=folder, reason=reason)


def _name(given: Mapping[str, Any]) -> str:
    value = given.get("optim") or ""
    return str(getattr(value, "value", value)).removeprefix("OptimizerNames.").lower()
