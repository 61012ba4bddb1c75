"""SIGINT (Ctrl-C) and SIGTERM end a command in one line: where it stopped, and what the same command does next.

The exit status is 130 or 143. Files are closed and put away as after any other error.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

from dataflex import notices

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_NOTHING = "stopped"
_ONCE = 5.0  # seconds in which a signal that comes again is the same one, from the terminal and from a parent


class Stopped(KeyboardInterrupt):
    """Raised in the main thread by the first signal."""


@dataclass
class _State:
    """What the handlers know."""

    owner: int = 0
    """The process that they are for."""
    signum: int | None = None
    """The signal that has come."""
    at: float = 0.0
    """When it came, on the monotonic clock."""
    line: Callable[[], str] = lambda: _NOTHING
    """Gives the line that is printed then."""


_state = _State()


def on_stop(line: Callable[[], str]) -> None:
    """From here on, a stop is told by what `line` gives."""
    _state.line = line


def stoppable(run: Callable[[], int], *, last: bool = False) -> int:
    """Exit status of `run`; 128 and the number of the signal if one has stopped it. last: the process does nothing after it.

    A signal that the caller of this process ignores (as with nohup, or in the background) stays ignored. A rank of several
    dies of a signal at once: it may wait for others in a collective, from which nothing wakes it. Its launcher has the line.
    """
    if threading.current_thread() is not threading.main_thread():
        return run()
    before, unraisable = {s: signal.getsignal(s) for s in _SIGNALS}, sys.unraisablehook
    _state.owner, _state.signum = os.getpid(), None
    on_stop(lambda: _NOTHING)
    take_signals()
    if last:
        atexit.register(_ignore_signals)  # early, so it is called late
    try:
        status = run()
    except BaseException:
        if _state.signum is None:
            raise
    finally:
        if not last:
            sys.unraisablehook = unraisable
        for number, handler in before.items():
            ended = last and _state.signum is not None  # nothing is left but to end; another signal does it at once
            signal.signal(number, _end_at_once if ended else handler or signal.SIG_DFL)
        _state.owner = 0
    if _state.signum is None:
        return status
    _say()
    return exit_status(_state.signum)


def take_signals() -> None:
    """Install the handlers, again where a library has put its own in their place. Nothing outside `stoppable`."""
    if os.getpid() != _state.owner:
        return
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL if "LOCAL_RANK" in os.environ else _handle)


def stop(signum: int) -> None:
    """Stop as if the signal had come to a handler of this module: another one has caught it."""
    _state.signum = _state.signum or signum
    raise Stopped


def received() -> int | None:
    """The signal that has come."""
    return _state.signum


def exit_status(signum: int) -> int:
    return 128 + signum


def _handle(signum: int, frame: FrameType | None) -> None:
    if os.getpid() != _state.owner:  # a process forked from this one, which this one ends
        if signum == signal.SIGTERM:
            os._exit(exit_status(signum))
        return
    if _state.signum is None:
        _state.signum, _state.at = signum, time.monotonic()
        sys.unraisablehook = _unsaid
        raise Stopped
    if time.monotonic() < _state.at + _ONCE:
        return
    _say()  # a second time: what is being put away is left
    os._exit(exit_status(_state.signum))


def _unsaid(_: object) -> None:
    """What is met where things are put away, such as loader workers that the signal has ended too."""


def _end_at_once(signum: int, frame: FrameType | None) -> None:
    """After the line has been said: something that is waited for at the end does not end."""
    if time.monotonic() >= _state.at + _ONCE:
        os._exit(exit_status(_state.signum or signum))


def _ignore_signals() -> None:
    """At the very end Python puts its default handlers back. The same signal, sent again by a parent, would kill this process
    then, after it has said its line."""
    if _state.signum is not None:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def _say() -> None:
    try:
        line = _state.line()
    except Exception:  # the line must not stand in the way
        line = _NOTHING
    if line:
        notices.tell(line)
