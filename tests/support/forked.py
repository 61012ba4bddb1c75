"""Commands that `compare` runs side by side, in forks of the warmed-up parent instead of new interpreters."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from typing import Any

import harness

from dataflex.base.processes.side_by_side import Command


class Forked:
    """As much of a Popen as `run_side_by_side` uses."""

    def __init__(self, command: Command, env: Mapping[str, str], hooks: list[str]) -> None:
        command.log.parent.mkdir(parents=True, exist_ok=True)
        log, settings = str(command.log), {**command.env, **env}
        self._process = harness.child(command.arguments, command.log.parent, log, settings, hooks)
        self._process.start()

    def poll(self) -> Any:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def wait(self, timeout: float | None = None) -> Any:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("forked", timeout or 0)
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()


class Starts:
    """Stands for `side_by_side.start`, and knows what it has started.

    hooks: by the name of a command. everywhere: hooks of all."""

    def __init__(self, hooks: Mapping[str, list[str]] | None = None) -> None:
        self.hooks, self.everywhere, self.names = dict(hooks or {}), list[str](), list[str]()
        self.arguments: dict[str, tuple[str, ...]] = {}

    def __call__(self, command: Command, env: Mapping[str, str]) -> Any:
        self.names.append(command.name)
        self.arguments[command.name] = command.arguments
        return Forked(command, env, [*self.everywhere, *self.hooks.get(command.name, [])])
