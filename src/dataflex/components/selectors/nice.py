"""NICE: rows whose gradients raise a reward on the target (Wang et al., ICML 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar, Literal

import numpy as np

from dataflex.components.contexts import Selection, SelectionContext, State
from dataflex.components.paper import Paper
from dataflex.components.requests import PolicyAlignment
from dataflex.components.tools.gradients import GradientSelector, best_datasets
from dataflex.components.tools.rewards import resolve_reward
from dataflex.components.tools.sampling import highest


@dataclass(frozen=True, kw_only=True)
class NiceSelector(GradientSelector):
    """Rows whose gradients raise a reward on the target.

    LESS with another target gradient: where what counts is not the loss but a metric without a gradient, the policy
    gradient takes its place. For a prompt x of the target, with responses y_1 .. y_M of the current model,

        g(x) = - 1/M sum over m of  (r(x, y_m) - b) grad log p(y_m | x),        score(z) = max over subtasks of
                                                                                mean over x of cos(Gamma(z), g(x))

    b = 0 or the mean reward of the prompt (`baseline`). Where the rewards of a prompt all agree they say nothing about what
    is better, and the gradient of the loss on the target's own response is used. Responses are drawn as in the authors'
    scripts.

    Departures:

    Compared with their scripts (`collect_generation.py`, `running_commands.sh`). How responses are drawn is as there, with M
    = 20. What is different:

    - *Rewards that agree.* Their default policy uses the policy gradient as it is: where all rewards of a prompt are 0 it is
      zero, and the prompt has no say; where they are equal and not 0 it stays. Here the gradient of the target's own response
      takes its place, as with their `--worst_case_protect`. With a reward that is always 0 this is the selection of `less`.
    - `max_new_tokens` is 100 to 512 there, by task.
    - dataflex 1.1.0 drew 4 responses at temperature 0.7 from the whole distribution; files written for it still do.
    """

    reward: str = "exact_match"
    """`exact_match` with the target's own response, or `module:function` of prompts, responses and references."""
    reward_model_path: str | None = None
    """A reward model (directory or name on the hub), with which `reward` is left out; null: rewards are those of `reward`."""
    mc_samples: int = 20
    """Responses per prompt, M."""
    max_new_tokens: int = 512
    """Tokens of a response at most."""
    generation_temperature: float = 1.2
    """Temperature that responses are drawn at."""
    top_k: int = 50
    """Each token is drawn among so many likeliest; 0: among all."""
    top_p: float = 0.95
    """And among those of them that together are so probable."""
    max_prompt_length: int = 4096
    """Tokens of a prompt that are kept, counted from its end."""
    baseline: Literal["none", "mean"] = "none"
    """b: what is taken off the rewards of a prompt; `mean` needs two responses or more."""
    seed: int = 42
    """Of responses and projection."""

    paper: ClassVar[Paper | None] = Paper(
        authors="Wang et al.",
        title="NICE Data Selection for Instruction Tuning in LLMs with Non-differentiable Evaluation Metric",
        venue="ICML 2025",
    )
    defaults_of_1_1: ClassVar[Mapping[str, Any]] = {
        "mc_samples": 4, "generation_temperature": 0.7, "top_k": 0, "top_p": 1.0,
    }  # fmt: skip
    retired: ClassVar[Mapping[str, str]] = {
        **GradientSelector.retired,
        "policy_model_path": "responses are those of the model being trained",
        "prompt_template": "prompts are rendered by the run's own template",
        "reward_prompt_with_ref": "a reward function is given prompt, response and reference",
        "reward_prompt_without_ref": "a reward function is given prompt, response and reference",
        "reward_model_backend": "a reward is reward_model_path or a function, `reward: module:function`",
        "reward_backend_params": "a reward is reward_model_path or a function, `reward: module:function`",
    }

    def check(self) -> None:
        resolve_reward(self.reward)
        self.require(
            "reward", self.reward_model_path is None or self.reward == "exact_match", "left out with reward_model_path"
        )
        self.require("mc_samples", self.mc_samples >= 1, "at least 1")
        self.require("mc_samples", self.baseline == "none" or self.mc_samples > 1, "at least 2 with baseline: mean")
        self.require("max_new_tokens", self.max_new_tokens >= 1, "at least 1")
        self.require("max_prompt_length", self.max_prompt_length >= 1, "at least 1")
        self.require("generation_temperature", 0 < self.generation_temperature < inf, "positive and finite")
        self.require("top_k", self.top_k >= 0, "at least 0 (0: no limit)")
        self.require("top_p", 0 < self.top_p <= 1, "in (0, 1]")
        super().check()

    def request(self) -> PolicyAlignment:
        return PolicyAlignment(
            **self.taken,
            samples=self.mc_samples,
            max_new_tokens=self.max_new_tokens,
            temperature=self.generation_temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            reward=self.reward,
            reward_model=self.reward_model_path,
            baseline=self.baseline,
            max_prompt_length=self.max_prompt_length,
        )

    def select(
        self, state: State, signals: Mapping[str, np.ndarray], context: SelectionContext
    ) -> tuple[Selection, State]:
        alignment = signals["target_alignment"]
        score = alignment.max(axis=1)
        chosen = highest(score, context.budget)
        return Selection(chosen, score, **best_datasets(alignment, chosen)), state
