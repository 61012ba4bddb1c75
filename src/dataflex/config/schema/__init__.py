"""The keys of the `dataflex` block, and the typed object that every spelling of it ends in."""

from dataflex.config.schema.domains import DATA_SETS, DomainsKeys, WhereKeys
from dataflex.config.schema.keys import (
    SLOT_KEYS,
    BlockKeys,
    ChoiceKeys,
    DoremiKeys,
    EvaluateKeys,
    GenerateKeys,
    OfflineConfig,
    OrderKeys,
    own_keys,
)
from dataflex.config.schema.loaded import (
    DataflexConfig,
    EvaluateConfig,
    MixConfig,
    OrderConfig,
    RunConfig,
    Schedule,
    SelectConfig,
    WeightConfig,
    WeightPart,
)

__all__ = [
    "DATA_SETS",
    "SLOT_KEYS",
    "BlockKeys",
    "ChoiceKeys",
    "DataflexConfig",
    "DomainsKeys",
    "DoremiKeys",
    "EvaluateConfig",
    "EvaluateKeys",
    "GenerateKeys",
    "MixConfig",
    "OfflineConfig",
    "OrderConfig",
    "OrderKeys",
    "RunConfig",
    "Schedule",
    "SelectConfig",
    "WeightConfig",
    "WeightPart",
    "WhereKeys",
    "own_keys",
]
