"""Greedy answers to prompts, and how many of them are right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from dataflex.distributed.collectives import gather, rank, ranks
from dataflex.evaluating.figures import Figures, figures_of, mean_and_error
from dataflex.evaluating.likelihood import batches_of
from dataflex.evaluating.matching import final_number, normalised
from dataflex.signals.batching import share
from dataflex.signals.generation import UNBENT, left_padded
from dataflex.signals.isolation import isolated
from dataflex.signals.passing import in_rounds, passing


@dataclass(frozen=True)
class GenerationRows:
    """Prompts of a data set, and the responses that are asked for."""

    prompts: Sequence[list[int]]
    """Token ids."""
    references: Sequence[str]
    cut: int = 0
    """Prompts that are cut by cutoff_len."""
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Answer:
    """ids: generated tokens, without the one that ends the answer. ended: whether there was one within max_new_tokens."""

    ids: list[int]
    ended: bool


def greedy_answers(
    model: Any,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    stop: Sequence[int],
    pad: int,
    batch_rows: int,
    device: torch.device,
) -> list[Answer]:
    """The likeliest token after each other, until one of `stop`, equal on every rank. Prompts are padded on the left, so that
    every answer follows its prompt."""
    config = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=list(stop), pad_token_id=pad, **UNBENT
    )  # fmt: skip
    batches = batches_of(np.array([len(prompt) for prompt in prompts], dtype=np.int64), batch_rows)
    mine, _ = share(batches, rank(), ranks())
    rounds, found = in_rounds(batches), dict[int, Answer]()
    with isolated(model), passing("answers", len(prompts), unit="prompts") as under_way:
        for turn, batch in enumerate(mine):
            ids, mask = left_padded([prompts[i] for i in batch], pad)
            out = model.generate(
                input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=config, synced_gpus=False
            )
            for row, generated in zip(batch.tolist(), out[:, ids.shape[1] :].tolist(), strict=True):
                end = next((n for n, token in enumerate(generated) if token in stop), None)
                found[row] = Answer(generated if end is None else generated[:end], end is not None)
            under_way.advance(rounds[turn])
    found = {row: answer for part in gather(found) for row, answer in part.items()}
    return [found[row] for row in range(len(prompts))]


def generation_figures(data: GenerationRows, answers: Sequence[Answer], texts: Sequence[str], numbers: bool) -> Figures:
    """`exact_match`, the share of answers whose normalised text is that of the response; with `numbers` also `number_match`, the
    share with the same final number."""
    same = [normalised(text) == normalised(reference) for text, reference in zip(texts, data.references, strict=True)]
    found = {"exact_match": mean_and_error(np.array(same, dtype=float))}
    counts = {
        "generate_rows": len(same),
        "exact_match_correct": sum(same),
        "generate_cut_rows": data.cut,
        "generate_unended_rows": sum(not answer.ended for answer in answers),
        "generate_left_out": data.left_out.total(),
    }
    if numbers:
        equal = [final_number(t) == final_number(r) for t, r in zip(texts, data.references, strict=True)]
        found["number_match"] = mean_and_error(np.array(equal, dtype=float))
        counts["number_match_correct"] = sum(equal)
    return figures_of(found, counts, data.left_out)
