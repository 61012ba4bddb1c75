"""The data of a run as a pure function: sample id at position t = f(seed, ledger, t).

A *plan* is a seed, the domains, and an append-only list of *stages*. A stage says: from position `start` on, draw from
these pools in these proportions. It records the cursor and the remainder of every pool. So a position follows from its
own stage alone. Pure numpy, no torch, no I/O.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import ceil

import numpy as np

from .course import Shape
from .permutation import Permutation, Purpose, derive_key
from .quota import SCALE, Quota, normalise_carry, quantise
from .stages import Pool, Stage
from .token_quota import TokenQuota, honoured


@dataclass(frozen=True)
class Domains:
    """Source data sets, concatenated: sample ids [offset_d, offset_d + size_d) belong to domain d."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    offsets: np.ndarray = field(init=False, compare=False, repr=False)
    """First id of each domain and the total, int64[k + 1]."""

    def __post_init__(self) -> None:
        if len(self.names) != len(self.sizes) or not self.names:
            raise ValueError("one size per domain is needed")
        object.__setattr__(self, "offsets", np.concatenate([[0], np.cumsum(self.sizes, dtype=np.int64)]))

    @property
    def total(self) -> int:
        return int(sum(self.sizes))

    def __len__(self) -> int:
        return len(self.names)

    def of(self, ids: np.ndarray) -> np.ndarray:
        """Domain index of each sample id, int64."""
        return np.searchsorted(self.offsets, np.asarray(ids), side="right") - 1


