"""The engines that LLaMA-Factory drives, on processes of the CPU: DDP, DeepSpeed ZeRO-2 and 3, FSDP 1 and 2."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from harness import Run, free_port, start

Config = dict[str, Any]

# What accelerator.distributed_type must say (hook distributed_type).
KINDS = {"ddp": "MULTI_CPU", "zero2": "DEEPSPEED 2", "zero3": "DEEPSPEED 3", "fsdp2": "FSDP 2", "fsdp1": "FSDP 1"}
ENGINES = tuple(KINDS)

_DEEPSPEED = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "zero_allow_untested_optimizer": True,
}
# Thresholds so small that every weight matrix of the tiny model is partitioned.
_ZERO: dict[str, Config] = {
    "zero2": {"stage": 2, "overlap_comm": False, "reduce_bucket_size": 1e5},
    "zero3": {
        "stage": 3,
        "overlap_comm": False,
        "reduce_bucket_size": 1e5,
        "stage3_prefetch_bucket_size": 1e4,
        "stage3_param_persistence_threshold": 64,
        "stage3_max_live_parameters": 1e5,
        "stage3_max_reuse_distance": 1e5,
        "stage3_gather_16bit_weights_on_model_save": True,
    },
}
# What `accelerate launch` sets for its configuration file.
_FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "ACCELERATE_MIXED_PRECISION": "no",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_SYNC_MODULE_STATES": "false",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
    "FSDP_USE_ORIG_PARAMS": "true",
}
_VERSIONS = {
    "fsdp2": {"FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"},
    "fsdp1": {
        "FSDP_VERSION": "1",
        "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
        "FSDP_RESHARD_AFTER_FORWARD": "FULL_SHARD",
    },
}


@cache
def extensions() -> dict[str, str]:
    """DeepSpeed compiles an operator of its own at first use: once per environment. A build that was killed leaves a lock."""
    folder = Path(sys.prefix) / "torch-extensions"
    for lock in folder.rglob("lock"):
        lock.unlink()
    return {"TORCH_EXTENSIONS_DIR": str(folder), "NINJA_STATUS": ""}


def under(
    engine: str, config: Config, out: Path, *, ranks: int = 2, hooks: Sequence[str] = (), settings: Config | None = None
) -> Run:
    """`dataflex-cli train` of a configuration on an engine, with hooks that say which one it was and record ids. settings:
    changes of zero_optimization, or of FSDP's variables."""
    out.mkdir(parents=True, exist_ok=True)
    hooks = ["distributed_type", "record_ids", *hooks]
    if engine == "ddp":
        return start(config, out, ranks=ranks, hooks=hooks)
    config, alone = {k: v for k, v in config.items() if k != "use_cpu"}, dict[str, str]()
    if ranks == 1:  # engines want what torchrun sets even then
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
        alone |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    if engine in _VERSIONS:
        return start(
            config,
            out,
            ranks=ranks,
            hooks=["fsdp_on_cpu", *hooks],
            **_FSDP | _VERSIONS[engine] | (settings or {}) | alone,
        )
    file = out / "deepspeed.json"
    file.write_text(json.dumps({**_DEEPSPEED, "zero_optimization": {**_ZERO[engine], **(settings or {})}}))
    return start({**config, "deepspeed": str(file)}, out, ranks=ranks, hooks=hooks, **extensions() | alone)
