"""Data sets to judge a model by, and the same figures computed one row at a time with the whole logits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from harness import Run
from models_and_data import load

CUTOFF = 96
ANSWERS = [
    ("Name a colour.", "blue"),
    ("Say hello in Greek.", "Γειά σου, κόσμε"),
    ("Count.", "one two three four five six seven eight nine ten"),
    ("What is 2 + 2?", "4"),
    ("Smile.", "🙂"),
    ("Repeat the word maple three times, please, and nothing else.", "maple maple maple"),
    ("Write a longer text. " * 12, "short"),  # the prompt is cut
    ("List letters.", "alpha beta gamma delta " * 12),  # the answer is cut
]
# Question, options, index of the right one.
QUESTIONS = [
    ("Which is a fruit?", ["apple", "a heavy stone", "rain"], 0),
    ("Which is größer?", ["Maus", "Elefant", "Ameise 🐜"], 1),
    ("Which is equal?", ["the same", "the same", "another"], 1),  # a tie if one of the two is best
    ("Which number?", ["1", "12", "123", "1234"], 2),
    ("Which is wet? " * 20, ["water", "sand"], 0),  # the prompt is cut
    ("Which is empty?", ["full", ""], 0),  # left out
    ("Which is alone?", ["only"], 0),  # left out
    ("Which is 水?", ["water", "fire"], 0),
    ("Which is outside?", ["a", "b"], 5),  # left out
    ("Which of two?", ["the first of two", "second"], 1),
]
LETTERED = [
    ("What is up?\nA. the sky\nB. the floor\nC. a cellar", "A"),
    ("What is down?\n(A) the sky\n(B) the floor", "The answer is B"),
    (
        "Choose: what burns?\n\nAnswer1: wood Answer2: water Answer3: a stone\n\nAnswer format: answer1/answer2/answer3",
        "answer1",
    ),
    ("What is unclear?\nA. this\nB. that", "neither"),  # left out
]
SUMS = [("7 + 5 =", "#### 12"), ("1,000 + 1 =", "The result is 1,001."), ("Say it.", "no number"), ("3 - 8 =", "-5")]


TALKS = [
    [("Hello, who is there?", "a model"), ("And what do you say?", "größer is better")],
    [("One question.", "one answer")],
]


def write_data(folder: Path) -> Path:
    """A dataset_dir with `answers`, `quiz` (right options by index), `quiz_text` (by text), `lettered`, `sums`, `texts` and
    `talks`."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = {"prompt": "instruction", "response": "output"}
    sets: dict[str, tuple[dict[str, str], list[dict[str, Any]]]] = {
        "answers": (pairs, [{"instruction": p, "output": a} for p, a in ANSWERS]),
        "quiz": ({"prompt": "question"}, [{"question": q, "options": o, "answer": a} for q, o, a in QUESTIONS]),
        "quiz_text": (
            {"prompt": "question"},
            [{"question": q, "texts": o, "right": (o * 9)[a]} for q, o, a in QUESTIONS[:4]],
        ),
        "lettered": (pairs, [{"instruction": p, "output": a} for p, a in LETTERED]),
        "sums": (pairs, [{"instruction": p, "output": a} for p, a in SUMS]),
        "texts": ({"prompt": "text"}, [{"text": f"{p} {a}"} for p, a in ANSWERS]),
    }
    talks = [
        {
            "messages": [
                m for q, a in talk for m in ({"role": "user", "content": q}, {"role": "assistant", "content": a})
            ]
        }
        for talk in TALKS
    ]
    sets["talks"] = ({"messages": "messages"}, talks)
    info: dict[str, Any] = {}
    for name, (columns, rows) in sets.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        info[name] = {"file_name": f"{name}.jsonl", "columns": columns}
    roles = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    info["talks"] |= {"formatting": "sharegpt", "tags": roles}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def judged(model: Path, data: Path, block: Any, **more: Any) -> dict[str, Any]:
    """A configuration of `evaluate`."""
    return {
        "model_name_or_path": str(model), "dataset_dir": str(data), "template": "chatml", "cutoff_len": CUTOFF, "use_cpu": True,
        "per_device_eval_batch_size": 3, "evaluate": block, **more,
    }  # fmt: skip


def start_evaluate(
    config: Mapping[str, Any], out: Path, *, ranks: int = 1, hooks: Sequence[str] = (), **env: str
) -> Run:
    out.mkdir(parents=True, exist_ok=True)
    file = out / "evaluate.yaml"
    file.write_text(yaml.safe_dump({**config, "output_dir": str(out)}))
    return Run(["evaluate", str(file)], out, ranks, hooks, env)


def evaluation(out: Path) -> dict[str, Any]:
    return json.loads((out / "dataflex" / "evaluation.json").read_text())


def evaluated(config: Mapping[str, Any], out: Path, **how: Any) -> dict[str, Any]:
    """evaluation.json of an evaluation that must succeed."""
    return evaluation(start_evaluate(config, out, **how).wait().ok.out)


class ByHand:
    """A model without batches: one row at a time, the logits of all tokens, in fp64 after the model."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self.model = load(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def prompt(self, question: str) -> list[int]:
        return self.ids(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")

    def nats(self, prompt: Sequence[int], answer: Sequence[int]) -> float:
        """-log p of the answer after the prompt."""
        with torch.no_grad():
            logits = self.model(torch.tensor([[*prompt, *answer]])).logits[0].double()
        found = logits.log_softmax(-1)
        return -sum(float(found[len(prompt) + n - 1, token]) for n, token in enumerate(answer))

    def generate(self, prompt: Sequence[int], most: int) -> str:
        """What transformers' own greedy search gives for one prompt."""
        ids = torch.tensor([list(prompt)])
        out = self.model.generate(ids, do_sample=False, max_new_tokens=most, pad_token_id=0)
        return self.tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True)
