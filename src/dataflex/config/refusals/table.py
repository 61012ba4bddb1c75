"""All refusals, in the order in which they are looked for, and the check that walks them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataflex.config.refusals.data import DATA, STREAMED_MIX, STREAMS
from dataflex.config.refusals.domains import DOMAINS
from dataflex.config.refusals.losses import COLUMNS, LOSSES, MEASURED, WEIGHT, WEIGHTERS
from dataflex.config.refusals.record import Facts, Group
from dataflex.config.refusals.run import RUN, TRAINER
from dataflex.config.refusals.selectors import MIXER, SELECTOR, STORED_ROWS, TARGET, target_names
from dataflex.config.schema import DataflexConfig
from dataflex.errors import Mistakes
from dataflex.values import words

GROUPS: tuple[Group, ...] = (
    *(RUN, TRAINER, STREAMS, STREAMED_MIX, DATA, DOMAINS, LOSSES, MEASURED, COLUMNS),
    *(WEIGHTERS, WEIGHT, TARGET, MIXER, STORED_ROWS, SELECTOR),
)


def check_combinations(config: DataflexConfig, lf: Mapping[str, Any], notices: list[str], mistakes: Mistakes) -> None:
    """Note every combination that would be wrong or silently without effect, one for each key; a line in `notices` for one
    that is odd."""
    facts = Facts(config, lf)
    for group in GROUPS:
        mistakes.gather(group.lines(facts), once=True)
    aiming = config.aiming()
    if aiming and "select" not in aiming:
        name = next(facts.of(aiming)).name
        notices += [
            f"{config.target[0]}: {target!r} is also in dataset, so {name} compares rows with a target they are part of"
            for target in target_names(facts)
            if target in words(lf.get("dataset"))
        ]
