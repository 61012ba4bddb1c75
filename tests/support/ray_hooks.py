"""Test runs on Ray: LLaMA-Factory's driver without accelerators, and hooks of `hooks.py` in the workers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_HOOKS, _OUT = "DATAFLEX_TEST_WORKER_HOOKS", "DATAFLEX_TEST_OUT"


def on_cpus() -> None:
    """In the driver: LLaMA-Factory asks for ten CPUs per device, and without accelerators a CPU is a device."""
    from llamafactory.train import trainer_utils, tuner
    from ray.util.placement_group import placement_group

    settings = trainer_utils.get_ray_remote_config_for_worker

    def get_placement_group(num_workers: int) -> Any:
        bundle = {"CPU": 1}
        return placement_group([bundle] * num_workers, strategy="PACK"), bundle

    def get_ray_remote_config_for_worker(
        placement_group: Any, bundle_idx: int, rank: int, world_size: int, master_addr: str, master_port: str, env: Any
    ) -> dict[str, Any]:
        given = settings(placement_group, bundle_idx, rank, world_size, master_addr, master_port, env)
        return {**given, "num_cpus": 1}

    tuner.get_placement_group = get_placement_group
    tuner.get_ray_remote_config_for_worker = get_ray_remote_config_for_worker


def variables(out: Any, hooks: Sequence[str]) -> dict[str, str]:
    """What `in_worker` is told. `1@name:argument` is a hook of rank 1 alone."""
    return {_OUT: str(out), _HOOKS: "|".join(hooks)}


def in_worker() -> None:
    """Ray calls this in every worker process; those of ranks have the driver's environment."""
    if "RANK" not in os.environ:
        return
    import hooks
    import torch

    torch.set_num_threads(1)
    rank, out = os.environ["RANK"], os.environ[_OUT]
    (Path(out) / f"pid-{rank}").write_text(str(os.getpid()))
    for hook in filter(None, os.environ.get(_HOOKS, "").split("|")):
        only, at, call = hook.rpartition("@")
        name, _, argument = call.partition(":")
        if not at or only == rank:
            getattr(hooks, name)(out, argument)
