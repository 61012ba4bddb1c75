"""One run of curves.py: its rows and multiple-choice questions, how likely a model finds their options, and the time it takes."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import common
import numpy as np

POOL = (
    "dolly_3k", "alpaca", "gsm8k_train", "code_alpaca", "squad_xquad_en", "boolq",
    "arc_easy", "arc_challenge", "openbookqa", "mmlu_dev_val",
)  # fmt: skip
# Data sets of the pool that are aimed at -> files the target and the questions of the evaluation are taken from.
TASKS = {
    "arc_easy": ("arc_easy.heldout", "arc_easy.heldout"),
    "arc_challenge": ("arc_challenge.heldout", "arc_challenge.heldout"),
    "openbookqa": ("openbookqa.heldout", "openbookqa.heldout"),
    "mmlu_dev_val": ("mmlu_dev_val.heldout", "mmlu_test.heldout"),
}
QUESTIONS = "questions"
_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output"}


def run(job: dict[str, Any], data: Path, result: Path) -> None:
    """One training run in a process of its own, which ends with its parent; what it saw is written to `result`, last of all."""
    threading.Thread(target=common.end_with_parent, daemon=True).start()
    scratch, log = result.with_suffix(".running"), result.with_suffix(".log")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    preset = replace(common.PRESETS["gpu" if job["gpu"] else "cpu"], cutoff=job["cutoff"], rows=job["batch"])
    common.settle_environment(scratch, preset, job["threads"])
    import torch

    torch.set_num_threads(job["threads"])
    from dataflex.base.train import train
    from dataflex.config import parse

    model, tokenizer = _model(job, data, scratch)
    asked = write_rows(scratch / "data", data, tokenizer, job)
    keys = common.run_keys(scratch, preset, "run") | {
        "model_name_or_path": model,
        "template": job["template"],
        "dataset": ",".join(POOL),
        "eval_dataset": QUESTIONS,
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 10,
        "disable_gradient_checkpointing": True,
        "max_steps": job["steps"],
        "seed": job["seed"],
    }
    if "select" in job:
        keys["dataflex"] = {"select": {**job["select"], "target_dataset": [f"{t}_target" for t in TASKS]}}
    watch = _Watch(job, asked)
    watch.attach()
    train(parse(keys))
    part = result.with_suffix(".part")
    part.write_text(json.dumps({"job": job, **watch.seen()}, indent=1), encoding="utf-8")
    part.replace(result)
    shutil.rmtree(scratch)
    log.unlink()


def _model(job: dict[str, Any], data: Path, scratch: Path) -> tuple[str, Any]:
    """Name or folder of the model, and its tokenizer. One from scratch has the weights of the seed, and a tokenizer that all
    seeds share."""
    if isinstance(job["model"], str):
        from transformers import AutoTokenizer

        return job["model"], AutoTokenizer.from_pretrained(job["model"])
    from dataflex.demo.model import build_model

    folder = scratch / "model"
    return str(folder), build_model(folder, texts_of(data, 200), seed=job["seed"], **job["model"])[1]


class _Watch:
    """Evaluates at fixed steps and keeps the time. Times are pairs: seconds by the clock, and of the processor.

    marks: [step, seconds of training and selecting so far] at every evaluation and on both sides of every selection.
    """

    def __init__(self, job: dict[str, Any], asked: list[dict[str, Any]]) -> None:
        self.job, self.asked = job, asked
        self.begin = self.apart = np.zeros(2)
        self.scoring = np.zeros(2)
        self.points: list[dict[str, Any]] = []
        self.marks: list[tuple[int, list[float]]] = []
        self.taken: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        self.parameters = 0

    def seen(self) -> dict[str, Any]:
        return {
            "parameters": self.parameters,
            "asked": {task: sum(q["task"] == task for q in self.asked) for task in TASKS},
            "chance": float(np.mean([1 / q["options"] for q in self.asked])),
            "points": self.points,
            "marks": self.marks,
            "scoring": self.scoring.tolist(),
            "evaluating": self.apart.tolist(),
            "taken": self.taken,
        }

    def attach(self) -> None:
        """Put the watch into the Trainer, the same way with and without a block."""
        from transformers import Trainer, TrainerCallback

        from dataflex.trainer.select import SelectTrainer

        watch, train, select = self, Trainer.train, SelectTrainer._select

        class Callback(TrainerCallback):
            def __init__(self, trainer: Any) -> None:
                self.trainer = trainer

            def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                watch.parameters = sum(p.numel() for p in self.trainer.model.parameters())
                watch.rows = list(self.trainer.eval_dataset)
                assert max(len(row["input_ids"]) for row in watch.rows) < watch.job["cutoff"]
                watch.begin = watch.now()
                watch.evaluate(self.trainer, 0)

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.global_step % watch.job["every"] == 0:
                    watch.evaluate(self.trainer, state.global_step)

        def watched_train(trainer: Any, *args: Any, **kwargs: Any) -> Any:
            trainer.add_callback(Callback(trainer))
            return train(trainer, *args, **kwargs)

        def watched_select(trainer: Any, step: int) -> None:
            if not trainer.config.select.schedule.due(step):
                return select(trainer, step)
            watch.mark(step)
            begin = watch.now()
            select(trainer, step)
            watch.scoring = watch.scoring + watch.now() - begin
            watch.mark(step)
            domains = trainer.rows.domains
            found = np.bincount(domains.of(trainer.plan.stages[-1].pools[0].ids), minlength=len(domains.names))
            taken = {"step": step, "rows": dict(zip(domains.names, found.tolist(), strict=True))}
            scalars = trainer._pending_scalars.items()
            watch.taken.append(taken | {name: value for name, value in scalars if name.startswith("dataflex/reward/")})

        Trainer.train = watched_train  # type: ignore[method-assign]
        SelectTrainer._select = watched_select  # type: ignore[method-assign]

    def now(self) -> np.ndarray:
        import torch

        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return np.array([time.perf_counter(), time.process_time()])

    def mark(self, step: int) -> None:
        self.marks.append((step, (self.now() - self.begin - self.apart).tolist()))

    def evaluate(self, trainer: Any, step: int) -> None:
        self.mark(step)
        begin = self.now()
        found = evaluate(trainer.model, self.rows, self.asked, tokens=32768 if self.job["gpu"] else 4096)
        self.points.append({"step": step, **found})
        self.apart = self.apart + self.now() - begin


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


def texts_of(data: Path, rows: int) -> list[str]:
    """The first rows of every data set of the pool, for a tokenizer: the same for every seed."""
    return [f"{prompt_of(row)} {row['output']}" for name in POOL for row in _read(data, name)[:rows]]


def write_rows(folder: Path, data: Path, tokenizer: Any, job: dict[str, Any]) -> list[dict[str, Any]]:
    """A dataset_dir: `rows` rows of each data set of POOL, `<task>_target` with `target_rows` rows, and QUESTIONS, with a row
    for every option of every question, of which there are at most `questions` per task. Gives the questions in their order:
    task, number of options, which is right. job: these numbers, and the run's seed, template and cutoff.

    No two of pool, targets and questions share a prompt, and every target row and option fits the cutoff as a whole.
    """
    render, cutoff = _renderer(tokenizer, job["template"]), job["cutoff"]
    rng, seen = random.Random(job["seed"]), set()
    parts: dict[str, list[dict[str, Any]]] = {QUESTIONS: []}
    asked: list[dict[str, Any]] = []

    def take(file: str, count: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        lines = _read(data, file)
        for row in rng.sample(lines, len(lines)):
            key = " ".join(prompt_of(row).lower().split())
            options = options_of(row)
            longest = max((render(prompt_of(row), option) for option in options), default=cutoff)
            if len(found) < count and key not in seen and longest < cutoff:
                seen.add(key)
                found.append(row)
        return found

    for task, (target_file, question_file) in TASKS.items():
        parts[f"{task}_target"] = take(target_file, job["target_rows"])
        for row in take(question_file, job["questions"]):
            options = options_of(row)
            parts[QUESTIONS] += [{**row, "output": option} for option in options]
            asked.append({"task": task, "options": len(options), "right": options.index(row["output"])})
    for name in POOL:
        fresh = [row for row in _read(data, name) if " ".join(prompt_of(row).lower().split()) not in seen]
        parts[name] = rng.sample(fresh, min(job["rows"], len(fresh)))
    folder.mkdir(parents=True)
    for name, chosen in parts.items():
        lines = [json.dumps({column: row[column] for column in _COLUMNS.values()}) for row in chosen]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    info = {name: {"file_name": f"{name}.jsonl", "columns": _COLUMNS} for name in parts}
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return asked


def evaluate(
    model: Any, rows: Sequence[dict[str, Any]], asked: Sequence[dict[str, Any]], tokens: int
) -> dict[str, Any]:
    """loss: mean over the tokens of all right answers. accuracy: share of the questions whose right option the model finds
    likeliest, and the same for each task. guessing: the loss of a model that knows how answers are written and finds all
    options equally likely. rows: the options of all questions, tokenized by the run."""
    likelihood, count = likelihoods(model, rows, tokens)
    starts = np.cumsum([0, *(q["options"] for q in asked)])
    assert starts[-1] == len(rows), f"{len(rows)} rows for {starts[-1]} options"
    right = starts[:-1] + [q["right"] for q in asked]
    hits = np.array([likelihood[a:b].argmax() + a for a, b in pairwise(starts)]) == right
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


def _read(data: Path, name: str) -> list[dict[str, Any]]:
    with (data / f"{name}.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _renderer(tokenizer: Any, name: str) -> Any:
    """Number of tokens of a prompt with its response, as the run's template renders them."""
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments

    template = get_template_and_fix_tokenizer(tokenizer, DataArguments(template=name))

    def length(prompt: str, response: str) -> int:
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        return sum(map(len, template.encode_oneturn(tokenizer, messages)))

    return length
