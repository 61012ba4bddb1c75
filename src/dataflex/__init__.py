"""DataFlex: which samples a language model sees, in which mixture and order, and how hard each one pulls.

What a component author imports, and nothing else. See docs/extending.md.
"""

from dataflex.components.contexts import (
    Decision,
    DomainInfo,
    Observations,
    OwnPlan,
    Selection,
    SelectionContext,
    State,
    WeightContext,
)
from dataflex.components.contracts import Mixer, Order, Selector, Weighter
from dataflex.components.paper import Paper
from dataflex.components.requests import (
    DomainGradients,
    Embedding,
    ExcessLoss,
    Features,
    Interaction,
    PolicyAlignment,
    ReferenceLoss,
    Request,
    RouterLoad,
    TargetAlignment,
    TargetEmbedding,
)
from dataflex.errors import ConfigError, DataflexError
from dataflex.version import __version__

__all__ = [
    "ConfigError",
    "DataflexError",
    "Decision",
    "DomainGradients",
    "DomainInfo",
    "Embedding",
    "ExcessLoss",
    "Features",
    "Interaction",
    "Mixer",
    "Observations",
    "Order",
    "OwnPlan",
    "Paper",
    "PolicyAlignment",
    "ReferenceLoss",
    "Request",
    "RouterLoad",
    "Selection",
    "SelectionContext",
    "Selector",
    "State",
    "TargetAlignment",
    "TargetEmbedding",
    "WeightContext",
    "Weighter",
    "__version__",
]
