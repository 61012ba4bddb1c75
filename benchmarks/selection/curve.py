"""One run of curves.py: its rows and multiple-choice questions, and the time it takes."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import grid
import inside
import numpy as np
import settings
from grid import Job
from measuring import now
from questions import about, evaluate, options_of, prompt_of

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


def run(job: Job, data: Path, result: Path) -> None:
    """One training run in a process of its own, which ends with its parent; what it saw is written to `result`, last of all."""
    scratch, preset = grid.begin_run(job, result)
    model, tokenizer = _model(job, data, scratch)
    asked = write_rows(scratch / "data", data, tokenizer, job)
    keys = settings.run_keys(scratch, preset, "run") | {
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
    settings.train(keys)
    grid.end_run({"job": job, **watch.seen()}, result)


def _model(job: Job, data: Path, scratch: Path) -> tuple[str, Any]:
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

    def __init__(self, job: Job, asked: list[dict[str, Any]]) -> None:
        self.job, self.asked = job, asked
        self.begin = self.apart = self.selecting = np.zeros(2)
        self.scoring = np.zeros(2)
        self.points: list[dict[str, Any]] = []
        self.marks: list[tuple[int, list[float]]] = []
        self.taken: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        self.parameters = 0

    def seen(self) -> dict[str, Any]:
        return {
            "parameters": self.parameters,
            **about(self.asked, TASKS),
            "points": self.points,
            "marks": self.marks,
            "scoring": self.scoring.tolist(),
            "evaluating": self.apart.tolist(),
            "taken": self.taken,
        }

    def attach(self) -> None:
        """Put the watch into the Trainer, the same way with and without a block."""
        from transformers import Trainer, TrainerCallback

        watch, train = self, Trainer.train

        class Callback(TrainerCallback):
            def __init__(self, trainer: Any) -> None:
                self.trainer = trainer

            def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                watch.parameters = sum(p.numel() for p in self.trainer.model.parameters())
                watch.rows = list(self.trainer.eval_dataset)
                assert max(len(row["input_ids"]) for row in watch.rows) < watch.job["cutoff"]
                watch.begin = _now()
                watch.evaluate(self.trainer, 0)

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.global_step % watch.job["every"] == 0:
                    watch.evaluate(self.trainer, state.global_step)

        def watched_train(trainer: Any, *args: Any, **kwargs: Any) -> Any:
            trainer.add_callback(Callback(trainer))
            return train(trainer, *args, **kwargs)

        Trainer.train = watched_train  # type: ignore[method-assign]
        inside.watch_selections(self.before_selection, self.after_selection)

    def before_selection(self, step: int) -> None:
        self.mark(step)
        self.selecting = _now()

    def after_selection(self, step: int, rows: dict[str, int], scalars: dict[str, float]) -> None:
        self.scoring = self.scoring + _now() - self.selecting
        self.mark(step)
        rewards = {name: value for name, value in scalars.items() if name.startswith("dataflex/reward/")}
        self.taken.append({"step": step, "rows": rows, **rewards})

    def mark(self, step: int) -> None:
        self.marks.append((step, (_now() - self.begin - self.apart).tolist()))

    def evaluate(self, trainer: Any, step: int) -> None:
        self.mark(step)
        begin = _now()
        found = evaluate(trainer.model, self.rows, self.asked, tokens=32768 if self.job["gpu"] else 4096)
        self.points.append({"step": step, **found})
        self.apart = self.apart + _now() - begin


def _now() -> np.ndarray:
    return np.array([now(), time.process_time()])


def texts_of(data: Path, rows: int) -> list[str]:
    """The first rows of every data set of the pool, for a tokenizer: the same for every seed."""
    return [
        f"{prompt_of(row)} {row['output']}"
        for name in POOL
        for row in settings.read_rows(data / f"{name}.jsonl")[:rows]
    ]


def write_rows(folder: Path, data: Path, tokenizer: Any, job: Job) -> list[dict[str, Any]]:
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
        lines = settings.read_rows(data / f"{file}.jsonl")
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
        fresh = [
            row
            for row in settings.read_rows(data / f"{name}.jsonl")
            if " ".join(prompt_of(row).lower().split()) not in seen
        ]
        parts[name] = rng.sample(fresh, min(job["rows"], len(fresh)))
    columns = settings.SFT.values()
    sets = {name: [{column: row[column] for column in columns} for row in rows] for name, rows in parts.items()}
    settings.write_sets(folder, sets, settings.SFT)
    return asked


def _renderer(tokenizer: Any, name: str) -> Any:
    """Number of tokens of a prompt with its response, as the run's template renders them."""
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments

    template = get_template_and_fix_tokenizer(tokenizer, DataArguments(template=name))

    def length(prompt: str, response: str) -> int:
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        return sum(map(len, template.encode_oneturn(tokenizer, messages)))

    return length
