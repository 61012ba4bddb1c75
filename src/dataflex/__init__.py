"""DataFlex: which samples a language model sees, in which mixture, and how hard each one pulls.

What a component author imports, and nothing else. See docs/extending.md.
"""

from dataflex.components.contracts import (
    Decision,
    DomainInfo,
    Mixer,
    Observations,
    Selection,
    SelectionContext,
    Selector,
    State,
    WeightContext,
    Weighter,
)
from dataflex.errors import ConfigError, DataflexError
from dataflex.version import __version__

__all__ = [
    "ConfigError",
    "DataflexError",
    "Decision",
    "DomainInfo",
    "Mixer",
    "Observations",
    "Selection",
    "SelectionContext",
    "Selector",
    "State",
    "WeightContext",
    "Weighter",
    "__version__",
]
