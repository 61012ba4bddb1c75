"""The engine that a run trains on."""

from __future__ import annotations

import os
from typing import Any

from dataflex.values import truth


def engine_of(training_args: Any) -> str:
    """`DDP` (or a single process), `ZeRO-<stage>`, `FSDP 1` or `FSDP 2`, whether the run's own keys or accelerate's launcher ask
    for it."""
    plugin = getattr(training_args, "deepspeed_plugin", None)
    if plugin is not None:
        return f"ZeRO-{plugin.zero_stage}"
    if getattr(training_args, "fsdp_plugin_args", None):
        return f"FSDP {training_args.fsdp_plugin_args.get('fsdp_version', 1)}"
    if truth(os.environ.get("ACCELERATE_USE_FSDP"), "ACCELERATE_USE_FSDP"):
        return f"FSDP {os.environ.get('FSDP_VERSION', '1')}"
    return "DDP"
