"""Values that are about domains: which one is whose, once the names of the domains are known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataflex.components.tools.proportions import check_names, checked, in_order, read_proportions
from dataflex.errors import ConfigError
from dataflex.values.single import number

OTHER = "other"
"""The domain of rows whose name is not kept."""


class Later:
    """In the place of the names of domains that only the rows of the data tell."""


LATER = Later()
Names = tuple[str, ...] | Later | None


def data_sets(lf: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The data sets of `dataset`; None if they are not given as LLaMA-Factory takes them, which it says itself."""
    given = lf.get("dataset")
    if isinstance(given, str) and given:
        return tuple(n.strip() for n in given.split(","))
    return tuple(map(str, given)) if isinstance(given, list) and given else None


def proportions(given: Any, names: Names, key: str) -> tuple[float, ...] | Mapping[str, Any]:
    """A mapping by name, a file that holds one, or a list in the order of domains, whose length is checked with the data. The
    mapping itself as long as the names are not known."""
    if isinstance(given, str):
        given = read_proportions(key, given)
    if isinstance(given, Mapping):
        if isinstance(names, Later):
            checked(key, list(given.values()))
            return given
        return in_order(key, given, _known(names, key))
    if not isinstance(given, list | tuple):
        raise ConfigError(f"{key} must be a list of numbers, a mapping of names to numbers, or a file, got {given!r}")
    return checked(key, given)


def repetition(given: Any, names: Names, key: str) -> float | tuple[float | None, ...] | Mapping[str, Any] | None:
    """One number for all domains, a list with one each, or a mapping by name; null, and a name left out: without limit. A mapping
    itself as long as the names are not known."""
    if isinstance(given, Mapping):
        if isinstance(names, Later):
            return {name: _limit(limit, key) for name, limit in given.items()}
        known = _known(names, key)
        check_names(key, given, known)
        given = [given.get(n) for n in known]
    if not isinstance(given, list):
        return _limit(given, key)
    if isinstance(names, tuple) and len(given) != len(names):
        raise ConfigError(f"{key}: {len(given)} given for {len(names)} data sets ({', '.join(names)})")
    limits = tuple(_limit(m, key) for m in given)
    return limits if any(m is not None for m in limits) else None


def _limit(given: Any, key: str) -> float | None:
    limit = None if given is None else number(given, key)
    if limit is not None and not 0 < limit < float("inf"):
        raise ConfigError(f"{key} must be positive and finite, got {given!r}")
    return limit


def _known(names: Names, key: str) -> tuple[str, ...]:
    if not isinstance(names, tuple):
        raise ConfigError(f"{key} names data sets, and dataset names none")
    return names
