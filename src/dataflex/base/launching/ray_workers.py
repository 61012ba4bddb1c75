"""A run on Ray: LLaMA-Factory's own driver, which starts the workers, and its worker with our training in it."""

from __future__ import annotations

import os
import pickle
import re
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from llamafactory.hparams import get_ray_args
from llamafactory.train import tuner
from ray.exceptions import RayError, RayTaskError

from dataflex.base import seams
from dataflex.base.checks.arguments import check_arguments
from dataflex.base.processes.stopping import take_signals
from dataflex.base.refusals import refusals
from dataflex.config import RunConfig
from dataflex.distributed.collectives import lost_contact
from dataflex.errors import ConfigError, DataflexError
from dataflex.notices import first_line, say

# Seconds in which Ray notices that a worker has died. Others notice sooner that it is gone, but not why.
_NOTICED = 5
_ACTOR = re.compile(r"dataflex-\w+-rank-(\d+)")


def train_on_ray(config: RunConfig) -> None:
    """Run one training on workers of a Ray cluster, which is started if there is none; nothing of it is left afterwards."""
    config = check_arguments(config, writes=False)
    seams.check(on_ray=True)
    say(*config.notices)
    with refusals():
        arguments = get_ray_args(dict(config.llamafactory))
    try:
        sent = pickle.dumps(replace(config, notices=()))
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise ConfigError(f"dataflex: a component cannot be sent to the workers of Ray: {error}") from None
    _connect(arguments.ray_init_kwargs or {})
    take_signals()  # Ray has handlers of its own
    try:
        with _errors_in_one_line(), seams.replaced(*_driver()):
            tuner._ray_training_function(arguments, config={"run": sent, "folder": os.getcwd()})
    finally:
        ray.shutdown()


class Worker(tuner.Worker):  # type: ignore[misc]
    """A rank, in a process of Ray's."""

    def _training_function(self, config: dict[str, Any]) -> None:
        _enter(config["folder"])
        from dataflex.base.commands.train import train

        try:
            train(_unpacked(config["run"]))
        except RuntimeError as error:
            if lost_contact(error):  # Ray's account of the death of another rank says more
                time.sleep(_NOTICED)
            raise


def _enter(folder: str) -> None:
    """Relative paths are meant from where the command was given, unless Ray was told to work elsewhere."""
    if not ray.get_runtime_context().runtime_env.get("working_dir") and Path(folder).is_dir():
        os.chdir(folder)


def _unpacked(sent: bytes) -> RunConfig:
    try:
        return pickle.loads(sent)  # type: ignore[no-any-return]
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"a component cannot be imported on a worker of Ray ({error}); install its package there, or name it in"
            " ray_init_kwargs: {runtime_env: {py_modules: [...]}}"
        ) from None


def _connect(given: dict[str, Any]) -> None:
    if ray.is_initialized():
        return
    try:
        ray.init(**given)
    except Exception as error:  # of many kinds, down to TypeError for an unknown key
        raise ConfigError(
            f"ray_init_kwargs: Ray cannot be started or reached with its keys {', '.join(given) or '(none)'}"
            f" ({first_line(error)})"
        ) from error


def _driver() -> list[tuple[str, str, Any]]:
    """What LLaMA-Factory's driver is to find instead of its own."""
    module, token = "llamafactory.train.tuner", uuid.uuid4().hex[:8]
    reserve, settings = tuner.get_placement_group, tuner.get_ray_remote_config_for_worker

    def get_placement_group(devices: int) -> Any:
        group, bundle = reserve(devices)
        there = ray.cluster_resources()
        for name, each in bundle.items():
            if each * group.bundle_count > there.get(name, 0):  # LLaMA-Factory would wait for ever
                raise ConfigError(
                    f"ray_num_workers: LLaMA-Factory reserves {each} {name} for each of the {group.bundle_count} devices of"
                    f" the Ray cluster, and it has {there.get(name, 0):g}; give its nodes more with num_cpus"
                )
        return group, bundle

    def get_ray_remote_config_for_worker(*, rank: int, **given: Any) -> dict[str, Any]:
        return {**settings(rank=rank, **given), "name": f"dataflex-{token}-rank-{rank}"}

    return [
        (module, "Worker", Worker),
        (module, "get_placement_group", get_placement_group),
        (module, "get_ray_remote_config_for_worker", get_ray_remote_config_for_worker),
        (module, "get_ray_head_node_ip", _head_address),
    ]


def _head_address() -> str:
    """LLaMA-Factory asks Ray's dashboard, which comes with `ray[default]` alone."""
    for node in ray.nodes():
        if node["Alive"] and "node:__internal_head__" in node["Resources"]:
            return str(node["NodeManagerAddress"])
    raise ConfigError("master_addr: the Ray cluster has no head node; name the address of a node")


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    """What goes wrong on a worker, or with one, without Ray's account of its own workings."""
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, DataflexError):
            raise error.cause from None
        sys.stderr.write(f"{error}\n")  # a fault to be found: the worker's traceback
        raise DataflexError(f"a worker of Ray failed: {first_line(error.cause)}") from None
    except RayError as error:
        raise DataflexError(_death(str(error), first_line(error))) from None
    except ValueError as error:  # LLaMA-Factory's own: too few devices, an address that is not in the cluster
        raise ConfigError(f"ray_num_workers, master_addr: {error}") from None


def _death(account: str, otherwise: str) -> str:
    actor = _ACTOR.search(account)
    if actor is None:
        return f"Ray failed: {otherwise}"
    if missing := re.search(r"ModuleNotFoundError: (.*)", account):
        return f"a worker of Ray cannot start ({missing[1].strip()}); dataflex must be installed on every node"
    fields = dict(re.findall(r"^\s*(pid|ip): (\S+)$", account, re.MULTILINE))
    reason = re.search(r"Worker exit detail: (.*?)(?:\. |$)", account, re.MULTILINE)
    where = ", ".join(f"{key} {fields[key]}" for key in ("ip", "pid") if key in fields)
    return f"rank {actor[1]} has died{f' ({where})' if where else ''}{f': {reason[1]}' if reason else ''}"
