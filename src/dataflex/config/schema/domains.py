"""The keys of the block `dataflex.domains`."""

# ruff: noqa: RUF009  (a call of `key`, of which each key has its own)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

from pydantic import SkipValidation

from dataflex.config.schema.key import Count, KeyModel, Names, SomeOf, key


@dataclass(frozen=True, kw_only=True)
class WhereKeys(KeyModel):
    """A condition of `dataflex.domains.where`."""

    column: str = key("", "the column, or a key of the blocks in it, as `meta.quality`", unset="required")
    min: SkipValidation[float | None] = key(None, "the value is at least this number", kind="number")
    max: SkipValidation[float | None] = key(None, "the value is at most this number", kind="number")
    equals: SkipValidation[Any] = key(None, "the value is this one, or one of a list", kind="value, or list of values")

    @property
    def said(self) -> str:
        """Such as "quality min 3"."""
        known = {"min": self.min, "max": self.max, "equals": self.equals}
        given = {name: value for name, value in known.items() if value is not None}
        words = (
            f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in given.items()
        )
        return " ".join([self.column, *words])


@dataclass(frozen=True, kw_only=True)
class DomainsKeys(KeyModel):
    """The block `dataflex.domains`: what the domains of the data are."""

    by: Literal["dataset", "column", "file", "length", "cluster"] = key(
        "dataset",
        "what says the domain of a row: the data set it is in, a column of its data set, a file about all rows, its length, or"
        " the cluster of its text",
    )
    column: str | None = key(
        None,
        "with `by: column`: the column; `meta.source` is the key `source` of the blocks in the column `meta`. With `by: file`:"
        " the column of the file with the names",
        unset="required with `by: column`; `domain` with `by: file`",
    )
    path: str | None = key(
        None,
        "with `by: file`: a name for each stored row, see [above](configuration.md#domains). With `by: cluster`: where clusters"
        " are kept for several runs; they are made where the file is not there yet",
        unset="required with `by: file`; with `by: cluster` each run keeps its own",
        kind="path of a `.parquet`, `.jsonl` or `.csv` file",
    )
    edges: tuple[SomeOf, ...] = key(
        (),
        "with `by: length`: where one range of lengths ends and the next begins, in characters, ascending; `[500, 2000]` makes"
        " the domains `0-499`, `500-1999` and `2000+`",
        unset="required with `by: length`",
        kind="list of integers >= 1",
    )
    k: SomeOf | None = key(None, "with `by: cluster`: the number of clusters", unset="required with `by: cluster`")
    embedding_model: str | None = key(
        None,
        "with `by: cluster`: the text encoder, a sentence-transformers model",
        unset="required with `by: cluster`",
        kind="directory, or name on the hub",
    )
    seed: Count = key(0, "with `by: cluster`: of the rows that are drawn and of k-means")
    keep: Names = key(
        (),
        "the names that are domains, in this order. Without it every name is one, in the order of their names",
        unset="none: every name",
    )
    other: Literal["merge", "drop"] = key(
        "merge",
        "with `keep`: what becomes of rows with another name: the domain `other`, the last one, or they are left out, which is"
        " said",
    )
    missing: str | None = key(
        None,
        "the domain of rows without a name (null, or an empty text); it needs no place in `keep`",
        unset="none: such a row is an error",
    )
    where: SkipValidation[Sequence[WhereKeys]] = key(
        (),
        "conditions that a row must meet: a list of [blocks](configuration.md#where), or one of them. Other rows are left out,"
        " which is said",
        unset="none: all rows",
        kind="list of blocks",
    )

    @property
    def named_by(self) -> str:
        """What names the domain of a row, in messages."""
        named = {
            "column": self.column,
            "file": f"name in {self.path}",
            "length": "length in characters",
            "dataset": "data set",
            "cluster": f"one of {self.k} clusters of texts",
        }
        return str(named[self.by])

    @property
    def ranges(self) -> tuple[str, ...]:
        """With `by: length` the names of the domains, from short to long."""
        ends = [f"{begin}-{end - 1}" for begin, end in pairwise((0, *self.edges))]
        return (*ends, f"{self.edges[-1]}+")

    def record(self) -> dict[str, Any] | None:
        """What checkpoints and stored tokens are compared with, as JSON gives it back; None where data sets are the domains."""
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        if not self.where:
            del plain["where"]
        for name in (
            () if self.by == "cluster" else ("k", "embedding_model", "seed")
        ):  # earlier versions had no clusters
            del plain[name]
        return plain if self != DATA_SETS else None


DATA_SETS = DomainsKeys()
"""Every data set is a domain."""
