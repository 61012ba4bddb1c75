"""The axes of a grid: which keys vary, and the names of their variants."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from dataflex.comparing.grids.cells import Cell
from dataflex.config.schema import SLOT_KEYS, BlockKeys, own_keys
from dataflex.errors import ConfigError, Mistakes
from dataflex.values import shown

METHOD = "method"
"""An axis whose variants set several keys each."""
# Keys that no file of a comparison decides.
SET_HERE = ("seed", "data_seed", "output_dir", "resume_from_checkpoint", "overwrite_output_dir")


@dataclass(frozen=True)
class Axis:
    name: str
    """As in the file."""
    variants: Mapping[str, Mapping[str, Any]]
    """By name, the values of a variant by the full paths of their keys."""
    bare: bool
    """Whether the names of its variants say enough without that of the axis."""


def read_axes(given: Any, mistakes: Mistakes) -> tuple[Axis, ...]:
    """What `vary` says; mistakes are noted."""
    if not isinstance(given, Mapping) or not given:
        mistakes.note(ConfigError(f"vary must be a block of keys, each with its variants, got {shown(given)}"))
        return ()
    axes = []
    for name, variants in given.items():
        with mistakes.noting():
            axes.append(_axis(str(name), variants))
    taken: dict[str, str] = {}
    for axis in axes:
        for path in {path for values in axis.variants.values() for path in values}:
            other = taken.setdefault(path, axis.name)
            if other != axis.name:
                mistakes.note(ConfigError(f"vary.{axis.name} sets {path}, which vary.{other} sets too"))
    return tuple(axes)


def _axis(name: str, given: Any) -> Axis:
    key = f"vary.{name}"
    path = full_path(name)
    for kept in SET_HERE:
        if path == kept:
            why = "`seeds` names the seeds" if kept.endswith("seed") else "every run has a directory of its own"
            raise ConfigError(f"{key} cannot vary: {why}")
    named: dict[str, Any] = {}
    if isinstance(given, Mapping):
        named = {_variant_name(k, key): value for k, value in given.items()}
    elif isinstance(given, Sequence) and not isinstance(given, str):
        for value in given:
            found = _name_of(value, key)
            if found in named:
                raise ConfigError(f"{key} has two variants {found!r}; write them as a block, with names of their own")
            named[found] = value
    else:
        raise ConfigError(f"{key} must be a list of values, or a block of named variants, got {shown(given)}")
    if not named:
        raise ConfigError(f"{key} has no variant")
    if name != METHOD:
        return Axis(name, {k: {path: value} for k, value in named.items()}, bare=isinstance(given, Mapping))
    for variant, keys in named.items():
        if keys is not None and not isinstance(keys, Mapping):
            raise ConfigError(f"{key}.{variant} must be a block of keys and values, got {shown(keys)}")
        for kept in SET_HERE:
            if kept in (keys or {}):
                raise ConfigError(f"{key}.{variant}.{kept} cannot vary: compare sets it")
    return Axis(
        name, {k: {full_path(str(p)): v for p, v in (keys or {}).items()} for k, keys in named.items()}, bare=True
    )


def _variant_name(name: Any, key: str) -> str:
    if isinstance(name, bool):  # `no` and `off` are words for false in YAML
        raise ConfigError(f"{key}: YAML reads a variant's name as {str(name).lower()}; put it into quotes")
    return str(name)


def _name_of(value: Any, key: str) -> str:
    """The name of a variant that is given as a value."""
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        if isinstance(value.get("name"), str):
            return str(value["name"])
        raise ConfigError(f"{key}: {shown(value)} has no name; write the variants as a block, with names of their own")
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def full_path(key: str) -> str:
    """`select` is short for `dataflex.select`, as every key of the block is that LLaMA-Factory does not have."""
    return f"dataflex.{key}" if key in (*SLOT_KEYS, *own_keys(BlockKeys)) else key


def cells_of(base: Mapping[str, Any], axes: Sequence[Axis], mistakes: Mistakes) -> tuple[Cell, ...]:
    """The product of the axes, the last one turning fastest."""
    cells, alone = [], len(axes) == 1
    for names in product(*(axis.variants for axis in axes)):
        choices = {axis.name: name for axis, name in zip(axes, names, strict=True)}
        values: dict[str, Any] = {}
        for axis, name in zip(axes, names, strict=True):
            values |= axis.variants[name]
        parts = [
            name if axis.bare and (alone or axis.name == METHOD) else f"{axis.name.rpartition('.')[2]}={name}"
            for axis, name in zip(axes, names, strict=True)
        ]
        with mistakes.noting(once=True):
            cells.append(Cell(" ".join(parts), choices, _changed(base, values)))
    for kind in ("name", "folder"):
        found = [getattr(cell, kind) for cell in cells]
        double = next((n for n in found if found.count(n) > 1), None)
        if double is not None:
            mistakes.note(ConfigError(f"vary: two combinations would both be called {double!r}; name the variants"))
            break
    return tuple(cells)


def _changed(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The base with the values of some paths, the shortest first: a variant of `dataflex.mix` comes before its interval."""
    keys = copy.deepcopy(dict(base))
    for path in sorted(values, key=lambda path: path.count(".")):
        *parents, last = path.split(".")
        block = keys
        for depth, parent in enumerate(parents):
            below = block.get(parent)
            if below is None and parent == "dataflex" and depth == 0:
                below = block[parent] = {}
            elif isinstance(below, str) and parent in SLOT_KEYS:  # the short form of a component without parameters
                below = block[parent] = {"name": below}
            if not isinstance(below, dict):
                where = ".".join(parents[: depth + 1])
                raise ConfigError(f"vary.{path}: {where} is no block here, so it has no {last}")
            block = below
        if values[path] is None:
            block.pop(last, None)
        else:
            block[last] = copy.deepcopy(values[path])
    _drop_empty_block(keys)
    return keys


def _drop_empty_block(keys: dict[str, Any]) -> None:
    """A block without a component is none for the training; its length goes to LLaMA-Factory. How the finished model is judged
    stays."""
    block = keys.get("dataflex")
    if not isinstance(block, dict) or any(block.get(slot) is not None for slot in SLOT_KEYS):
        return
    if block.get("total_steps") is not None:
        keys["max_steps"] = block["total_steps"]
    del keys["dataflex"]
    if block.get("evaluate") is not None:
        keys["dataflex"] = {"evaluate": block["evaluate"]}
