"""The few things ranks say to each other. One process: no communication."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from dataflex.errors import DataflexError

T = TypeVar("T")


def ranks() -> int:
    """1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if ranks() > 1 else 0


def decide(make: Callable[[], T]) -> T:
    """Run `make` on rank 0, and give its result to all ranks.

    A DataflexError is raised on every rank. After any other error, the other ranks raise one too, so that none waits
    forever.
    """
    if ranks() == 1:
        return make()
    box: list[Any] = [None, None]
    if rank() == 0:
        try:
            box[0] = make()
        except DataflexError as error:
            box[1] = error
        except Exception as error:
            dist.broadcast_object_list([None, DataflexError(f"rank 0 failed: {type(error).__name__}: {error}")], src=0)
            raise
    dist.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise box[1]
    return box[0]


def by_node(make: Callable[[], T]) -> list[tuple[str, T]]:
    """What `make` gives on the first rank of every node, with that rank's label, in rank order, on every rank. Errors are dealt
    with as by `decide`."""
    value: Any = None
    fault: Exception | None = None
    if os.environ.get("LOCAL_RANK", "0") == "0" or rank() == 0:
        try:
            value = (rank_label(), make())
        except DataflexError as error:
            value = error
        except Exception as error:
            value, fault = DataflexError(f"{rank_label()} failed: {type(error).__name__}: {error}"), error
    found = [v for v in gather(value) if v is not None]
    if fault is not None:
        raise fault
    for other in found:
        if isinstance(other, DataflexError):
            raise other
    return found


def gather(value: T) -> list[T]:
    """Every rank's value, in rank order, on every rank."""
    if ranks() == 1:
        return [value]
    out: list[Any] = [None] * ranks()
    dist.all_gather_object(out, value)
    return out


def host() -> str:
    return socket.gethostname()


def rank_label() -> str:
    """How messages name this rank: `rank 3 (host-b)`."""
    return f"rank {rank()} ({host()})"


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The element-wise sum, on every rank; the input is left alone."""
    total = values.clone()
    add_over_ranks(total)
    return total


def add_over_ranks(values: torch.Tensor) -> None:
    """Makes each element the sum over ranks, in place."""
    if ranks() > 1:
        dist.all_reduce(values)


def gather_rows(values: torch.Tensor) -> torch.Tensor:
    """Concatenate equally shaped tensors over ranks along the first dimension."""
    if ranks() == 1:
        return values
    out = torch.empty((ranks() * values.shape[0], *values.shape[1:]), dtype=values.dtype, device=values.device)
    dist.all_gather_into_tensor(out, values.contiguous())
    return out


def gather_ragged(values: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """As `gather_rows`, where ranks have different numbers of rows, counts."""
    if ranks() == 1 or not max(counts):
        return values
    padded = values.new_zeros((max(counts), *values.shape[1:]))
    padded[: len(values)] = values
    parts = gather_rows(padded).split(max(counts))
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def lost_contact(error: BaseException) -> bool:
    """Whether a collective failed because another rank is no longer there."""
    if isinstance(error, dist.DistError):
        return True
    said = str(error) if isinstance(error, RuntimeError) else ""
    return any(sign in said for sign in ("Connection closed by peer", "Connection reset by peer", "Broken pipe"))


def barrier() -> None:
    if ranks() > 1:
        dist.barrier()
