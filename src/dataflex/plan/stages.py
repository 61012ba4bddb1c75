"""Stages of a plan: the pools that they draw from, in which proportions, and from where on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from .course import Course
from .quota import quantise

Unit = Literal["samples", "tokens"]
OF_POOLS = ("pools", "ranked", "served")
"""What `Stage.arrays` may give of a pool: its chosen ids, and the two arrays of its course."""


@dataclass(frozen=True, eq=False)
class Pool:
    """Rows that a stage may draw: a contiguous range of ids, or a list of chosen ids.

    The same pool keeps its order over any number of stages, and another pool has another order. Repeated ids are
    allowed (a selection with replacement).
    """

    key: int
    """The name of the pool in the key of its permutations."""
    start: int = 0
    size: int = 0
    """First id and length of a range."""
    ids: np.ndarray | None = None
    """The chosen ids, int64; None for a range."""
    course: Course | None = None
    """The order of the rows; None: each epoch has a permutation of its own."""

    def __len__(self) -> int:
        return self.size if self.ids is None else len(self.ids)

    def rows(self, index: np.ndarray) -> np.ndarray:
        return self.start + index if self.ids is None else self.ids[index]


@dataclass(frozen=True, eq=False)
class Stage:
    """From position `start` on: pools, their proportions, cursors and remainders."""

    index: int
    start: int
    pools: tuple[Pool, ...]
    proportions: tuple[float, ...]
    """Proportion of each pool, adding up to one."""
    cursors: tuple[int, ...]
    """Rows of each pool served before `start`, as epoch * len(pool) + offset."""
    carry: tuple[int, ...]
    """Remainder of each pool at `start`, in units of 1 / SCALE of a sample, or of a token."""
    unit: Unit = "samples"
    """What the proportions are shares of."""
    reached: tuple[int, tuple[int, ...], tuple[int, ...]] | None = None
    """For a resumed stage with several pools: the positions served in it, and by pool the rows and (in tokens) the
    tokens served. The order is then computed from there, not from `start`."""
    parts: tuple[int, ...] = field(init=False)
    """The proportions as integers in units of 1 / SCALE."""

    def __post_init__(self) -> None:
        if not len(self.pools) == len(self.proportions) == len(self.cursors) == len(self.carry):
            raise ValueError("a stage needs one proportion, cursor and remainder per pool")
        object.__setattr__(self, "parts", tuple(quantise(self.proportions)))
        for d, (pool, part) in enumerate(zip(self.pools, self.parts, strict=True)):
            if part and len(pool) == 0:
                raise ValueError(f"pool {d} is empty but has proportion {self.proportions[d]}")

    def to_json(self) -> dict[str, Any]:
        """Everything but arrays: the ids of chosen pools and the rows of a course. They are stored apart, by `key`."""
        return {
            "index": self.index,
            "start": self.start,
            "proportions": list(self.proportions),
            "cursors": [
                list(divmod(c, len(p))) if len(p) else [0, 0] for c, p in zip(self.cursors, self.pools, strict=True)
            ],
            "carry": list(self.carry),
            "unit": self.unit,
            **({"reached": self.reached} if self.reached is not None else {}),
            "pools": [
                {
                    "key": p.key,
                    "size": len(p),
                    **({"start": p.start} if p.ids is None else {"chosen": True}),
                    **({} if p.course is None else {"course": p.course.to_json()}),
                }
                for p in self.pools
            ],
        }

    def arrays(self) -> dict[tuple[str, int, int], np.ndarray]:
        """What `to_json` leaves out, int64, by what it is, the key of the pool and its index in the stage."""
        found: dict[tuple[str, int, int], np.ndarray] = {}
        for d, pool in enumerate(self.pools):
            if pool.ids is not None:
                found["pools", pool.key, d] = pool.ids
            if pool.course is not None:
                found["ranked", pool.key, d], found["served", pool.key, d] = pool.course.ranked, pool.course.served
        return found

    @classmethod
    def from_json(cls, record: Mapping[str, Any], arrays: Mapping[tuple[str, int, int], np.ndarray]) -> Stage:
        """Rebuild from `to_json` and what `arrays` gave."""
        pools = []
        for d, p in enumerate(record["pools"]):
            stored = partial(_stored, arrays, p["key"], d)
            course = None
            if "course" in p:
                course = Course(ranked=stored("ranked"), served=stored("served"), **p["course"])
            rows = {"ids": stored("pools")} if p.get("chosen") else {"start": p["start"], "size": p["size"]}
            pools.append(Pool(key=p["key"], course=course, **rows))
        cursors = tuple(epoch * len(p) + offset for (epoch, offset), p in zip(record["cursors"], pools, strict=True))
        reached = record.get("reached")
        return cls(
            index=record["index"],
            start=record["start"],
            pools=tuple(pools),
            proportions=tuple(record["proportions"]),
            cursors=cursors,
            carry=tuple(record["carry"]),
            unit=record["unit"],
            reached=None if reached is None else (reached[0], tuple(reached[1]), tuple(reached[2])),
        )


def _stored(arrays: Mapping[tuple[str, int, int], np.ndarray], key: int, d: int, what: str) -> np.ndarray:
    return arrays[what, key, d]


def chosen_pool(key: int, ids: np.ndarray, *, as_given: bool = False) -> Pool:
    """A pool of selected rows. Unless `as_given`, ids are sorted: the order is the plan's, not the selector's."""
    ids = np.asarray(ids, dtype=np.int64)
    return replace(Pool(key=key), ids=ids if as_given else np.sort(ids))
