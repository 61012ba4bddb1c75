"""What the engine that a run trains on cannot do, said before a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dataflex.config.refusals import loaded as refused
from dataflex.config.schema import DataflexConfig
from dataflex.distributed.engine import engine_of
from dataflex.record.snapshot import Snapshot


def check_engine(config: DataflexConfig, training_args: Any, stage: str) -> None:
    """ConfigError for what a component needs and the engine of the run cannot give. stage: as the configuration names it."""
    engine = engine_of(training_args)
    if getattr(training_args, "parallelism_config", None) is not None:  # also set by accelerate's environment
        raise refused.PARALLELISM.error()
    if engine.startswith("ZeRO"):
        settings = training_args.deepspeed_plugin.deepspeed_config
        size = (settings.get("tensor_parallel") or {}).get("autotp_size", 0)
        if isinstance(size, int) and size > 1:
            raise refused.TENSOR_PARALLEL.error()
    if engine.startswith("FSDP") and stage == "rm":
        raise refused.REWARD_MODEL.error(engine=engine)
    for slot in config.components:
        requests = config.requests(slot)
        if any(r.takes_gradients for r in requests) and engine == "FSDP 1":
            raise refused.FLATTENED.error(slot=slot, name=_name(config, slot))
        if any(r.needs_whole_parameters() for r in requests) and engine in ("ZeRO-3", "FSDP 2"):
            raise refused.SHARDED.error(slot=slot, engine=engine)


def _name(config: DataflexConfig, slot: str) -> str:
    spec = config.select if slot == "select" else config.mix
    return spec.name if spec is not None else slot


def check_same_engine(saved: Snapshot, training_args: Any, folder: Path) -> None:
    """ConfigError for a checkpoint that the engine of this run cannot load."""
    engine, ranks = engine_of(training_args), training_args.world_size
    if saved.engine not in (None, engine):
        raise refused.OTHER_ENGINE.error(folder=folder, saved=saved.engine, engine=engine)
    if not engine.startswith("ZeRO") or saved.ranks in (None, ranks):
        return
    if not (training_args.deepspeed_plugin.deepspeed_config.get("checkpoint") or {}).get("load_universal"):
        raise refused.OTHER_RANKS.error(folder=folder, saved=saved.ranks, ranks=ranks)
