"""The keys of the `dataflex` block, and the typed object that every spelling of it ends in."""

from dataflex.config.schema.keys import SLOT_KEYS, BlockKeys, DoremiKeys, OfflineConfig, own_keys
from dataflex.config.schema.loaded import (
    DataflexConfig,
    MixConfig,
    RunConfig,
    Schedule,
    SelectConfig,
    WeightConfig,
    WeightPart,
)

__all__ = [
    "SLOT_KEYS",
    "BlockKeys",
    "DataflexConfig",
    "DoremiKeys",
    "MixConfig",
    "OfflineConfig",
    "RunConfig",
    "Schedule",
    "SelectConfig",
    "WeightConfig",
    "WeightPart",
    "own_keys",
]
