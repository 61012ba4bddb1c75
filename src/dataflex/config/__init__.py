"""The `dataflex` block and its flat, compatible spelling -> one typed object; every other key goes to LLaMA-Factory."""

from dataflex.config.files import CONFIG_SUFFIXES
from dataflex.config.load import SET_BY_SELECT, load, load_offline, parse
from dataflex.config.schema import (
    DataflexConfig,
    MixConfig,
    RunConfig,
    Schedule,
    SelectConfig,
    WeightConfig,
    WeightPart,
)

__all__ = [
    "CONFIG_SUFFIXES",
    "SET_BY_SELECT",
    "DataflexConfig",
    "MixConfig",
    "RunConfig",
    "Schedule",
    "SelectConfig",
    "WeightConfig",
    "WeightPart",
    "load",
    "load_offline",
    "parse",
]
