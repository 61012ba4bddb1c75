"""Commands of ours that run side by side, each in a process of its own. They stop with this process, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from dataflex.base.processes import stopping
from dataflex.base.processes.children import exit_status_of, parent_is, python

_LOOK = 0.05  # seconds between two looks at the children
_PATIENCE = 60.0  # seconds for all children to end that have been asked to


@dataclass(frozen=True)
class Command:
    """A command line of this package, and the file that its output is added to."""

    name: str
    arguments: tuple[str, ...]
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)


class Child(Protocol):
    """As much of a Popen as is used here."""

    def poll(self) -> int | None: ...

    def send_signal(self, number: int) -> None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def kill(self) -> None: ...


def run_side_by_side(
    commands: Iterable[Command],
    at_once: int,
    ended: Callable[[Command, int], None],
    slots: Callable[[int], Mapping[str, str]] = lambda slot: {},
    begin: Callable[[Command, Mapping[str, str]], Child] | None = None,
) -> None:
    """Run all commands, at most `at_once` at a time. A signal that stops this process stops them too.

    Args:
        commands: The next one is asked for when there is a place for it.
        ended: Called with a command and its exit status when it is over.
        slots: The environment of the place that a command takes, from 0 to at_once - 1.
        begin: Starts a command with the environment of its place; None: on this machine.
    """
    begin = begin or start
    waiting, running = iter(commands), dict[int, tuple[Command, Child]]()
    try:
        while True:
            for slot in range(at_once):
                if slot not in running and (command := next(waiting, None)) is not None:
                    running[slot] = command, begin(command, slots(slot))
            if not running:
                return
            over = {slot: child.poll() for slot, (_, child) in running.items() if child.poll() is not None}
            for slot, code in over.items():
                command, _ = running.pop(slot)
                ended(command, exit_status_of(code or 0))
            if not over:
                time.sleep(_LOOK)
    except stopping.Stopped:
        _stop([child for _, child in running.values()])
        raise
    finally:
        for _, child in running.values():
            if child.poll() is None:
                child.kill()
                child.wait()


def start(command: Command, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Started by the main thread: the kernel ends a child with the thread that has started it."""
    command.log.parent.mkdir(parents=True, exist_ok=True)
    with command.log.open("ab") as log:
        return subprocess.Popen(
            python("-m", "dataflex", *command.arguments),
            env={**os.environ, **command.env, **env, **parent_is(os.getpid())},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _stop(children: list[Child]) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(stopping.received() or signal.SIGTERM)
    until = time.monotonic() + _PATIENCE
    for child in children:
        try:
            child.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            continue
