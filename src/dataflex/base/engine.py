"""The engine that a run trains on, known before a model is loaded, and what cannot be measured there."""

from __future__ import annotations

import os
from typing import Any

from dataflex.components.requests import Gradient
from dataflex.config.schema import DataflexConfig
from dataflex.config.values import truth
from dataflex.errors import ConfigError

# Keys of a DeepSpeed configuration with which ranks no longer read rows of their own.
_SPLIT = {"tensor_parallel": "autotp_size", "pipeline": "stages"}


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


def check_engine(config: DataflexConfig, training_args: Any, stage: str) -> None:
    """ConfigError for what a component needs and the engine of the run cannot give. stage: as the configuration names it."""
    engine = engine_of(training_args)
    if getattr(training_args, "parallelism_config", None) is not None:  # also set by accelerate's environment
        raise ConfigError("parallelism_config splits rows or models over ranks and cannot be combined with dataflex")
    if engine.startswith("ZeRO"):
        settings = training_args.deepspeed_plugin.deepspeed_config
        for key, size in _SPLIT.items():
            if int((settings.get(key) or {}).get(size, 1)) > 1:
                raise ConfigError(
                    f"deepspeed: {key}.{size} splits rows or models over ranks and cannot be combined with dataflex"
                )
    if engine.startswith("FSDP") and stage == "rm":
        raise ConfigError(f"stage: rm does not work under {engine} in LLaMA-Factory itself; use deepspeed")
    for slot in config.components:
        gradients = [r for r in config.requests(slot) if isinstance(r, Gradient)]
        if gradients and engine == "FSDP 1":
            raise ConfigError(
                f"dataflex.{slot}.name: {_name(config, slot)} takes the gradients of parameters, which FSDP 1 flattens; set"
                " fsdp_version: 2, or use deepspeed"
            )
        if any(r.parameters == "all" for r in gradients) and engine in ("ZeRO-3", "FSDP 2"):
            raise ConfigError(
                f"dataflex.{slot}.parameters: all needs parameters that are whole, and {engine} shards them; use linear"
            )


def _name(config: DataflexConfig, slot: str) -> str:
    spec = config.select if slot == "select" else config.mix
    return spec.name if spec is not None else slot
