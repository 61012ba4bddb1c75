"""The target of a policy gradient: responses of the current model to the target's prompts, weighted by their rewards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xxhash

from dataflex.components.requests import PolicyAlignment
from dataflex.components.tools.rewards import resolve_reward
from dataflex.data.rows import SAMPLE_IDS, Rows
from dataflex.distributed.collectives import decide
from dataflex.errors import DataflexError
from dataflex.signals.cross_entropy import IGNORE
from dataflex.signals.generation import model_rewards, sample_responses
from dataflex.signals.gradients.passes import MERGE_WEIGHTS
from dataflex.signals.isolation import isolated


@dataclass(frozen=True)
class PolicyRows:
    """Item i: the responses to prompt i as rows of a batch, and their weights. Built to be served by `ScoringRows`.

    loss of item i: sum over its responses of weight x token-mean loss. lengths: tokens of all rows of an item, padded.
    """

    items: list[tuple[list[dict[str, Any]], list[float]]]
    collate_rows: Callable[[list[dict[str, Any]]], Any]

    def __len__(self) -> int:
        return len(self.items)

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        return [self.items[i] for i in indices]

    def collate(self, items: list[Any]) -> Any:
        batch = self.collate_rows(
            [dict(row) for rows, _ in items for row in rows]
        )  # collators take keys off their rows
        return {**batch, MERGE_WEIGHTS: torch.tensor([weights for _, weights in items])}

    def fingerprint(self) -> str:
        """A hash of all tokens, labels and weights."""
        shown = [([(list(r["input_ids"]), list(r["labels"])) for r in rows], weights) for rows, weights in self.items]
        return xxhash.xxh3_64_hexdigest(repr(shown).encode())

    def lengths(self) -> np.ndarray:
        return np.array([len(rows) * max(len(r["input_ids"]) for r in rows) for rows, _ in self.items], dtype=np.int64)


def policy_rows(
    request: PolicyAlignment,
    target: Rows,
    *,
    model: Any,
    tokenizer: Any,
    collate: Callable[[list[dict[str, Any]]], Any],
    step: int,
    batch_tokens: int,
    device: torch.device,
) -> tuple[PolicyRows, dict[str, float]]:
    """One item per row of the target, and what to report of the rewards. Equal on every rank.

    The policy gradient of a prompt is that of sum_m (r_m - b) / M x (tokens of y_m) x (token-mean loss of y_m). A row without
    a prompt or without a response in its labels stands for itself.
    """
    # Prompts of the target that can be answered.
    rows = [{k: v for k, v in target[i].items() if k != SAMPLE_IDS} for i in range(len(target))]
    if any(row.get(kind) for row in rows for kind in ("images", "videos", "audios")):
        raise DataflexError("nice answers in text alone, and the target has rows with images, videos or audio")
    split = [_split(row) for row in rows]
    usable = [i for i, (prompt, reference) in enumerate(split) if prompt and reference]
    if not usable:
        raise DataflexError("the target has no row with a prompt and a response")
    longest = request.max_prompt_length
    positions = getattr(model.config, "max_position_embeddings", None) or getattr(model.config, "n_positions", None)
    if positions is not None:
        if request.max_new_tokens >= positions:
            raise DataflexError(f"max_new_tokens: the model has {positions} positions; leave some for the prompt")
        longest = min(longest, positions - request.max_new_tokens)
    prompts = [split[i][0][-longest:] for i in usable]
    # Responses, and their rewards from rank 0.
    answers = sample_responses(
        model, tokenizer, prompts, count=request.samples, max_new_tokens=request.max_new_tokens,
        temperature=request.temperature, top_k=request.top_k, top_p=request.top_p,
        seed=request.seed * 1_000_003 + step * 7919, batch_tokens=batch_tokens, device=device,
    )  # fmt: skip

    def score() -> list[float]:
        def text(ids: list[int]) -> str:
            return str(tokenizer.decode(ids, skip_special_tokens=True))

        model_path = request.reward_model
        reward = (
            resolve_reward(request.reward) if model_path is None else model_rewards(model_path, device, batch_tokens)
        )
        asked = [text(p) for p, own in zip(prompts, answers) for _ in own]
        wanted = [text(split[i][1]) for i, own in zip(usable, answers) for _ in own]
        try:
            values = [float(v) for v in reward(asked, [text(a) for own in answers for a in own], wanted)]
        except DataflexError:
            raise
        except (Exception, SystemExit) as error:  # whatever a user's function raises
            said = " ".join(f"{type(error).__name__}: {error}".split())
            raise DataflexError(f"reward: {request.reward} failed: {said}") from error
        if len(values) != len(asked) or not np.isfinite(values).all():
            raise DataflexError(f"reward: {request.reward} must return one finite number per response")
        return values

    with isolated(model):  # whatever a reward draws or loads
        rewards = np.array(decide(score)).reshape(len(usable), request.samples)
    # Each prompt becomes its weighted responses; a row without use of them stays itself.
    items: list[tuple[list[dict[str, Any]], list[float]]] = [
        ([row] * request.samples, _alone(request.samples)) for row in rows
    ]
    agreed = 0
    for index, i in enumerate(usable):
        r, own = rewards[index], answers[index]
        if (request.samples > 1 and np.ptp(r) == 0) or not r.any():
            agreed += 1
            continue  # the row itself
        advantage = r - r.mean() if request.baseline == "mean" else r
        weights = [float(a) * len(y) / request.samples for a, y in zip(advantage, own)]
        items[i] = [_row(prompts[index], y) for y in own], weights
    report = {"dataflex/reward/mean": float(rewards.mean()), "dataflex/reward/agreed": agreed / len(usable)}
    return PolicyRows(items, collate), report


def remarks_on(request: PolicyAlignment, report: Mapping[str, float]) -> dict[str, str]:
    """What a user should know of the rewards of a decision. report: that of `policy_rows`."""
    mean, agreed = report["dataflex/reward/mean"], report["dataflex/reward/agreed"]
    given_by = request.reward if request.reward_model is None else request.reward_model
    found = {"reward": f"rewards by {given_by}: {mean:.3g} on average, alike for {agreed:.0%} of the prompts"}
    if agreed == 1:
        found["agreed"] = (
            "all rewards of every prompt agree, so they have no say: the target's own responses take their place, and this is"
            " the selection of less; set reward or reward_model_path to one that tells responses apart, or raise mc_samples"
        )
    return found


def _split(row: dict[str, Any]) -> tuple[list[int], list[int]]:
    """The tokens before the last response of a row, and that response."""
    trained = np.asarray(row["labels"]) != IGNORE
    if not trained.any():
        return [], []
    end = len(trained) - int(trained[::-1].argmax())
    start = end - int(np.append(~trained[:end][::-1], True).argmax())
    return list(row["input_ids"][:start]), list(row["input_ids"][start:end])


def _row(prompt: list[int], response: list[int]) -> dict[str, Any]:
    ids = prompt + response
    return {
        "input_ids": ids,
        "attention_mask": [1] * len(ids),
        "labels": [IGNORE] * len(prompt) + response,
        "images": None,
        "videos": None,
        "audios": None,
    }


def _alone(count: int) -> list[float]:
    return [1.0] + [0.0] * (count - 1)
