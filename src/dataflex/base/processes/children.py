"""Processes that a command starts: they do not outlive it, do not look for modules in the working directory, and stop with it."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

from dataflex.base.processes import stopping

_PARENT = "DATAFLEX_PARENT"
_SET_PDEATHSIG = 1  # linux/prctl.h
_PATIENCE = 60.0  # seconds for a child to end that has been asked to


def python(*arguments: str) -> list[str]:
    """A command line of this interpreter. -P: a file in the working directory does not stand in for a module."""
    return [sys.executable, "-P", *arguments]


def parent_is(process: int) -> dict[str, str]:
    """What a child of the process `process` has to find in its environment to die with it."""
    return {_PARENT: str(process)}


def die_with_parent() -> None:
    """If a command of ours has started this process, SIGKILL it once that one is gone. On Linux alone.

    It would go on training, and the same command, given again, would start a second one beside it."""
    parent = os.environ.pop(_PARENT, None)
    if parent is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):  # it was gone before
        os._exit(1)


def run(arguments: Sequence[str], env: Mapping[str, str] | None = None, *, ours: bool = True) -> int:
    """Exit status of a command line of Python, in a process of its own. ours: it is a command of this package.

    A signal that stops this process stops the child too, which says so itself."""
    child = subprocess.Popen(python(*arguments), env={**os.environ, **(env or {})})
    try:
        return exit_status_of(child.wait())
    except stopping.Stopped:
        received = stopping.received() or signal.SIGTERM
        if (
            ours or received != signal.SIGINT
        ):  # which another program has from the terminal, and would take for a second one
            child.send_signal(received)
        try:
            ended = child.wait(_PATIENCE) >= 0
        except subprocess.TimeoutExpired:
            ended = False
        if ended:
            stopping.on_stop(lambda: "")
        raise
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()


def exit_status_of(code: int) -> int:
    return code if code >= 0 else stopping.exit_status(-code)
