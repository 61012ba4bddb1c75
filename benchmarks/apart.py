"""Work in processes of its own, forked from one that has imported what runs need; several of them are the ranks of one run."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
_PRELOAD = (
    "datasets.formatting.torch_formatter",
    "llamafactory.train.tuner",
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.qwen2.tokenization_qwen2",
    "transformers.trainer_seq2seq",
    "dataflex.base.loading.data",
    "dataflex.base.commands.train",
    "dataflex.trainer",
)


def fresh(work: Callable[..., Any], *args: Any) -> Any:
    """What `work` gives in a process that nothing was imported or allocated in before."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, args)


def call(
    work: Callable[..., Any], *args: Any, log: Path, ranks: int = 1, threads: int = 1, killed: bool = False
) -> list[Any]:
    """What `work` gives on each rank. What it prints goes to `log`, with the number of the rank after the first.

    RuntimeError with the end of its log if one fails. killed: it is expected to kill itself, and gives nothing.
    """
    port, started = _free_port(), []
    for rank in range(ranks):
        env = {} if ranks == 1 else {
            "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        }  # fmt: skip
        own = log if rank == 0 else log.with_suffix(f".{rank}.log")
        started.append(start(work, *args, log=own, threads=threads, env=env))
    return answers(started, killed)


@dataclass
class Started:
    process: Any
    answer: Any
    log: Path


def start(
    work: Callable[..., Any], *args: Any, log: Path, threads: int = 1, env: dict[str, Any] | None = None
) -> Started:
    """Begin `work` in a process of its own; `answers` gives what it gives."""
    CONTEXT.set_forkserver_preload(list(_PRELOAD))
    log.parent.mkdir(parents=True, exist_ok=True)
    receive, send = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_child, args=(work, args, log, env or {}, threads, send))
    process.start()
    send.close()
    return Started(process, receive, log)


def answers(started: Sequence[Started], killed: bool = False) -> list[Any]:
    """What each of them gives; once one has failed, the others are ended: they may wait for it."""
    found: list[Any] = []
    try:
        found = [_answer(one, started) for one in started]
        return found
    except RuntimeError:
        if killed:
            return []
        raise
    finally:
        for one in started:
            one.process.join(30 if len(found) == len(started) else 0)
            one.process.kill()


def _answer(one: Started, started: Sequence[Started]) -> Any:
    pending = [s.process.sentinel for s in started]
    while True:
        ended = multiprocessing.connection.wait([one.answer, *pending])
        with contextlib.suppress(EOFError):  # its process has ended without one
            if one.answer in ended:
                return one.answer.recv()
        for other in started:
            other.process.join(1 if other.process.sentinel in ended or one.answer in ended else 0)
            if other.process.exitcode not in (None, 0):
                raise RuntimeError(f"a run failed with status {other.process.exitcode}:\n{end_of(other.log)}")
        pending = [s for s in pending if s not in ended]


def print_to(log: Path) -> None:
    """What this process and its libraries print from now on goes to `log`."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)


def end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-3000:] if log.is_file() else ""


def _child(work: Callable[..., Any], args: Any, log: Path, env: dict[str, Any], threads: int, answer: Any) -> None:
    print_to(log)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.environ.update({name: str(value) for name, value in env.items()})
    import torch

    torch.set_num_threads(threads)
    answer.send(work(*args))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        sys.stdout.flush()
        os._exit(0)  # the destructors of process groups now and then abort


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
