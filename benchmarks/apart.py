"""Work in processes of its own, forked from one that has imported what runs need; several of them are the ranks of one run."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
PRELOAD = (
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
    CONTEXT.set_forkserver_preload(list(PRELOAD))
    log.parent.mkdir(parents=True, exist_ok=True)
    port, processes, answers = _free_port(), [], []
    for rank in range(ranks):
        receive, send = CONTEXT.Pipe(duplex=False)
        env = {} if ranks == 1 else {
            "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        }  # fmt: skip
        own = log if rank == 0 else log.with_suffix(f".{rank}.log")
        processes.append(CONTEXT.Process(target=_child, args=(work, args, own, env, threads, send)))
        processes[-1].start()
        send.close()
        answers.append(receive)
    found = []
    try:
        for process, answer in zip(processes, answers, strict=True):
            multiprocessing.connection.wait([answer, process.sentinel])
            try:
                found.append(answer.recv())
            except EOFError:
                process.join()
                if not killed:
                    end = log.read_text(errors="replace")[-3000:] if log.is_file() else ""
                    raise RuntimeError(f"a run failed with status {process.exitcode}:\n{end}") from None
        return found
    finally:
        for process in processes:
            process.join(30 if len(found) == ranks else 0)
            process.kill()


def _child(work: Callable[..., Any], args: Any, log: Path, env: dict[str, Any], threads: int, answer: Any) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
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
