"""The rows that selectors and weighters aim at, tokenized as the run tokenizes its own, one part per data set."""

from __future__ import annotations

from typing import Any

import numpy as np

from dataflex.base.loading.data import process_named, process_numbered
from dataflex.base.loading_arguments import Loading
from dataflex.config.refusals import loaded as refused
from dataflex.config.schema import DataflexConfig
from dataflex.data.rows import Rows
from dataflex.notices import say


def load_target(config: DataflexConfig, module: dict[str, Any], loading: Loading) -> Rows:
    """`target_dataset`, else each data set of `eval_dataset`, else what `val_size` held out.

    Rows are never packed, so that each is one example; held-out rows are as the run itself prepared them.
    """
    key, named = config.target
    names = list(dict.fromkeys(named or loading.data_args.eval_dataset or []))
    if not names:
        held_out = module["eval_dataset"]
        parts = held_out if isinstance(held_out, dict) else {"validation": held_out}
        return _trainable(Rows(list(parts.values()), list(parts)), "val_size")
    alone = loading.single_rows(texts=True)
    with loading.first_process("load target"):
        if "select" not in config.aiming():  # weighters do not ask for rows by number
            return _trainable(Rows([process_named(alone, name, key) for name in names], names), key)
        read = [process_numbered(alone, name, key) for name in names]
    stored = np.concatenate([numbers for _, numbers in read])
    return _trainable(Rows([part for part, _ in read], names, stored=stored), key)


def _trainable(target: Rows, key: str) -> Rows:
    """Raise ConfigError for a data set of which no row has anything to learn."""
    learned = target.trainable_tokens() > 0
    for name, start, size in zip(target.domains.names, target.domains.offsets[:-1], target.domains.sizes, strict=True):
        if not learned[start : start + size].any():
            raise refused.NOTHING_TO_LEARN.error(key=key, name=name)
    return target


def check_apart(config: DataflexConfig, target: Rows, rows: Rows) -> None:
    """A data set of the target that is one that is trained on, under another name: ConfigError where a selector aims at it, a
    line where only weighters do."""
    trained = {digest: name for name, digest in rows.fingerprints().items()}
    key, _ = config.target
    for name, digest in target.fingerprints().items():
        if digest not in trained:
            continue
        if "select" in config.aiming():
            raise refused.TARGET_SAME_ROWS.error(key=key, name=name, trained=trained[digest])
        if name != trained[digest]:  # which the configuration shows, and which has been said
            say(
                f"{key}: {name!r} has the rows of {trained[digest]!r}, which is trained on, so rows are compared with a target"
                " they are part of"
            )


def check_cut(config: DataflexConfig, target: Rows) -> None:
    """Raise ConfigError if the target cannot be cut into subtasks as a request asks for."""
    for request in config.requests("select"):
        cut = getattr(request, "boundaries", None)
        if cut is not None and sum(cut) != len(target):
            raise refused.OTHER_SUM.error(sum=sum(cut), rows=len(target))
