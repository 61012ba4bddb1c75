"""The `dataflex` block and its flat, compatible spelling -> one typed object; every other key goes to LLaMA-Factory."""

from dataflex.config.evaluate import SET_BY_EVALUATE, load_evaluate
from dataflex.config.files import CONFIG_SUFFIXES
from dataflex.config.load import SET_BY_SELECT, load, load_offline, parse
from dataflex.config.schema import (
    DataflexConfig,
    EvaluateConfig,
    MixConfig,
    RunConfig,
    Schedule,
    SelectConfig,
    WeightConfig,
    WeightPart,
)

__all__ = [
    "CONFIG_SUFFIXES",
    "SET_BY_EVALUATE",
    "SET_BY_SELECT",
    "DataflexConfig",
    "EvaluateConfig",
    "MixConfig",
    "RunConfig",
    "Schedule",
    "SelectConfig",
    "WeightConfig",
    "WeightPart",
    "load",
    "load_evaluate",
    "load_offline",
    "parse",
]
