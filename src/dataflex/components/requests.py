"""What a component may ask to have measured. Plain signals have a name, those with parameters are requests of this module.

Equal requests of several components at one step are measured once. In the `signals` that a component is given, a value
stands under the request's `name`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

PLAIN: Mapping[str, str] = {
    "loss": "token-mean cross entropy (or the stage's own loss) of each pool row under the current model; one forward pass",
    "tokens": "tokens of each pool row, those of its prompt included; read from the data",
    "trainable_tokens": "tokens of each pool row that carry a loss; read from the data",
    "train_loss": "per-domain sums of the losses of the rows trained on since the last update; free",
    "given_weight": "weight that the data set itself gives a row or a message (read from a column), per row or token trained on",
    "heldout_loss": "token-mean cross entropy of each held-out row of each domain; one forward pass over those rows",
    "heldout_tokens": "tokens of each held-out row of each domain that carry a loss (a pair counts as one); the same pass",
}
HELD_OUT = ("heldout_loss", "heldout_tokens")


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """How the gradient of a row (of its token-mean cross entropy) is taken.

    gradient_type: `sgd`, the gradient itself, or `adam`, the step that Adam would take on it, with the moments of the run.
    adam_step: which step, that of the run's `optimizer`, or that of the program of LESS's `authors`. parameters: `linear`,
    all trainable linear layers but the output embedding, or `all`. proj_dim: project to so many values; None: exact where
    that fits. seed: of the projection.
    """

    gradient_type: Literal["adam", "sgd"] = "adam"
    adam_step: Literal["optimizer", "authors"] = "optimizer"
    parameters: Literal["linear", "all"] = "linear"
    proj_dim: int | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class TargetAlignment(Gradient):
    """float [rows, K]: for each of the K subtasks of the target, the mean over its rows of the cosine between the row's
    direction (of `gradient_type`) and the target row's gradient (always sgd).

    boundaries: numbers of rows that cut the target, in order, into subtasks of its own; None: one per data set.
    """

    name: ClassVar[str] = "target_alignment"
    boundaries: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class PolicyAlignment(Gradient):
    """As TargetAlignment, but a target row stands for its prompt, and its gradient is that of a reward.

    samples: responses drawn per prompt from the current model, at `temperature`, of at most max_new_tokens tokens, each among
    the top_k likeliest (0: all) that together have the probability top_p. reward: `exact_match` with the target's own
    response, or `module:function` of (prompts, responses, references), lists of str -> one number each. reward_model: a
    sequence classifier with one output instead. baseline: what is taken off the rewards of a prompt, nothing (`none`) or
    their mean (`mean`).
    """

    name: ClassVar[str] = "target_alignment"
    samples: int = 4
    max_new_tokens: int = 512
    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 1.0
    reward: str = "exact_match"
    reward_model: str | None = None
    baseline: Literal["none", "mean"] = "none"
    max_prompt_length: int = 4096


@dataclass(frozen=True, kw_only=True)
class Interaction(Gradient):
    """float [rows, 1 + rows]: <g_i, mean gradient of the target>, then <g_i, g_j> for every row j measured (0 for a j without
    a gradient). target_rows: rows of the target used, drawn afresh at every step; None: all."""

    name: ClassVar[str] = "interaction"
    target_rows: int | None = None


@dataclass(frozen=True, kw_only=True)
class Features(Gradient):
    """float [rows, proj_dim]: the directions themselves; without proj_dim every value of them is kept."""

    name: ClassVar[str] = "features"


@dataclass(frozen=True, kw_only=True)
class DomainGradients(Gradient):
    """float [domains, 2, domains, 2]: <g_da, g_eb>, where g_d0 and g_d1 are the mean gradients of the two halves of `rows`
    rows of domain d, which have no row in common; drawn afresh at every step. <g_d0, g_d1> is an unbiased estimate of the
    squared length of the domain's gradient; the product of a mean gradient with itself adds the noise of its rows."""

    name: ClassVar[str] = "domain_gradients"
    rows: int = 8


@dataclass(frozen=True, kw_only=True)
class RouterLoad:
    """float [domains, experts] for a mixture-of-experts model: of the tokens of a domain, the share that each expert of a layer
    (-1: the last) is given; measured on `rows` rows in all, as many of each domain, drawn afresh at every step: of the data set
    that `mix.eval_dataset` names for a domain, else of what it trains on."""

    name: ClassVar[str] = "router_load"
    rows: int = 1000
    layer: int = -1
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """float32 [rows, hidden]: hidden states of the current model after `layer` (-1: the last; 0: its input), pooled over the
    tokens of a row.

    pooling: `mean`; `weighted_mean`, token i of n weighing i (SGPT, arXiv 2202.08904); `last`, the last token alone. Padding
    counts on neither side; a packed row is the mean of its sequences, each pooled by itself. model: a sentence-transformers
    model that reads the text of the row instead; layer and pooling are then its own.
    """

    name: ClassVar[str] = "embedding"
    layer: int = -1
    pooling: Literal["mean", "weighted_mean", "last"] = "mean"
    model: str | None = None


@dataclass(frozen=True, kw_only=True)
class TargetEmbedding(Embedding):
    """The same of the target: float32 [target rows, hidden], in the order of the target and not of the candidates."""

    name: ClassVar[str] = "target_embedding"


@dataclass(frozen=True, kw_only=True)
class ReferenceLoss:
    """Cross entropy under a reference model of the rows (token mean) or tokens that a weighter weighs: measured once for all
    tokens, before training.

    model: the reference, as `model_name_or_path` names one. store: directory that its losses are kept in, where other runs
    find them; None: that of the run."""

    name: ClassVar[str] = "reference_loss"
    model: str
    store: str | None = None


@dataclass(frozen=True, kw_only=True)
class ExcessLoss(ReferenceLoss):
    """Per-domain sums over the tokens trained on of max(cross entropy - cross entropy under the reference, 0)."""

    name: ClassVar[str] = "excess_loss"


Request = (
    str
    | TargetAlignment
    | PolicyAlignment
    | Interaction
    | Features
    | Embedding
    | DomainGradients
    | RouterLoad
    | ReferenceLoss
)


def name_of(request: Request) -> str:
    return request if isinstance(request, str) else request.name


def names_of(requests: Iterable[Request]) -> list[str]:
    """Sorted names."""
    return sorted(map(name_of, requests))


def aims_at_target(requests: Iterable[Request]) -> bool:
    """Whether any of them needs the rows of a target."""
    return any(isinstance(r, TargetAlignment | PolicyAlignment | Interaction | TargetEmbedding) for r in requests)


def adam_directions(requests: Iterable[Request]) -> bool:
    """Whether any of them reads the moments of the run's optimizer."""
    return any(isinstance(r, Gradient) and r.gradient_type == "adam" for r in requests)


def takes_gradients(requests: Iterable[Request]) -> bool:
    return any(isinstance(r, Gradient) for r in requests)
