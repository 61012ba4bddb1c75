"""Multiple-choice questions as the data sets write them, and which of their options a model finds likeliest."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import settings


def options_of(row: dict[str, Any]) -> list[str]:
    """The answers a row could have, its own among them, as the data writes them; [] if it is not multiple choice.

    The data names its options in one of two ways: "Answer format: answer1/answer2/..." in the instruction, with an answer
    that ends in one of them, or lines "A. ...", "B. ..." in the input, with a letter as the answer.
    """
    answer = row["output"]
    given = re.search(r"^Answer format: (\S+/\S+)\s*$", row["instruction"], re.M)
    if given is not None:
        labels = given[1].split("/")
        stem = answer.rpartition(" ")[0]
        options = [f"{stem} {label}".lstrip() for label in labels]
    else:
        options = sorted(set(re.findall(r"^([A-Z])\. ", row["input"], re.M)))
        if options != [chr(ord("A") + i) for i in range(len(options))]:
            return []
    return options if len(options) > 1 and answer in options else []


def prompt_of(row: dict[str, Any]) -> str:
    """Instruction and input, as LLaMA-Factory puts them together."""
    return "\n".join(part for part in (row["instruction"], row["input"]) if part)


def cloze_of(row: dict[str, Any]) -> tuple[str, list[str]]:
    """The question alone, and the options it has, in words, in the order of `options_of`; no options where these are not spelled
    out or a row is not multiple choice. For models that have read text and no instructions: they cannot know what "answer3" or
    "C" stands for, but may find the right words likelier than the wrong ones."""
    names = options_of(row)
    listed = re.search(r"^[^\n]*?: (.+?)\s*\n\s*(Answer1: .+?)\s*^Answer format: ", row["instruction"], re.M | re.S)
    if listed is not None:
        question, parts = listed[1], re.split(r"(?:^|\s)Answer(\d+): ", listed[2])
        labels = [str(i) for i in range(1, len(names) + 1)]
    else:
        question, *parts = re.split(r"^([A-Z])\. ", row["input"], flags=re.M)
        parts, labels = ["", *parts], names
    options = [part.strip() for part in parts[2::2]]
    whole = bool(names) and parts[1::2] == labels and all(options)
    return question.strip(), options if whole else []


def cloze_rows(
    tokenizer: Any, files: Mapping[str, Path], count: int, cutoff: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], np.ndarray]:
    """Rows for `evaluate`, one for every option of at most `count` questions of each task's file; the questions, in the order
    of the rows; and the bytes of each option. "Question: ...", a line "Answer:" and an option must fit into `cutoff` tokens;
    only the option is learned. Which questions are taken depends on the tokenizer, and on nothing else."""
    rows: list[dict[str, Any]] = []
    asked: list[dict[str, Any]] = []
    sizes: list[int] = []
    for task, file in files.items():
        found = settings.read_rows(file)
        taken = 0
        for row in random.Random(0).sample(found, len(found)):
            if taken == count:
                break
            question, options = cloze_of(row)
            prompt = tokenizer(f"Question: {question}\nAnswer:", add_special_tokens=False)["input_ids"]
            answers = [tokenizer(f" {option}", add_special_tokens=False)["input_ids"] for option in options]
            if not answers or len(prompt) + max(map(len, answers)) > cutoff:
                continue
            taken += 1
            rows += [{"input_ids": prompt + a, "labels": [-100] * len(prompt) + a} for a in answers]
            sizes += [len(option.encode()) for option in options]
            right = options_of(row).index(row["output"])
            asked.append({"task": task, "options": len(options), "right": right})
    return rows, asked, np.array(sizes)


def about(asked: Sequence[dict[str, Any]], tasks: Iterable[str]) -> dict[str, Any]:
    """asked: how many questions each task has. chance: the accuracy of guessing."""
    return {
        "asked": {task: sum(q["task"] == task for q in asked) for task in tasks},
        "chance": float(np.mean([1 / q["options"] for q in asked])),
    }


def evaluate(
    model: Any,
    rows: Sequence[dict[str, Any]],
    asked: Sequence[dict[str, Any]],
    tokens: int,
    sizes: np.ndarray | None = None,
) -> dict[str, Any]:
    """loss: mean over the tokens of all right answers. accuracy: share of the questions whose right option the model finds
    likeliest, and the same for each task. guessing: the loss of a model that knows how answers are written and finds all
    options equally likely. rows: the options of all questions, tokenized. asked: of each question its task, how many options it
    has and which is right. sizes: of each option; log-likelihoods are divided by them before they are compared."""
    likelihood, count = likelihoods(model, rows, tokens)
    starts = np.cumsum([0, *(q["options"] for q in asked)])
    assert starts[-1] == len(rows), f"{len(rows)} rows for {starts[-1]} options"
    right = starts[:-1] + [q["right"] for q in asked]
    score = likelihood if sizes is None else likelihood / sizes
    hits = np.array([score[a:b].argmax() + a for a, b in pairwise(starts)]) == right
    of_task = np.array([q["task"] for q in asked])
    return {
        "loss": float(-likelihood[right].sum() / count[right].sum()),
        "guessing": float(np.log([q["options"] for q in asked]).sum() / count[right].sum()),
        "accuracy": float(hits.mean()),
        "tasks": {task: float(hits[of_task == task].mean()) for task in dict.fromkeys(of_task.tolist())},
    }


def likelihoods(model: Any, rows: Sequence[dict[str, Any]], tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Log-likelihood of each row's labels given what comes before, float64, and how many there are. A batch has at most
    `tokens` tokens, padding counted; the model is left in the mode it was in."""
    import torch
    from torch.nn.functional import cross_entropy

    out, counts = np.empty(len(rows)), np.empty(len(rows), dtype=np.int64)
    lengths = np.array([len(row["input_ids"]) for row in rows])
    order, mode, place = np.argsort(lengths, kind="stable"), model.training, 0
    device = next(model.parameters()).device
    model.eval()
    while place < len(order):
        end = place + 1
        while end < len(order) and lengths[order[end]] * (end + 1 - place) <= tokens:
            end += 1
        batch, width = order[place:end], int(lengths[order[end - 1]])
        ids, labels = torch.zeros(len(batch), width, dtype=torch.long), torch.full((len(batch), width), -100)
        for i, row in enumerate(batch):
            ids[i, : lengths[row]] = torch.as_tensor(rows[row]["input_ids"])
            labels[i, : lengths[row]] = torch.as_tensor(rows[row]["labels"])
        mask = torch.arange(width) < torch.as_tensor(lengths[batch])[:, None]
        first = int((labels != -100).any(0).int().argmax())
        with torch.no_grad():
            kept = torch.arange(first - 1, width - 1, device=device)
            logits = model(
                input_ids=ids.to(device), attention_mask=mask.long().to(device), use_cache=False, logits_to_keep=kept
            ).logits.float()
            wanted = labels[:, first:].to(device)
            found = cross_entropy(logits.transpose(1, 2), wanted, reduction="none", ignore_index=-100)
        out[batch] = -found.double().sum(1).cpu().numpy()
        counts[batch] = (wanted != -100).sum(1).cpu().numpy()
        place = end
    model.train(mode)
    return out, counts
