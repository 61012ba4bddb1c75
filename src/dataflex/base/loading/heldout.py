"""The held-out rows of each domain, tokenized as the run tokenizes its own."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from dataflex.base.checks.nodes import same_rows
from dataflex.base.loading.data import process_named, process_rows
from dataflex.base.loading.reading import read_all
from dataflex.base.loading.split import split_held_out
from dataflex.base.loading_arguments import Loading
from dataflex.config.heldout import HeldOut, evaluates, held_out_of
from dataflex.config.refusals import loaded as refused
from dataflex.config.schema import DataflexConfig, RunConfig
from dataflex.data.rows import Rows
from dataflex.distributed.collectives import decide
from dataflex.errors import ConfigError
from dataflex.notices import say


def load_held_out(
    config: RunConfig, module: dict[str, Any], trained: Mapping[str, str], loading: Loading
) -> Rows | None:
    """One part per domain of `module["train_dataset"]`, empty where a domain has none; None where nobody asks for them.

    Rows are examples by themselves, not packed, but for pre-training (see `Loading.single_rows`).

    trained: {fingerprint: name} of the training data.
    """
    assert config.dataflex is not None
    dataflex = config.dataflex
    domains = module["train_dataset"].domains.names
    source = held_out_of(dataflex, config.llamafactory, domains)
    reported = dataflex.evaluate_domains and evaluates(config.llamafactory) and loading.stage in ("pt", "sft")
    if source is None or not (reported or dataflex.reads_held_out or dataflex.routes_held_out):
        return None
    if not source.names and not source.divided:
        found = module["held_out"]
    else:
        alone = loading.indexed().single_rows()
        if source.divided:
            parts = _divided(alone, dataflex, source, domains)
        else:
            with loading.first_process("load held-out rows"):
                parts = [None if name is None else process_named(alone, name, source.key) for name in source.names]
        some = next((part for part in parts if part is not None), None)
        if some is None:
            return None
        found = Rows([some.select([]) if part is None else part for part in parts], domains)
    _check(dataflex, source.key, found, trained)
    return found


def _divided(loading: Loading, config: DataflexConfig, source: HeldOut, domains: tuple[str, ...]) -> list[Any]:
    """The rows of each domain, out of data sets whose rows name their domains; None for one without. LLaMA-Factory's own
    `eval_dataset` need not name any, where no mixer reads held-out rows: then there are none by domain, which is said."""
    with loading.first_process("load held-out rows"):
        read = read_all(loading, source.divided, source.key)
    try:
        found = split_held_out(read, config.domains, domains, source.key, loading)
    except ConfigError as error:
        if config.reads_held_out or source.key != "eval_dataset":
            raise
        say(f"nothing is evaluated by domain: {error}")
        return []
    origin = (source.key, [(name, rows.aligned) for name, rows in read.items()])
    with loading.first_process("pre-process held-out rows"):
        parts = [None if part is None else process_rows(loading, part, is_eval=True, origin=origin) for part in found]
    if config.reads_held_out:
        lacking = [name for name, part in zip(domains, parts, strict=True) if part is None]
        if lacking:
            assert config.mix is not None
            raise refused.NOT_HELD_OUT.error(mixer=config.mix.name, domains=", ".join(lacking))
    return parts


def identity_of(config: DataflexConfig, held_out: Rows | None) -> dict[str, str]:
    """What a resumed run must share: the held-out rows, where they decide something."""
    if held_out is None or not (config.reads_held_out or config.routes_held_out):
        return {}
    return {f"content held out of {name}": digest for name, digest in decide(held_out.fingerprints).items()}


def _check(config: DataflexConfig, key: str, held_out: Rows, trained: Mapping[str, str]) -> None:
    """Raise ConfigError for held-out rows that are trained on, or without which the mixer cannot be."""
    for name, digest in same_rows(held_out.fingerprints, key).items():
        if digest in trained:
            raise refused.HELD_OUT_SAME_ROWS.error(key=key, name=name, trained=trained[digest])
    if config.reads_held_out or config.routes_held_out:
        learned = held_out.trainable_tokens() > 0
        for name, (a, b) in zip(held_out.domains.names, pairwise(held_out.domains.offsets), strict=True):
            if not learned[a:b].any() and (config.reads_held_out or a < b):
                raise refused.NO_HELD_OUT_TOKEN.error(key=key, name=name)
