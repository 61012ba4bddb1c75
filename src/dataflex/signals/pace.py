"""Cuts a measurement into pieces of about two minutes, at the same rounds on every rank.

A piece is a number of rounds, and batches do not depend on it. So the value of a row does not depend on pieces either.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist

from dataflex.distributed.collectives import ranks

# A piece ends with the first of these that it comes to. Tokens bound the memory that its values take.
PIECE_SECONDS = 120.0
PIECE_TOKENS = 1 << 21

clock = time.monotonic


class Piece:
    """The rounds from `begin` on; iterating yields the number of each, to be made before the next is asked for. end: where it
    ended, once it has been iterated over; at the latest at `most`.

    Rank 0's clock counts, and the other ranks are told. It is looked at after 1, 2, 4, ... rounds, and as many rounds as have
    been made are made before the next look, or as many as there is time for.
    """

    def __init__(self, begin: int, most: int, device: torch.device | None) -> None:
        self.begin, self.most, self.device = begin, most, device
        self.end = begin

    def __iter__(self) -> Iterator[int]:
        started, ahead = clock(), 1 if self.device is not None else self.most
        while ahead and self.end < self.most:
            for number in range(self.end, min(self.end + ahead, self.most)):
                yield number
                self.end = number + 1
            if self.device is not None and self.end < self.most:
                ahead = _told(_ahead(self.end - self.begin, clock() - started), self.device)


def pieces(tokens: np.ndarray, device: torch.device | None) -> Iterator[Piece]:
    """The pieces of a measurement. Each must be iterated over to its end before the next.

    Args:
        tokens: Tokens of each round, int64[n].
        device: Device of the values, by which ranks communicate; None: all is one piece.
    """
    ends, begin = np.cumsum(tokens), 0
    while begin < len(tokens):
        most = len(tokens)
        if device is not None:
            before = ends[begin - 1] if begin else 0
            most = min(most, int(np.searchsorted(ends, before + PIECE_TOKENS)) + 1)
        piece = Piece(begin, most, device)
        yield piece
        begin = piece.end


def _ahead(made: int, seconds: float) -> int:
    """Rounds to make before the next look at the clock, after so many in so many seconds; 0: the piece is over."""
    if seconds <= 0:
        return made if PIECE_SECONDS > 0 else 0
    return min(made, max(0, int((PIECE_SECONDS - seconds) * made / seconds)))


def _told(value: int, device: torch.device) -> int:
    """Rank 0's value, on every rank."""
    if ranks() == 1:
        return value
    box = torch.tensor([value], device=device)
    dist.broadcast(box, src=0)
    return int(box)
