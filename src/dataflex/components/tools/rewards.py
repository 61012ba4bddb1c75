"""Rewards of responses: functions of (prompts, responses, references), lists of str of one length -> one number each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from dataflex.components.registry import load_path
from dataflex.errors import ConfigError

Reward = Callable[[Sequence[str], Sequence[str], Sequence[str]], Sequence[float]]


def exact_match(prompts: Sequence[str], responses: Sequence[str], references: Sequence[str]) -> list[float]:
    """1 where the response is the reference, white space at both ends aside, else 0."""
    return [float(response.strip() == reference.strip()) for response, reference in zip(responses, references)]


def resolve_reward(name: str) -> Reward:
    """`exact_match` or `module:function`; ConfigError that begins with "reward" if there is no such function."""
    if name == "exact_match":
        return exact_match
    if ":" not in name:
        raise ConfigError(f"reward must be exact_match or module:function, got {name!r}")
    found = load_path(name, "reward")
    if not callable(found):
        raise ConfigError(f"reward must be a function, and {name} is none")
    return cast(Reward, found)
