"""Several nodes under torchrun: what goes wrong on one of them ends all, each with a line that says what it was.

torchrun stops the ranks of the node on which one has failed, and no others: these would wait for it as long as the backend
lets them. So a rank that fails says so in the store that torchrun keeps for the ranks, and every rank has an eye on it.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from dataflex.errors import DataflexError
from dataflex.notices import first_line

_EVERY = 1.0  # seconds between two polls
_GRACE = 10.0  # seconds for the other nodes to hear of it before the store is closed
_MISSED = 3  # polls in a row without a store, after which its node counts as gone
_FAILED, _HEARD = "failed", "heard"  # keys of the store


class Reported(DataflexError):
    """The failure of another rank."""

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status


def several_nodes() -> bool:
    """Whether this process is a rank of several nodes. With restarts torchrun starts all nodes anew by itself."""
    env = os.environ
    on_this_node, all_ranks = env.get("LOCAL_WORLD_SIZE", "1"), env.get("WORLD_SIZE", "1")
    return "TORCHELASTIC_RUN_ID" in env and on_this_node != all_ranks and env.get("TORCHELASTIC_MAX_RESTARTS") == "0"


def watch(end: Callable[[DataflexError], None]) -> Callable[[], None]:
    """Call `end`, in a thread, once another rank has failed or the store is gone. Returns what stops the watch."""
    import torch.distributed  # noqa: F401  # not in a thread: two that import it at once have aborted

    stopped = threading.Event()

    def poll() -> None:
        store, connected, missed = None, False, 0
        while not stopped.wait(_EVERY):
            try:
                store = store or _store()
                connected, missed = True, 0
                if not store.check([_FAILED]):
                    continue
                failure = json.loads(store.get(_FAILED))
                store.add(_HEARD, 1)
            except Exception as error:  # of torch's own kinds
                store, missed = None, missed + 1
                if not connected or missed < _MISSED:  # the store is not there yet, or a connection was lost
                    continue
                failure = {"message": f"the node at {_address()} has ended; its output says why ({first_line(error)})"}
            if not stopped.is_set():
                end(Reported(failure["message"], failure.get("status", 1)))
            return

    threading.Thread(target=poll, daemon=True).start()
    return stopped.set


def report_failure(message: str, status: int, *, listeners: int) -> None:
    """Report that this node has failed, unless another one has done so before, and wait until all others know."""
    try:
        store = _store(_GRACE)
        failure = json.dumps({"message": message, "status": status})
        if store.compare_set(_FAILED, "", failure).decode() != failure:
            store.add(_HEARD, 1)
            return
        begin = time.monotonic()
        while store.add(_HEARD, 0) < listeners and time.monotonic() < begin + _GRACE:
            time.sleep(0.1)
    except RuntimeError:  # the store is gone, and its node with it
        return


def wait_for_report() -> None:
    """A rank is gone. If its node reports a failure, the watch ends this process."""
    time.sleep(_GRACE)


def reported_failure() -> tuple[str, int] | None:
    """The message of another node that has failed, and the exit status it asks for; None if there is none."""
    try:
        store = _store(_GRACE)
        if not store.check([_FAILED]):
            return None
        failure = json.loads(store.get(_FAILED))
        store.add(_HEARD, 1)
    except Exception:  # of torch's own kinds: the store is gone
        return None
    return failure["message"], failure.get("status", 1)


def wait_for_readers() -> None:
    """Before the store is closed: ranks of other nodes have yet to read it."""
    time.sleep(2 * _EVERY)


def _address() -> str:
    return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"


def _store(timeout: float = 30) -> Any:
    from torch.distributed import PrefixStore, TCPStore

    host, port = _address().rsplit(":", 1)
    store = TCPStore(host, int(port), is_master=False, timeout=timedelta(seconds=timeout), wait_for_workers=False)
    run = os.environ.get("TORCHELASTIC_RUN_ID") or os.environ.get("RDZV_ID") or "none"
    return PrefixStore(f"dataflex/{run}", store)
