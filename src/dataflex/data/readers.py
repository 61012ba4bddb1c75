"""Who reads the blocks of streams: this process when one is needed, or processes that read ahead."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch

from dataflex.data.streams import Block, BlockReader
from dataflex.errors import ConfigError, DataflexError

_SECONDS = 5.0  # between two looks whether the parent still lives


class ReadHere:
    def __init__(self, readers: Sequence[BlockReader]) -> None:
        self.readers = readers

    def next(self, domain: int) -> Block:
        return self.readers[domain].next()

    def close(self) -> None:
        """Nothing to end."""


class ReadAhead:
    """Processes that read one block of each stream ahead. Process w of `count` holds the streams d with d % count == w.

    The samples of a domain do not depend on when they are read.
    """

    def __init__(self, readers: Sequence[BlockReader], count: int) -> None:
        context: Any = multiprocessing.get_context()
        count = min(count, len(readers))
        self._names = [reader.name for reader in readers]
        self._ready: list[deque[Block | DataflexError]] = [deque() for _ in readers]
        self._pipes, self._processes = [], []
        for w in range(count):
            ours, theirs = context.Pipe()
            held = {d: reader for d, reader in enumerate(readers) if d % count == w}
            process = context.Process(target=_serve, args=(held, theirs, os.getpid()), daemon=True)
            process.start()
            theirs.close()  # so that the end of the process is the end of what it says
            self._pipes.append(ours)
            self._processes.append(process)
        for d in range(len(readers)):
            self._pipe(d).send(d)

    def _pipe(self, domain: int) -> Any:
        return self._pipes[domain % len(self._pipes)]

    def next(self, domain: int) -> Block:
        try:
            while not self._ready[domain]:
                found, answer = self._pipe(domain).recv()
                self._ready[found].append(answer)
            self._pipe(domain).send(domain)
        except (EOFError, OSError):
            raise DataflexError(f"the process that reads {self._names[domain]!r} has ended") from None
        answer = self._ready[domain].popleft()
        if isinstance(answer, DataflexError):  # not before the block it stands for is needed
            raise answer
        return answer

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.terminate()
            process.join()


def _serve(readers: dict[int, BlockReader], pipe: Any, parent: int) -> None:
    """Answer each domain asked for with (domain, its next block), or with the error in the place of the block."""
    torch.set_num_threads(1)
    try:
        import fsspec.asyn

        fsspec.asyn.reset_lock()  # a lock of the parent's event loop, which is not here
    except ImportError:
        pass
    try:
        while True:
            while not pipe.poll(_SECONDS):
                if os.getppid() != parent:
                    return
            domain = pipe.recv()
            answer: Block | DataflexError
            try:
                answer = readers[domain].next()
            except ConfigError as error:
                answer = ConfigError(str(error))
            except DataflexError as error:
                answer = DataflexError(str(error))
            pipe.send((domain, answer))
    except (EOFError, OSError, KeyboardInterrupt):
        return