class Plan:
    """f(seed, ledger, t). Its attributes hold everything but caches.

    A resumed run needs the stages from its position on. Earlier positions cannot be asked for.

    Attributes:
        shuffle: Whether pools are permuted; otherwise they are served as they are.
        lengths: Tokens of each row, int32[N], where proportions are shares of tokens; None: shares of samples.
        shape: What is laid over the epochs of pools that have a course.
        stages: The stages, ascending.
    """

    def __init__(
        self,
        domains: Domains,
        seed: int,
        *,
        shuffle: bool = True,
        lengths: np.ndarray | None = None,
        shape: Shape | None = None,
        stages: Sequence[Stage] = (),
    ) -> None:
        self.domains, self.seed, self.shuffle, self.shape = domains, seed, shuffle, shape
        if lengths is not None:
            lengths = np.asarray(lengths).astype(np.int32, copy=False)
            if lengths.min(initial=1) < 1:  # a row without a token counts as one: every position adds tokens
                lengths = np.maximum(lengths, 1)
        self.lengths = lengths
        self.stages: list[Stage] = list(stages)
        self._quotas: dict[tuple[Stage, bool], Quota] = {}
        self._permutations: dict[tuple[int, int, int, int], Permutation] = {}
        self._epochs: dict[tuple[Pool, int, int], np.ndarray] = {}

    # -- the whole data of a run -------------------------------------------------------------------------------------

    def merged_pool(self) -> tuple[Pool, ...]:
        """All rows of all domains as one pool (runs without a mixer)."""
        return (Pool(key=0, start=0, size=self.domains.total),)

    def domain_pools(self) -> tuple[Pool, ...]:
        """Each domain as its own pool (runs with a mixer)."""
        offsets = self.domains.offsets
        return tuple(Pool(key=0, start=int(offsets[d]), size=n) for d, n in enumerate(self.domains.sizes))

    # -- appending ---------------------------------------------------------------------------------------------------

    def append(self, start: int, pools: Sequence[Pool], proportions: Sequence[float]) -> Stage:
        """Append a stage at position `start`; cursors and remainders go on from the stage before where pools do."""
        pools = tuple(pools)
        parts = quantise(proportions)
        cursors, carry = [0] * len(pools), [0] * len(pools)
        if self.stages:
            last = self.stages[-1]
            if start < last.start:
                raise ValueError(f"a stage at position {start} cannot follow one at {last.start}")
            if len(last.pools) == len(pools):
                served, carry = self._progress(last, start)
                cursors = [
                    served[d] if self._same_pool(p, q) else 0
                    for d, (p, q) in enumerate(zip(pools, last.pools, strict=True))
                ]
        stage = Stage(
            index=self.stages[-1].index + 1 if self.stages else 0,
            start=start,
            pools=pools,
            proportions=tuple(float(p) / SCALE for p in parts),
            cursors=tuple(cursors),
            carry=tuple(carry),
            unit="samples" if self.lengths is None else "tokens",
        )
        stage = replace(stage, carry=tuple(normalise_carry(carry, parts, self._honours(stage))))
        self.stages.append(stage)
        return stage

    def _honours(self, stage: Stage) -> Callable[[list[int]], bool] | None:
        """Whether the pools of a stage can be served within the bound with given remainders; None: by the rule for samples."""
        if self.lengths is None or len(stage.pools) == 1:
            return None
        longest, lengths = int(self.lengths.max()), partial(self._lengths, stage)
        return lambda carry: honoured(carry, stage.parts, lengths, longest)

    def _lengths(self, stage: Stage, d: int, first: int, count: int) -> np.ndarray:
        """Tokens of the rows of pool d that a stage serves as its `first` and following, int32[count]."""
        assert self.lengths is not None
        return self.lengths[self._draw(stage, d, stage.cursors[d] + first + np.arange(count, dtype=np.int64))]

    @staticmethod
    def _same_pool(a: Pool, b: Pool) -> bool:
        return a is b or (a.key == b.key and a.start == b.start and len(a) == len(b))

    def _progress(self, stage: Stage, position: int) -> tuple[list[int], list[int]]:
        """Rows served from each pool of `stage`, and what each is owed, when `position` is reached."""
        length = position - stage.start
        if len(stage.pools) == 1:
            return [stage.cursors[0] + length], [0]
        quota = self._quota(stage, length)
        counts = quota.counts(length)
        return [c + int(n) for c, n in zip(stage.cursors, counts, strict=True)], quota.remainder(length)

    # -- reading -----------------------------------------------------------------------------------------------------

    def stage_at(self, position: int) -> Stage:
        """The stage that serves `position` (the latest one that starts at or before it)."""
        return self.stages[self._index_at(position)]

    def _index_at(self, position: int) -> int:
        index = bisect_right(self.stages, position, key=lambda s: s.start) - 1
        if index < 0:
            raise IndexError(f"no stage covers position {position}")
        return index

    def stages_from(self, position: int) -> list[Stage]:
        """Those that serve `position` or a later one, the first of them as it is at that position."""
        if not self.stages:
            return []
        first, *later = self.stages[self._index_at(position) :]
        length = position - first.start
        if len(first.pools) > 1 and length:
            quota = self._quota(first, length)
            tokens = quota.tokens(length) if isinstance(quota, TokenQuota) else ()
            first = replace(first, reached=(length, tuple(quota.counts(length).tolist()), tuple(tokens)))
        return [first, *later]

    def forget(self, position: int) -> None:
        """Drop the stages, and the rows chosen for them, that serve no position from this one on."""
        index = bisect_right(self.stages, position, key=lambda s: s.start) - 1
        del self.stages[: max(index, 0)]

    def first_reach(self, counts: Sequence[int | None], stop: int) -> tuple[int, int] | None:
        """The first position by which a pool has served counts[d] rows in all, and that pool; None if no pool gets there.
        Only the latest stage counts, up to `stop`. A count of None leaves a pool out."""
        stage, found = self.stages[-1], []
        served, length = self._progress(stage, stop)[0], stop - stage.start
        for d, (count, before, after) in enumerate(zip(counts, stage.cursors, served, strict=True)):
            if count is not None and before < count <= after:
                reached = count - before if len(stage.pools) == 1 else self._reach(stage, d, count - before, length)
                assert reached is not None
                found.append((stage.start + reached, d))
        return min(found, default=None)

    def _reach(self, stage: Stage, d: int, count: int, length: int) -> int | None:
        begun = stage.reached is not None and count > stage.reached[1][d]
        return self._quota(stage, length if begun else 0).reach(d, count, length)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Sample ids at positions [start, stop), int64."""
        pieces, position = [], start
        while position < stop:
            index = self._index_at(position)
            stage = self.stages[index]
            end = min(stop, self.stages[index + 1].start) if index + 1 < len(self.stages) else stop
            pieces.append(self._stage_rows(stage, position - stage.start, end - stage.start))
            position = end
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)

    def served(self, position: int) -> list[int]:
        """Rows each pool of the stage at `position` has served up to there, since the pool was opened."""
        return self._progress(self.stage_at(position), position)[0]

    def expected_draws(self, position: int, end: int) -> list[int]:
        """Draws of each pool in all at position `end`, if the last stage goes on from `position`: exact for one pool, else at
        most one too many. With proportions of tokens it is what the mean lengths of the rows make likely."""
        last, length = self.stages[-1], end - position
        served, carry = self._progress(last, position)
        if len(last.pools) == 1:
            return [served[0] + length]
        if self.lengths is None:
            asked = [max(c + part * length, 0) for c, part in zip(carry, last.parts, strict=True)]
            return [n + -(-more // SCALE) for n, more in zip(served, asked, strict=True)]
        means = [self.lengths[pool.rows(np.arange(len(pool)))].mean() if len(pool) else 1.0 for pool in last.pools]
        shares = np.asarray(last.parts) / np.asarray(means)
        return [n + ceil(length * share) for n, share in zip(served, shares / shares.sum(), strict=True)]

    def _stage_rows(self, stage: Stage, begin: int, end: int) -> np.ndarray:
        if len(stage.pools) == 1:
            return self._draw(stage, 0, stage.cursors[0] + np.arange(begin, end, dtype=np.int64))
        quota = self._quota(stage, begin)
        domains = quota.domains(begin, end)
        before = quota.counts(begin)
        rows = np.empty(end - begin, dtype=np.int64)
        for d in np.unique(domains):
            where = np.flatnonzero(domains == d)
            first = stage.cursors[d] + int(before[d])
            rows[where] = self._draw(stage, int(d), first + np.arange(where.size, dtype=np.int64))
        return rows

    def _draw(self, stage: Stage, d: int, served: np.ndarray) -> np.ndarray:
        """The rows of pool d of a stage for consecutive draw numbers `served` (0 is the pool's first draw)."""
        pool, n = stage.pools[d], len(stage.pools[d])
        epochs, offsets = served // n, served % n
        if not self.shuffle and pool.course is None:
            return pool.rows(offsets)
        out = np.empty(served.size, dtype=np.int64)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1) if served.size else ():
            here = epochs == epoch
            places = offsets[here]
            if pool.course is None:
                out[here] = pool.rows(self._permutation(n, pool.key, d, epoch)(places))
            else:
                out[here] = pool.rows(self._epoch(pool, d, epoch)[places])
        return out

    def epoch_under_way(self, stage: Stage, d: int, draws: int) -> np.ndarray:
        """The rows of pool d, by their places in it, that the epoch under way at `draws` has had before: int64[draws % n]."""
        pool, n = stage.pools[d], len(stage.pools[d])
        epoch, places = draws // n, np.arange(draws % n)
        if pool.course is not None:
            return self._epoch(pool, d, epoch)[places]
        return self._permutation(n, pool.key, d, epoch)(places) if self.shuffle else places

    def _epoch(self, pool: Pool, d: int, epoch: int) -> np.ndarray:
        """An epoch of a pool with a course, int64[n]."""
        key = (pool, d, epoch)
        if key not in self._epochs:
            assert pool.course is not None and self.shape is not None
            while len(self._epochs) >= 2 * len(self.domains):
                self._epochs.pop(next(iter(self._epochs)))
            random = derive_key(self.seed, Purpose.ORDERING, pool.key, d, epoch)
            self._epochs[key] = pool.course.of_epoch(epoch, self.shape, random)
        return self._epochs[key]

    def _permutation(self, n: int, pool_key: int, d: int, epoch: int) -> Permutation:
        key = (n, pool_key, d, epoch)
        if key not in self._permutations:
            while len(self._permutations) >= 4 * max(len(self.domains), 1):
                self._permutations.pop(next(iter(self._permutations)))
            self._permutations[key] = Permutation(n, derive_key(self.seed, pool_key, d, epoch))
        return self._permutations[key]

    def _quota(self, stage: Stage, length: int) -> Quota:
        """The order of a stage from `length` positions on, or from an earlier one."""
        begun = stage.reached if stage.reached is not None and length >= stage.reached[0] else None
        key = (stage, begun is not None)
        if key not in self._quotas:
            while len(self._quotas) >= 4:  # reading moves forwards; a few stages may meet in one batch
                self._quotas.pop(next(iter(self._quotas)))
            if stage.unit == "samples":
                self._quotas[key] = Quota(stage.parts, stage.carry, None if begun is None else begun[:2])
            else:
                self._quotas[key] = TokenQuota(stage.parts, stage.carry, partial(self._lengths, stage), begun)
        return self._quotas[key]
