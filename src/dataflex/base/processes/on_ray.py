"""Commands of ours as tasks of a Ray cluster, where there is room for them. All nodes need this environment and the same disk."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from dataflex.base.processes.children import exit_status_of, parent_is, python
from dataflex.base.processes.side_by_side import Command
from dataflex.base.processes.stopping import take_signals
from dataflex.errors import ConfigError
from dataflex.values import truth

# Of the node, not of the command that asks.
_OF_THE_NODE = ("RAY_", "CUDA_VISIBLE_DEVICES", "LOCAL_RANK", "USE_RAY", "PATH", "HOME", "HOSTNAME", "TMPDIR")
_LOST = 1  # status of a command whose node is gone


def wanted_on_ray() -> bool:
    """ConfigError where Ray is asked for and not installed."""
    if not truth(os.getenv("USE_RAY"), "USE_RAY"):
        return False
    if find_spec("ray") is None:
        raise ConfigError("USE_RAY: the package ray is not installed; it comes with the extra ray (dataflex[ray])")
    return True


class Cluster:
    """A Ray cluster: that of RAY_ADDRESS, else one on this machine that ends with this process.

    Args:
        gpus: Of each command; None: there must be no GPU.
    """

    def __init__(self, gpus: int | None) -> None:
        import ray

        try:
            ray.init(log_to_driver=False, include_dashboard=False if "RAY_ADDRESS" not in os.environ else None)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(f"RAY_ADDRESS: Ray cannot be started or reached ({error})") from error
        take_signals()  # Ray has handlers of its own
        if gpus is None and ray.cluster_resources().get("GPU"):
            raise ConfigError("--gpus: the Ray cluster has GPUs; say how many each run takes")
        self._node = ray.remote(num_cpus=1, num_gpus=gpus or 0, max_concurrency=2)(_Node)

    def start(self, command: Command, _: Mapping[str, str]) -> RayChild:
        """Ray says where, so the place that `run_side_by_side` gives is left aside."""
        command.log.parent.mkdir(parents=True, exist_ok=True)
        own = {name: value for name, value in os.environ.items() if not name.startswith(_OF_THE_NODE)}
        return RayChild(self._node.remote(), command, {**own, **command.env, "USE_RAY": "0"})


class RayChild:
    """As much of a Popen as `run_side_by_side` uses."""

    def __init__(self, node: Any, command: Command, env: Mapping[str, str]) -> None:
        self._node = node
        self._code: int | None = None
        self._status = node.run.remote(list(command.arguments), str(command.log), dict(env), os.getcwd())

    def poll(self) -> int | None:
        return self._look(0.0)

    def wait(self, timeout: float | None = None) -> int:
        found = self._look(timeout)
        if found is None:
            raise subprocess.TimeoutExpired("ray", timeout or 0.0)
        return found

    def send_signal(self, number: int) -> None:
        self._node.stop.remote(int(number))

    def kill(self) -> None:
        """With the process of the node its child ends."""
        import ray

        ray.kill(self._node)

    def _look(self, timeout: float | None) -> int | None:
        import ray

        if self._code is None and ray.wait([self._status], timeout=timeout)[0]:
            try:
                self._code = int(ray.get(self._status))
            except ray.exceptions.RayError:
                self._code = _LOST
        return self._code


class _Node:
    """Runs one command on the node where Ray puts it."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._stopped: int | None = None

    def run(self, arguments: list[str], log: str, env: dict[str, str], folder: str) -> int:
        """Its exit status."""
        if self._stopped is not None:
            return exit_status_of(-self._stopped)
        with open(log, "ab") as output:
            self._child = subprocess.Popen(
                python("-m", "dataflex", *arguments),
                env={**os.environ, **env, **parent_is(os.getpid())},
                cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
        return exit_status_of(self._child.wait())

    def stop(self, number: int) -> None:
        self._stopped = number or signal.SIGTERM
        for _ in range(50):  # it may be about to start
            if self._child is not None:
                self._child.send_signal(number)
                return
            time.sleep(0.1)
