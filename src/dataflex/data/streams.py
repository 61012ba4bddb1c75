"""Data too large to index: a stream of samples per domain, read in blocks that are shuffled within themselves.

A block is `rows_per_block` raw rows in sequence, made into samples in one call, so packing stays within it. Its samples
are served in a permutation keyed by (seed, domain, epoch, block). So the n-th sample of a domain is a function of the
data and of n. The plan says which domain serves at which position, as for rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import xxhash

from dataflex.errors import ConfigError, DataflexError
from dataflex.plan.permutation import Permutation, Purpose, derive_key
from dataflex.plan.plan import Domains

# Samples a domain may serve. The id of domain d's n-th sample is d * STREAM + n, which a float64 holds for 8192 domains.
STREAM = 1 << 40

Sample = dict[str, Any]


class Source(Protocol):
    """The raw rows of one data set in an order that does not change, and what samples they make."""

    def seek(self, state: Mapping[str, Any] | None) -> None:
        """Go to where `state` was taken; None: to the first row."""

    def state(self) -> dict[str, Any]:
        """Where the next row is, as JSON."""

    def read(self, count: int) -> list[dict[str, Any]]:
        """The next rows; fewer than `count` only at the end."""

    def samples(self, rows: list[dict[str, Any]]) -> list[Sample]:
        """What the rows of a block make: any number of samples, in an order that does not change."""


@dataclass(frozen=True)
class StreamPosition:
    """Where a stream stands between two blocks. Checkpoints store it under the key `place`."""

    epoch: int = 0
    """The epoch of the next block."""
    block: int = 0
    """The next block in the epoch."""
    rows: int = 0
    """Raw rows of the epoch before it."""
    samples: int = 0
    """Samples of all blocks before it, also of earlier epochs."""
    state: dict[str, Any] | None = None
    """The source's own state; None: its first row."""


@dataclass(frozen=True)
class Block:
    """Samples in the order in which they are served."""

    begin: StreamPosition
    """The position before the block."""
    end: StreamPosition
    """The position after it."""
    digest: str
    """A hash of its raw rows."""
    samples: list[Sample]


class BlockReader:
    """The blocks of one domain, one after the other, without end: after the last row the next epoch begins.

    Blocks without a sample are passed over. DataflexError if the data cannot be read, or an epoch has no sample at all.
    """

    def __init__(
        self, source: Source, name: str, domain: int, rows_per_block: int, seed: int, *, shuffle: bool = True
    ) -> None:
        self.source, self.name, self.domain = source, name, domain
        self.rows_per_block, self.seed, self.shuffle = rows_per_block, seed, shuffle
        self._next: StreamPosition | None = None

    def seek(self, begin: StreamPosition) -> None:
        """Read on from `begin`. Nothing is opened before the first block is asked for."""
        self._next, self._opened, self._barren = begin, False, 0

    def next(self) -> Block:
        assert self._next is not None
        while True:
            begin = self._next
            try:
                if not self._opened:
                    self.source.seek(begin.state)
                    self._opened = True
                rows = self.source.read(self.rows_per_block)
                samples = self.source.samples(rows) if rows else []
            except DataflexError:
                raise
            except Exception as error:  # of the file system, the network, or a row that LLaMA-Factory cannot take
                raise DataflexError(
                    f"dataset: {self.name!r} cannot be read after row {begin.rows} ({type(error).__name__}:"
                    f" {' '.join(str(error).split())})"
                ) from error
            if not rows:
                self._barren += 1
                if self._barren > 1:
                    raise ConfigError(
                        f"dataset: no row of {self.name!r} is left after tokenization, in blocks of {self.rows_per_block}"
                        " (dataflex.mix.stream_block)"
                    )
                self._next, self._opened = StreamPosition(begin.epoch + 1, samples=begin.samples), False
                continue
            end = StreamPosition(
                begin.epoch, begin.block + 1, begin.rows + len(rows), begin.samples + len(samples), self.source.state()
            )
            self._next = end
            if samples:
                self._barren = 0
                order = self._order(len(samples), begin)
                return Block(begin, end, digest(rows), [samples[i] for i in order])

    def _order(self, n: int, begin: StreamPosition) -> np.ndarray:
        served = np.arange(n, dtype=np.int64)
        if not self.shuffle:
            return served
        return Permutation(n, derive_key(self.seed, Purpose.STREAM_ORDER, self.domain, begin.epoch, begin.block))(
            served
        )


def digest(rows: list[dict[str, Any]]) -> str:
    """A hash of raw rows; of what is not JSON (an image, say) the type alone."""
    found = xxhash.xxh3_128()
    for row in rows:
        found.update(json.dumps(row, sort_keys=True, default=lambda value: type(value).__name__).encode())
    return found.hexdigest()


class Cursor:
    """The samples that a run has taken of one stream.

    Args:
        blocks: Gives the next block.
        saved: The `state` of a checkpoint.
    """

    def __init__(self, name: str, blocks: Callable[[], Block], saved: Mapping[str, Any] | None = None) -> None:
        self.name, self.blocks = name, blocks
        self._saved = saved
        self._block: Block | None = None
        self._offset = 0

    @staticmethod
    def begin_of(saved: Mapping[str, Any] | None) -> StreamPosition:
        """The begin of the block that a saved state is in."""
        return StreamPosition() if saved is None else StreamPosition(**saved["place"])

    def take(self, number: int) -> Sample:
        """Sample `number` of the stream, counted from 0; they must be taken one after the other."""
        if self._block is None:
            self._block = self.blocks()
            if self._saved is not None:
                self._offset = int(self._saved["offset"])
                if self._saved["digest"] not in (None, self._block.digest):
                    begin = self._block.begin
                    raise ConfigError(
                        f"cannot resume: the rows of {self.name!r} after row {begin.rows} are not those the run was reading"
                    )
        while self._offset >= len(self._block.samples):
            self._offset -= len(self._block.samples)
            self._block = self.blocks()
        if self._block.begin.samples + self._offset != number:
            raise DataflexError(
                f"the stream {self.name!r} is at sample {self._block.begin.samples + self._offset} instead of {number}"
            )
        self._offset += 1
        return self._block.samples[self._offset - 1]

    def state(self) -> dict[str, Any]:
        """As JSON: the position of the current block, how many of its samples were taken, and its digest."""
        if self._block is None:
            return (
                dict(self._saved) if self._saved else {"place": asdict(StreamPosition()), "offset": 0, "digest": None}
            )
        if self._offset == len(self._block.samples):
            return {"place": asdict(self._block.end), "offset": 0, "digest": None}
        return {"place": asdict(self._block.begin), "offset": self._offset, "digest": self._block.digest}

    @property
    def epoch(self) -> int:
        """How often the stream was read to its end."""
        return self.begin_of(self.state()).epoch


class Streams:
    """The data of a run that is not indexed: a source per domain. It replaces `Rows`, but has no length.

    Attributes:
        sizes: Rows of each domain; 0 where unknown.
        facts: Facts that identify the sources, as flat keys.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        names: Sequence[str],
        *,
        rows_per_block: int,
        sizes: Sequence[int],
        facts: Mapping[str, Any],
    ) -> None:
        self.sources, self.rows_per_block, self.sizes, self.facts = list(sources), rows_per_block, tuple(sizes), facts
        self.domains = Domains(tuple(names), (STREAM,) * len(names))

    def readers(self, seed: int, *, shuffle: bool) -> list[BlockReader]:
        return [
            BlockReader(source, name, d, self.rows_per_block, seed, shuffle=shuffle)
            for d, (source, name) in enumerate(zip(self.sources, self.domains.names, strict=True))
        ]
