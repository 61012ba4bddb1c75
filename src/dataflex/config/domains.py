"""The block `dataflex.domains`, and what waits for the names of the domains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

from dataflex.config.mixture import check_domains
from dataflex.config.refusals import domains as refused
from dataflex.config.schema import DataflexConfig, DomainsKeys, MixConfig, WhereKeys, own_keys
from dataflex.errors import ConfigError, Mistakes, nearest
from dataflex.values import number, shown, words
from dataflex.values.domains import LATER, Names, proportions, repetition
from dataflex.values.paths import is_file
from dataflex.values.validated import read_keys

_KEY = "dataflex.domains"
# What each way to name domains goes by, and those of these keys that it needs.
_KEYS: Mapping[str, tuple[str, ...]] = {
    "dataset": ("where",),
    "column": ("column", "keep", "other", "missing", "where"),
    "file": ("path", "column", "keep", "other", "missing", "where"),
    "length": ("edges", "where"),
    "cluster": ("k", "embedding_model", "seed", "path", "where"),
}
_NEEDED: Mapping[str, tuple[str, ...]] = {
    "column": ("column",),
    "file": ("path",),
    "length": ("edges",),
    "cluster": ("k", "embedding_model"),
}
MOST = 1000
"""More domains than this are no mixture, but a column of another kind."""
_FILES = (".parquet", ".jsonl", ".csv")


def read_domains(given: Any, mistakes: Mistakes) -> DomainsKeys:
    """The typed block; what is wrong is noted, and what can be read without it stands for the rest."""
    if not isinstance(given, Mapping):
        mistakes.note(ConfigError(f"{_KEY} must be a block of keys, got {shown(given)}"))
        return DomainsKeys()
    given = dict(given)
    if isinstance(given.get("keep"), str):
        given["keep"] = words(given["keep"])
    if isinstance(given.get("keep"), list):  # YAML reads a year as a number
        given["keep"] = [str(n) if isinstance(n, int) and not isinstance(n, bool) else n for n in given["keep"]]
    where = given.pop("where", None)
    values = read_keys(DomainsKeys, given, _KEY, str, mistakes)
    if where is not None:
        values["where"] = tuple(_conditions(where, mistakes))
    if values.get("by", given.get("by")) == given.get("by"):  # one that is misspelt says nothing of the other keys
        mistakes.gather(_refused(values, given))
    return DomainsKeys(**values)


def _conditions(given: Any, mistakes: Mistakes) -> Iterator[WhereKeys]:
    """The conditions of `where`, a list of blocks or one block; what is wrong is noted."""
    for index, block in enumerate(given if isinstance(given, list) else [given]):
        key = f"{_KEY}.where[{index}]"
        if not isinstance(block, Mapping):
            mistakes.note(ConfigError(f"{key} must be a block with a column, got {shown(block)}"))
            continue
        values = read_keys(WhereKeys, block, key, str, mistakes)
        for name in ("min", "max"):
            if name in values:
                with mistakes.noting():
                    values[name] = number(values[name], f"{key}.{name}")
        if not block.get("column"):
            mistakes.note(ConfigError(f"{key}.column is required: what the condition is about"))
        elif not {"min", "max", "equals"} & values.keys() and set(block) <= set(own_keys(WhereKeys)):
            mistakes.note(ConfigError(f"{key} needs min, max or equals"))
        yield WhereKeys(**values)


def _refused(values: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[str]:
    by = values.get("by", "dataset")
    every = [name for name in own_keys(DomainsKeys) if name != "by"]
    for name in every:
        if name in values and name not in _KEYS[by]:
            others = [f"`by: {other}`" for other, keys in _KEYS.items() if name in keys]
            near = f"; it belongs to {' and '.join(others)}".replace("`", "")
            yield f"{_KEY}.{name} has no effect with by: {by}{near}"
    for name in _NEEDED.get(by, ()):
        if given.get(name) in (None, "", []):
            yield f"{_KEY}.{name} is required with by: {by}"
    keep = values.get("keep", ())
    for name in dict.fromkeys(name for index, name in enumerate(keep) if name in keep[:index]):
        yield f"{_KEY}.keep: {name!r} is listed twice"
    if "other" in values and not keep and "keep" not in given:
        yield f"{_KEY}.other has no effect without keep"
    path, edges = values.get("path"), values.get("edges", ())
    if by == "file" and path and not is_file(path):
        yield f"{_KEY}.path: no such file: {path}"
    elif by == "file" and path and not path.endswith(_FILES):
        yield f"{_KEY}.path must be a file of the kinds {', '.join(_FILES)}, got {path}"
    elif by == "cluster":
        yield from _refused_clusters(values)
    if any(a >= b for a, b in pairwise(edges)):
        yield f"{_KEY}.edges must ascend, got {list(edges)}"
    if values.get("missing") == "":
        yield f"{_KEY}.missing must be a name, got ''"


def _refused_clusters(values: Mapping[str, Any]) -> Iterator[str]:
    k, path = values.get("k"), values.get("path")
    if k is not None and k > MOST:
        yield f"{_KEY}.k must be at most {MOST}, got {k}"
    if values.get("seed", 0) >= 1 << 32:
        yield f"{_KEY}.seed must be below {1 << 32}, got {values['seed']}"
    if path and not path.endswith(".parquet"):
        yield f"{_KEY}.path must be a .parquet file with by: cluster, got {path}"
    if find_spec("sentence_transformers") is None:
        yield f"{_KEY}.by: cluster needs sentence-transformers (pip install 'dataflex[offline]')"


def names_of(spec: DomainsKeys, data_sets: tuple[str, ...] | None) -> Names:
    """The names of the domains as far as the configuration tells. data_sets: those in `dataset`."""
    if spec.by == "dataset":
        return data_sets
    if spec.by == "length":
        return spec.ranges if spec.edges else LATER
    if spec.keep and spec.other == "drop" and spec.missing is None:
        return spec.keep
    return LATER


def left_out_lines(left_out: Mapping[str, int]) -> Iterator[str]:
    """left_out: rows, by what they say."""
    if left_out:
        each = ", ".join(f"{name} {rows:,}" for name, rows in left_out.items())
        yield f"{_KEY}: {sum(left_out.values()):,} rows are left out ({each})"


def settled(config: DataflexConfig, names: tuple[str, ...]) -> DataflexConfig:
    """The configuration of domains of these names, once the data is read.

    Raises ConfigError for all that names other domains, or another number of them.
    """
    if not config.splits:
        return config
    mistakes, mix = Mistakes(), config.mix
    if mix is not None:
        mix = _settled_mix(mix, names, mistakes)
        with mistakes.noting():
            check_domains(mix.component, names, "dataflex.mix")
    for slot, part in config.weight.slots().items() if config.weight is not None else ():
        with mistakes.noting():
            check_domains(part.component, names, f"dataflex.{slot}")
    mistakes.settle()
    return replace(config, mix=mix)


def _settled_mix(mix: MixConfig, names: tuple[str, ...], mistakes: Mistakes) -> MixConfig:
    found: dict[str, Any] = {}
    for name, read in (("proportions", proportions), ("max_repetition", repetition)):
        given, key = mix.by_name.get(name, getattr(mix, name)), f"dataflex.mix.{name}"
        if isinstance(given, Mapping):
            wrong = list(_refused_names(given, names, key, whole=name == "proportions"))
            mistakes.gather(wrong)
            if not wrong:
                found[name] = read(given, names, key)
        elif isinstance(given, tuple) and len(given) != len(names):
            mistakes.note(
                refused.OTHER_COUNT.error(key=key, given=len(given), count=len(names), names=", ".join(names))
            )
    if isinstance(mix.eval_dataset, Mapping):
        mistakes.gather(_refused_names(mix.eval_dataset, names, "dataflex.mix.eval_dataset"))
    return replace(mix, by_name={}, **found)


def _refused_names(given: Mapping[Any, Any], names: tuple[str, ...], key: str, *, whole: bool = False) -> Iterator[str]:
    """whole: whether every domain must be named."""
    for name in given:
        if name not in names:
            yield refused.NO_DOMAIN.line(key=key, name=name, near=nearest(str(name), names))
    for name in names if whole else ():
        if name not in given:
            yield refused.NO_VALUE.line(key=key, name=name)
