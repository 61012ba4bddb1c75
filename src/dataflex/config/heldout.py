"""Which held-out rows belong to which domain, decided from the configuration alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dataflex.config.refusals import loaded as refused
from dataflex.config.schema import DataflexConfig
from dataflex.errors import ConfigError, nearest
from dataflex.values import number, truth, words

# What LLaMA-Factory's `eval_dataset` may append to the name of a domain.
_SUFFIXES = ("_eval", ".heldout", "_heldout", "_validation", "_val", "_test")


@dataclass(frozen=True)
class HeldOut:
    """key: the setting they come from. names: the data set of each domain, in their order, None where it has none. divided: data
    sets whose rows name their domains. Neither: what `val_size` holds out of each domain."""

    key: str
    names: tuple[str | None, ...] = ()
    divided: tuple[str, ...] = ()


def held_out_of(config: DataflexConfig, lf: Mapping[str, Any], names: Sequence[str] | None = None) -> HeldOut | None:
    """names: of the domains; None: the data sets, or not known yet, and then the names found are in no order.

    The first source that there is: `dataflex.mix.eval_dataset` (or `mixer_eval_dataset`), `eval_dataset` where its names say
    which domain each belongs to, `val_size`. ConfigError for a name that fits no domain, or is itself trained on."""
    trained, evaluated = words(lf.get("dataset")), words(lf.get("eval_dataset"))
    domains = list(names) if names is not None else trained if config.domains.by == "dataset" else []
    given = config.mix.eval_dataset if config.mix is not None else ()
    divides = config.domains.by in ("column", "length", "cluster")  # a file is about the rows that are trained on
    found = None
    if given:
        key = config.compat.held_out_key
        if divides and not isinstance(given, Mapping):
            found = HeldOut(key, divided=given)
        elif config.splits and not domains:
            found = HeldOut(key, tuple(given.values() if isinstance(given, Mapping) else given))
        else:
            found = HeldOut(key, _given(given, domains, key))
    elif evaluated and (named := _by_name(domains, evaluated)):
        found = HeldOut("eval_dataset", named)
    elif evaluated and divides:
        found = HeldOut("eval_dataset", divided=tuple(evaluated))
    elif not evaluated and number(lf.get("val_size") or 0, "val_size") > 0:
        return HeldOut("val_size")
    if found is None:
        return None
    for name in (*found.names, *found.divided):
        if name in trained:
            raise refused.HELD_OUT_TRAINED.error(key=found.key, name=name)
    return found


def evaluates(lf: Mapping[str, Any]) -> bool:
    """Whether the Trainer evaluates, while training or at its end."""
    strategy = str(getattr(lf.get("eval_strategy"), "value", lf.get("eval_strategy") or "no"))
    return strategy not in ("no", "False") or truth(lf.get("do_eval"), "do_eval")


def check_held_out(config: DataflexConfig, lf: Mapping[str, Any], notices: list[str]) -> None:
    """Raise ConfigError if a component needs held-out rows that a domain does not have."""
    found, domains = held_out_of(config, lf), words(lf.get("dataset"))
    if config.splits and found is not None and config.reads_held_out:
        return  # which domains lack them is known once the data is read
    if config.reads_held_out:
        assert config.mix is not None
        names = found.names or domains if found else [None] * len(domains)
        lacking = [d for d, name in zip(domains, names) if name is None]
        if lacking:
            raise refused.NOT_HELD_OUT.error(mixer=config.mix.name, domains=", ".join(lacking))
    elif config.routes_held_out or config.mix is None or not config.mix.eval_dataset:
        return
    elif not (config.evaluate_domains and evaluates(lf)):
        notices.append(
            f"{config.compat.held_out_key} has no effect: {config.mix.name} reads no held-out rows, and nothing is evaluated"
            " by domain"
        )


def _given(given: tuple[str, ...] | Mapping[str, str], domains: list[str], key: str) -> tuple[str | None, ...]:
    if isinstance(given, Mapping):
        for domain in given:
            if domain not in domains:
                raise ConfigError(f"{key}: {domain!r} is not in dataset{nearest(str(domain), domains)}")
        names = [given.get(domain) for domain in domains]
    elif len(given) != len(domains):
        raise ConfigError(f"{key}: {len(given)} given for {len(domains)} data sets ({', '.join(domains)})")
    else:
        names = list(given)
    return tuple(names)


def _by_name(domains: list[str], evaluated: list[str]) -> tuple[str, ...]:
    """The one of `evaluated` that each domain's name is the beginning of, if every name is used; else ()."""
    names = [next((d + s for s in _SUFFIXES if d + s in evaluated), "") for d in domains]
    return tuple(names) if sorted(names) == sorted(evaluated) else ()
