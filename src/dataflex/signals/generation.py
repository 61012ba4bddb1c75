"""Responses of the current model to prompts, in batches, and what a reward makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from dataflex.distributed.collectives import gather, rank, ranks
from dataflex.errors import DataflexError
from dataflex.signals.batching import share, token_batches
from dataflex.signals.isolation import isolated, loaded_whole
from dataflex.signals.passing import in_rounds, passing

# What is left unset is filled in from the checkpoint's own settings, and would bend the distribution.
UNBENT: Mapping[str, Any] = {
    "repetition_penalty": 1.0, "min_p": 0.0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
    "no_repeat_ngram_size": 0, "num_beams": 1, "use_cache": True,
}  # fmt: skip


def left_padded(prompts: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, int64 [B, T]: every prompt ends at the last index, where its answer begins."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    return ids, torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])


def sample_responses(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    *,
    count: int,
    max_new_tokens: int,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int,
    batch_tokens: int,
    device: torch.device,
) -> list[list[list[int]]]:
    """`count` responses to each prompt, equal on every rank: token ids, with the end token if it was drawn.

    Each batch has its own random numbers. So responses depend on `seed` and `batch_tokens`, not on the number of ranks.

    Args:
        top_k: Draw each token among so many likeliest; 0: all.
        top_p: Of these, draw among the likeliest that together have this probability.
        batch_tokens: Padded tokens of a batch.
    """
    config = GenerationConfig(
        do_sample=True,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        num_return_sequences=count,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **UNBENT,
    )
    # Batches are dealt to the ranks; dummies keep the number of calls equal.
    lengths = np.array([len(p) for p in prompts], dtype=np.int64)
    batches = token_batches(lengths + max_new_tokens, max(1, batch_tokens // count))
    numbers = list(range(len(batches)))
    mine, dummies = share([np.array([n]) for n in numbers], rank(), ranks())
    found: dict[int, list[list[int]]] = {}
    rounds = in_rounds(batches)
    with isolated(model), passing("responses", len(prompts), unit="prompts") as under_way:
        for turn, number in enumerate([int(n[0]) for n in mine] + numbers[:1] * dummies):
            rows = batches[number]
            ids, mask = left_padded([prompts[i] for i in rows], tokenizer.pad_token_id)
            torch.manual_seed((seed + number) % 2**63)
            # Every rank goes on until all are done: sharded weights are gathered at every token.
            out = model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                generation_config=config,
                synced_gpus=ranks() > 1,
            )
            if turn < len(mine):
                answers = [_until_end(a, tokenizer.eos_token_id) for a in out[:, ids.shape[1] :].tolist()]
                found |= {int(row): answers[n * count : (n + 1) * count] for n, row in enumerate(rows)}
            under_way.advance(rounds[turn])
    # Every rank gets the responses of all.
    found = {row: answers for part in gather(found) for row, answers in part.items()}
    return [found[i] for i in range(len(prompts))]


def _until_end(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end) + 1] if end in ids else ids


def model_rewards(path: str, device: torch.device, batch_tokens: int) -> Callable[..., list[float]]:
    """The output of a sequence classifier with one output on prompt and response, as a reward. It is loaded when it is asked
    for and given up afterwards; a chat template of its tokenizer renders the two."""

    def reward(prompts: Sequence[str], responses: Sequence[str], references: Sequence[str]) -> list[float]:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        try:
            with loaded_whole():
                model = AutoModelForSequenceClassification.from_pretrained(path).to(device).eval()
            tokenizer = AutoTokenizer.from_pretrained(path)
        except (OSError, ValueError) as error:
            raise DataflexError(
                f"reward_model_path: {path} cannot be loaded: {' '.join(str(error).split())}"
            ) from error
        if model.config.num_labels != 1:
            raise DataflexError(f"reward_model_path: {path} has {model.config.num_labels} outputs; a reward has one")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if model.config.pad_token_id is None:
            model.config.pad_token_id = tokenizer.pad_token_id
        texts = [_render(tokenizer, p, r) for p, r in zip(prompts, responses)]
        special = not getattr(tokenizer, "chat_template", None)  # which brings its own
        ids = [tokenizer(t, truncation=True, add_special_tokens=special)["input_ids"] for t in texts]
        out = np.empty(len(ids))
        with torch.no_grad(), passing("rewards", len(ids), unit="responses") as under_way:
            for rows in token_batches(np.array([len(i) for i in ids]), batch_tokens):
                batch = tokenizer.pad({"input_ids": [ids[i] for i in rows]}, return_tensors="pt").to(device)
                out[rows] = model(**batch).logits[:, 0].float().cpu().numpy()
                under_way.advance(len(rows))
        return out.tolist()  # type: ignore[no-any-return]

    return reward


def _render(tokenizer: Any, prompt: str, response: str) -> str:
    if getattr(tokenizer, "chat_template", None):
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        return str(tokenizer.apply_chat_template(turns, tokenize=False))
    return f"{prompt}\n{response}"
