"""Requests for what is made from gradients of rows (see `requests.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from dataflex.components.signal_request import SignalRequest, Work


@dataclass(frozen=True, kw_only=True)
class Gradient(SignalRequest):
    """How the gradient of a row (of its token-mean cross entropy) is taken."""

    takes_gradients = True
    needs_tokens = True
    work: ClassVar[Work] = "forward and backward"
    cost = "a forward and backward pass over the data per update"

    gradient_type: Literal["adam", "sgd"] = "adam"
    """`sgd`: the gradient itself. `adam`: the step that Adam would take on it, with the moments of the run."""
    adam_step: Literal["optimizer", "authors"] = "optimizer"
    """Which step: that of the run's `optimizer`, or that of the program of LESS's `authors`."""
    parameters: Literal["linear", "all"] = "linear"
    """`linear`: all trainable linear layers but the output embedding."""
    proj_dim: int | None = None
    """Project to so many values; None: exact where that fits."""
    seed: int = 0
    """Of the projection."""
    gradient_precision: Literal["run", "fp32"] = "run"
    """Of products of gradients in a bf16 run on a CPU with AMX or avx512_bf16: `run`: bf16; `fp32`. Elsewhere always fp32."""

    def reads_moments(self) -> bool:
        return self.gradient_type == "adam"

    def needs_whole_parameters(self) -> bool:
        return self.parameters == "all"


@dataclass(frozen=True, kw_only=True)
class TargetAlignment(Gradient):
    """float64 [rows, K]: for each of the K subtasks of the target, the mean over its rows of the cosine between the row's
    direction (of `gradient_type`) and the target row's gradient (always sgd)."""

    name = "target_alignment"
    slots = ("select",)
    aim = "target"
    cost = "a forward and backward pass over the data and the target per update"
    kept = True

    boundaries: tuple[int, ...] | None = None
    """Numbers of rows that cut the target, in order, into subtasks of its own; None: one per data set."""


@dataclass(frozen=True, kw_only=True)
class PolicyAlignment(Gradient):
    """As TargetAlignment, but a target row stands for its prompt, and its gradient is that of a reward."""

    name = "target_alignment"
    slots = ("select",)
    aim = "target"
    work = "generation"
    cost = "responses to the prompts of the target, a forward and backward pass over the data and the responses"
    needs_prompts = True
    kept = True

    samples: int = 4
    """Responses drawn per prompt from the current model."""
    max_new_tokens: int = 512
    """The longest response."""
    temperature: float = 0.7
    """Of the draws."""
    top_k: int = 0
    """Draw each token among so many likeliest; 0: all."""
    top_p: float = 1.0
    """Draw each token among the likeliest that together have this probability."""
    reward: str = "exact_match"
    """`exact_match` with the target's own response, or `module:function` of (prompts, responses, references), lists of
    str -> one number each."""
    reward_model: str | None = None
    """A sequence classifier with one output, in place of `reward`."""
    baseline: Literal["none", "mean"] = "none"
    """What is taken off the rewards of a prompt: nothing, or their mean."""
    max_prompt_length: int = 4096
    """In tokens."""

    def other_models(self) -> Mapping[str, str]:
        return {} if self.reward_model is None else {"reward model": self.reward_model}


@dataclass(frozen=True, kw_only=True)
class Interaction(Gradient):
    """float64 [rows, 1 + rows]: <g_i, mean gradient of the target>, then <g_i, g_j> for every row j measured (0 for a j
    without a gradient)."""

    name = "interaction"
    slots = ("select",)
    aim = "target"
    cost = "a forward and backward pass over the rows measured and the rows of the target; their gradients all at once"

    target_rows: int | None = None
    """Rows of the target used, drawn afresh at every step; None: all."""


@dataclass(frozen=True, kw_only=True)
class Features(Gradient):
    """float64 [rows, proj_dim]: the directions themselves; without proj_dim every value of them is kept."""

    name = "features"
    slots = ("select",)
    kept = True
    cost = "a forward and backward pass over the data per update; rows x values in fp64"


@dataclass(frozen=True, kw_only=True)
class DomainGradients(Gradient):
    """float64 [domains, 2, domains, 2]: <g_da, g_eb>, where g_d0 and g_d1 are the mean gradients of two halves of rows of
    domain d that have no row in common, drawn afresh at every step.

    <g_d0, g_d1> is an unbiased estimate of the squared length of the domain's gradient. The product of a mean gradient with
    itself adds the noise of its rows.
    """

    name = "domain_gradients"
    slots = ("mix",)
    per = "domain"
    cost = "a forward and backward pass over some rows of each domain per update"

    rows: int = 8
    """Of each domain, in both halves together."""
    gradient_precision: Literal["run", "fp32"] = "fp32"
    """As above. Means of few rows are compared, and they take little time."""
