"""NICE: rows whose gradients raise a reward on the target (Wang et al., ICML 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar, Literal

import numpy as np

from dataflex.components.contexts import Selection, SelectionContext, State
from dataflex.components.requests import PolicyAlignment
from dataflex.components.tools.gradients import GradientSelector
from dataflex.components.tools.rewards import resolve_reward
from dataflex.components.tools.sampling import highest


@dataclass(frozen=True, kw_only=True)
class NiceSelector(GradientSelector):
    """LESS with another target gradient: where what counts is not the loss but a metric without a gradient, the policy
    gradient takes its place. For a prompt x of the target, with responses y_1 .. y_M of the current model,

        g(x) = - 1/M sum over m of  (r(x, y_m) - b) grad log p(y_m | x),        score(z) = max over subtasks of
                                                                                mean over x of cos(Gamma(z), g(x))

    b = 0 or the mean reward of the prompt (`baseline`). Where the rewards of a prompt all agree they say nothing about what
    is better, and the gradient of the loss on the target's own response is used. Responses are drawn as in the authors'
    scripts: at `generation_temperature`, each token among the `top_k` likeliest (0: all) that together have the probability
    `top_p`.
    """

    reward: str = "exact_match"
    reward_model_path: str | None = None
    mc_samples: int = 20
    max_new_tokens: int = 512
    generation_temperature: float = 1.2
    top_k: int = 50
    top_p: float = 0.95
    max_prompt_length: int = 4096
    baseline: Literal["none", "mean"] = "none"
    seed: int = 42

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
        score = signals["target_alignment"].max(axis=1)
        return Selection(highest(score, context.budget), score), state
