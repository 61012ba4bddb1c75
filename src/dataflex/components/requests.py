"""What a component may ask to have measured: the requests, and what is true of each.

A request without parameters may be written as its name. Equal requests of several components at one step are measured
once. In the `signals` that a component is given, a value stands under the request's `name`.

The facts of a request stand on its class. How it is measured is said in `signals/asking/measures.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from dataflex.components.gradient_requests import (
    DomainGradients,
    Features,
    Interaction,
    PolicyAlignment,
    TargetAlignment,
)
from dataflex.components.signal_request import SignalRequest, Work
from dataflex.errors import DataflexError

Request = str | SignalRequest
"""What a component writes."""


# -- without parameters ----------------------------------------------------------------------------------------------


class _Plain(SignalRequest):
    """Base of the requests that have no parameters. A component may write the name instead."""

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Loss(_Plain):
    """float64 [rows]: token-mean cross entropy (or the stage's own loss) under the current model."""

    name = "loss"
    slots = ("select", "mix", "order")
    stage_loss = True
    kept = True

    def reads(self) -> Literal["model and reference"]:
        return "model and reference"


@dataclass(frozen=True)
class Tokens(_Plain):
    """float64 [rows]: tokens of each row, those of its prompt included."""

    name = "tokens"
    slots = ("select", "order")
    from_losses = False
    work = "none"
    cost = "none: it is read from the data"


@dataclass(frozen=True)
class TrainableTokens(_Plain):
    """float64 [rows]: tokens of each row that carry a loss."""

    name = "trainable_tokens"
    slots = ("select",)
    from_losses = False
    work = "none"
    cost = "none: it is read from the data"


@dataclass(frozen=True)
class TrainLoss(_Plain):
    """Per-domain sums of the losses of the rows trained on since the last update."""

    name = "train_loss"
    slots = ("mix",)
    per = "domain"
    streamed = True
    free = True
    work = "none"
    cost = "none: training sums it up"


@dataclass(frozen=True)
class GivenWeight(_Plain):
    """The weight that the data set gives a row or a message (read from a column), per row or token trained on."""

    name = "given_weight"
    slots = ("weight",)
    per = "token"
    streamed = True
    work = "none"
    cost = "none: it is read from the data"


@dataclass(frozen=True)
class HeldOutLoss(_Plain):
    """float64 [held-out rows]: token-mean cross entropy of each, domain after domain."""

    name = "heldout_loss"
    slots = ("mix",)
    per = "held-out row"
    aim = "held out"
    cost = "a forward pass over the held-out rows per update"
    stage_loss = True
    streamed = True


@dataclass(frozen=True)
class HeldOutTokens(_Plain):
    """float64 [held-out rows]: tokens of each that carry a loss (a pair counts as one)."""

    name = "heldout_tokens"
    slots = ("mix",)
    per = "held-out row"
    aim = "held out"
    cost = "a forward pass over the held-out rows per update"
    stage_loss = True
    streamed = True


@dataclass(frozen=True)
class HeldOutSums(_Plain):
    """float64 [held-out rows, 2]: sum of the cross entropies of a row, and its trainable tokens. What an evaluation reads; no
    component asks for it."""

    name = "heldout_sums"
    per = "held-out row"
    aim = "held out"
    cost = "a forward pass over the held-out rows per update"


# -- of other kinds --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RouterLoad(SignalRequest):
    """float64 [domains, experts] for a mixture-of-experts model: of the tokens of a domain, the share that each expert is
    given. The rows are drawn afresh at every step: of the data set that `mix.eval_dataset` names for a domain, else of what
    it trains on."""

    name = "router_load"
    slots = ("mix",)
    per = "domain"
    aim = "held out if named"
    needs_tokens = True
    needs_experts = True
    from_losses = False
    cost = "a forward pass over some rows of each domain per update"

    rows: int = 1000
    """In all, as many of each domain."""
    layer: int = -1
    """Of those that have a router; -1: the last."""
    seed: int = 0
    """Of the draw."""


@dataclass(frozen=True, kw_only=True)
class Embedding(SignalRequest):
    """float32 [rows, hidden]: hidden states of the current model, pooled over the tokens of a row. Padding counts on neither
    side; a packed row is the mean of its sequences, each pooled by itself."""

    name = "embedding"
    slots = ("select", "weight")
    needs_tokens = True
    from_losses = False
    streamed = True
    kept = True
    file_key = "embeddings"

    layer: int = -1
    """States after this layer; -1: the last; 0: the input."""
    pooling: Literal["mean", "weighted_mean", "last"] = "mean"
    """`weighted_mean`: token i of n weighs i (SGPT, arXiv 2202.08904). `last`: the last token alone."""
    model: str | None = None
    """A sentence-transformers model that reads the text of the row instead; layer and pooling are then its own."""

    def work_for(self, slot: str) -> tuple[Work, str]:
        if self.model is not None:
            return "text encoder", "a text encoder reads every row, once in a run"
        if slot == "weight" and self.aim is None:
            return "none", "none: the pass that trains has it"
        return self.work, self.cost

    def reads(self) -> Literal["model", "encoder"]:
        return "model" if self.model is None else "encoder"

    def hidden_states(self) -> tuple[int, str] | None:
        return (self.layer, self.pooling) if self.model is None else None

    def other_models(self) -> Mapping[str, str]:
        return {} if self.model is None else {"encoder": self.model}


@dataclass(frozen=True, kw_only=True)
class TargetEmbedding(Embedding):
    """The same of the target: float32 [target rows, hidden], in the order of the target and not of the candidates."""

    name = "target_embedding"
    per = "target row"
    aim = "target"
    streamed = False
    file_key = "target_embeddings"
    cost = "a forward pass over the target each time that it is looked at"


@dataclass(frozen=True, kw_only=True)
class LayerEmbedding(SignalRequest):
    """float32 [rows, 2, layers x hidden]: outputs of attention in some layers of the current model, averaged over the tokens
    of pictures (0) and of text (1), tanh of each, of length one in each layer; zeros where a row has none of a kind."""

    name = "layer_embedding"
    slots = ("select",)
    needs_tokens = True
    from_losses = False
    kept = True

    layers: tuple[int, ...] | None = None
    """From 1 on; None: five that cut the model into six parts."""


@dataclass(frozen=True, kw_only=True)
class ReferenceLoss(SignalRequest):
    """Cross entropy under a reference model of the rows (token mean) or tokens that a weighter weighs: measured once for all
    tokens, before training."""

    name = "reference_loss"
    slots = ("weight",)
    per: ClassVar[Literal["token", "domain"]] = "token"
    needs_tokens = True
    cost = "a forward pass of the reference model over the data, once"

    model: str
    """The reference model, as `model_name_or_path` names one."""
    store: str | None = None
    """Directory that its losses are kept in, where other runs find them; None: that of the run."""

    def other_models(self) -> Mapping[str, str]:
        return {"reference": self.model}

    def own_folder(self) -> str | None:
        return self.store


@dataclass(frozen=True, kw_only=True)
class ExcessLoss(ReferenceLoss):
    """Per-domain sums over the tokens trained on of max(cross entropy - cross entropy under the reference model, 0)."""

    name = "excess_loss"
    slots = ("mix",)
    per = "domain"
    free = True


REQUESTS: tuple[type[SignalRequest], ...] = (
    Loss, Tokens, TrainableTokens, TrainLoss, GivenWeight, HeldOutLoss, HeldOutTokens, HeldOutSums,
    TargetAlignment, PolicyAlignment, Interaction, Features, DomainGradients,
    RouterLoad, Embedding, TargetEmbedding, LayerEmbedding, ReferenceLoss, ExcessLoss,
)  # fmt: skip
_PLAIN: Mapping[str, SignalRequest] = {kind.name: kind() for kind in REQUESTS if issubclass(kind, _Plain)}


def as_request(given: Request) -> SignalRequest:
    """The request that a name stands for. DataflexError if there is none."""
    if isinstance(given, SignalRequest):
        return given
    if given not in _PLAIN:
        raise DataflexError(f"no signal is called {given!r}")
    return _PLAIN[given]


def as_requests(given: Iterable[Request]) -> frozenset[SignalRequest]:
    return frozenset(map(as_request, given))


def by_name(given: Iterable[Request]) -> list[SignalRequest]:
    """In the order of their names, which all ranks share."""
    return sorted(as_requests(given), key=name_of)


def name_of(request: Request) -> str:
    return getattr(request, "name", str(request))


def offered_to(slot: str) -> list[str]:
    """Names of the signals that a component of a slot may ask for, sorted."""
    return sorted({kind.name for kind in REQUESTS if slot in kind.slots})


def streamed_by(slot: str) -> list[str]:
    """Names of those that it may ask for where the data is a stream."""
    return [kind.name for kind in REQUESTS if slot in kind.slots and kind.streamed]
