"""Weighters on instruction data of which a known share is corrupted: held-out loss on clean rows.

The answers of the corrupted rows are shuffled among themselves, over all data sets, so that each belongs to another question.
Every run has the same number of steps, and within a seed the same weights, rows, order and corruption; `plain` is
LLaMA-Factory alone. `column` is told which rows are corrupted and weighs them zero: what could be gained. adapt,
joint_update_aware and the reference of rho1 are given a few clean rows of their own, neither trained on by the others nor
evaluated.

Each finished run is a file in --work: the same command goes on where it was stopped, and ends with the tables.

    python benchmarks/reweighting/reweighting.py --data DIR --work DIR2             # 3 seeds, small models from scratch
    python benchmarks/reweighting/reweighting.py --data DIR --work DIR2 --report    # the tables of what has finished so far
    python benchmarks/reweighting/reweighting.py --data DIR --work DIR2 --preset gpu --model Qwen/Qwen2.5-0.5B --write
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import grid
import inside
import numpy as np
import settings
from grid import Grid, Job, Result
from measuring import spread
from runner import Command, table

SETS = ("dolly_3k", "alpaca", "gsm8k_train", "code_alpaca", "squad_xquad_en", "boolq")
TRAIN, HELD_OUT, TARGET = "mixed", "held_out", "target"
BASE = "plain"
# Parameters of each weighter. In a long run more of it can be annealed; here all act from `warmup` on.
METHODS: dict[str, list[dict[str, Any]]] = {
    BASE: [],
    "loss linupper": [{"name": "loss", "strategy": "linupper"}],
    "loss upper": [{"name": "loss", "strategy": "upper"}],
    "loss quadratic": [{"name": "loss", "strategy": "quadratic"}],
    "loss extremes": [{"name": "loss", "strategy": "extremes"}],
    "adapt": [{"name": "adapt", "tau": 0.3, "refresh_interval": 20, "target_dataset": TARGET}],
    "joint_update_aware": [{"name": "joint_update_aware", "target_update_step": 20, "target_dataset": TARGET}],
    "rho1": [{"name": "rho1", "keep_ratio": 0.6}],
    "focal": [{"name": "focal"}],
    "column (told)": [{"name": "column"}],
}
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "model": settings.PRESETS["tiny"].model, "cutoff": 64, "batch": 4, "steps": 20, "learning_rate": 3e-3, "warmup": 4,
        "rows": 40, "target_rows": 6, "heldout": 10, "corrupted": 0.3, "template": "qwen",
    },
    "cpu": {
        "model": settings.SMALL, "cutoff": 192, "batch": 16, "steps": 200, "learning_rate": 3e-3, "warmup": 40,
        "rows": 600, "target_rows": 20, "heldout": 60, "corrupted": 0.3, "template": "qwen",
    },
    "gpu": {
        "model": "Qwen/Qwen2.5-0.5B", "cutoff": 1024, "batch": 32, "steps": 600, "learning_rate": 1e-5, "warmup": 60,
        "rows": 3000, "target_rows": 50, "heldout": 300, "corrupted": 0.3, "template": "qwen",
    },
}  # fmt: skip


# -- one run ---------------------------------------------------------------------------------------------------------


def run(job: Job, data: Path, result: Path) -> None:
    """All trainings of a job, in a process of its own; what came out is written to `result`, last of all."""
    scratch, preset = grid.begin_run(job, result)
    corrupted = write_rows(scratch / "data", data, job)
    model = job["model"]
    if not isinstance(model, str):
        from dataflex.demo.model import build_model

        rows = [r for name in SETS for r in settings.read_rows(data / f"{name}.jsonl")[:200]]
        build_model(scratch / "model", [f"{r['instruction']} {r['output']}" for r in rows], seed=job["seed"], **model)
        model = str(scratch / "model")
    weights, seconds = [{**block, "warmup": job["warmup"]} for block in job["weights"]], 0.0
    for block in weights:
        if block["name"] == "rho1":  # its reference: a short training on clean rows alone
            steps = max(1, job["steps"] // 4)
            reference, spent, _ = train(job, scratch, preset, model, "reference", [], dataset=TARGET, steps=steps)
            block["reference_model_path"], seconds = str(reference), seconds + spent
    sums = np.zeros((2, 2))  # [corrupted, (weight, tokens)], over the tokens trained on

    def weighed(ids: list[int], weights: Any, counts: Any) -> None:
        total = weights * counts if weights.ndim == 1 else weights.sum(dim=1)
        for row, weight, tokens in zip(ids, total.tolist(), counts.tolist(), strict=True):
            sums[int(row in corrupted)] += [weight, tokens]

    if weights:
        inside.watch_weights(weighed)
    _, spent, losses = train(job, scratch, preset, model, "run", weights)
    means = (sums[:, 0] / sums[:, 1]).tolist() if sums[:, 1].all() else None
    grid.end_run({"job": job, "seconds": seconds + spent, "losses": losses, "weights": means}, result)


def train(
    job: Job,
    scratch: Path,
    preset: settings.Preset,
    model: str,
    name: str,
    weights: list[dict[str, Any]],
    dataset: str = TRAIN,
    steps: int | None = None,
) -> tuple[Path, float, list[float]]:
    """Output directory, seconds (see `settings.train_timed`) and held-out losses of one training."""
    steps = steps or job["steps"]
    keys = settings.run_keys(scratch, preset, name) | {
        "model_name_or_path": model,
        "template": job["template"],
        "dataset": dataset,
        "eval_dataset": HELD_OUT,
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "cosine",
        "warmup_steps": steps // 10,
        "disable_gradient_checkpointing": True,
        "max_steps": steps,
        "do_eval": True,
        "eval_strategy": "steps",
        "eval_steps": max(1, steps // 5),
        "per_device_eval_batch_size": 16,
        "seed": job["seed"],
        **({"dataflex": {"weight": weights}} if weights else {}),
    }
    out, spent, history = settings.train_timed(keys, job["gpu"])
    return out, spent, [r["eval_loss"] for r in history if "eval_loss" in r]


def write_rows(folder: Path, data: Path, job: Job) -> set[int]:
    """A dataset_dir of TRAIN (with a column `weight`: 0 for a corrupted row), TARGET and HELD_OUT; which rows of TRAIN are
    corrupted. Rows are short enough to keep some of their answer; TARGET and HELD_OUT are the same for every seed."""
    rng = random.Random(job["seed"])
    train: list[dict[str, Any]] = []
    target: list[dict[str, Any]] = []
    held_out: list[dict[str, Any]] = []
    for name in SETS:
        rows = settings.read_rows(data / f"{name}.jsonl")
        target += rows[: job["target_rows"]]
        rest = [r for r in rows[job["target_rows"] :] if len(r["instruction"]) + len(r["input"]) < 3 * job["cutoff"]]
        train += rng.sample(rest, min(job["rows"], len(rest)))
        held_out += settings.read_rows(data / f"{name}.heldout.jsonl")[: job["heldout"]]
    rng.shuffle(train)
    corrupted = sorted(rng.sample(range(len(train)), round(job["corrupted"] * len(train))))
    shifted = corrupted[1:] + corrupted[:1]  # rows are in random order, so this is another row, of any data set
    answers = [train[i]["output"] for i in shifted]
    for place, answer in zip(corrupted, answers, strict=True):
        train[place] = {**train[place], "output": answer, "weight": 0.0}
    columns = (*settings.SFT.values(), "weight")
    sets = {
        name: [{column: {"weight": 1.0, **row}[column] for column in columns} for row in rows]
        for name, rows in ((TRAIN, train), (TARGET, target), (HELD_OUT, held_out))
    }
    settings.write_sets(folder, sets, settings.SFT)
    return set(corrupted)


# -- the grid --------------------------------------------------------------------------------------------------------


def report(found: list[Result]) -> str:
    by, lines = grid.by_method(found, METHODS), []
    for method, runs in by.items():
        weights = [r["weights"] for r in runs.values() if r["weights"] is not None]
        lines.append([
            method, spread([r["losses"][-1] for r in runs.values()]),
            grid.over(runs, by.get(BASE, {}), lambda run: run["losses"][-1]),
            spread([min(r["losses"]) for r in runs.values()]),
            *([f"{np.mean([w[i] for w in weights]):.3f}" for i in (0, 1)] if weights else ["-", "-"]),
            f"{np.mean([r['seconds'] for r in runs.values()]):.0f}",
        ])  # fmt: skip
    job = found[0]["job"]
    model = job["model"] if isinstance(job["model"], str) else (
        f"A model from scratch ({job['model']['layers']} layers of {job['model']['hidden_size']})"
    )  # fmt: skip
    setting = (
        f"{model}, {job['steps']} steps of {job['batch']} rows of at most {job['cutoff']} tokens, {job['rows']} rows of each of"
        f" {', '.join(SETS)}, {job['corrupted']:.0%} corrupted; weights act from step {job['warmup']} on. Seeds"
        f" {grid.seeds_of(found)}; mean and standard deviation over seeds. Weight: mean over the tokens trained on."
    )
    header = (
        "weighter", "held-out loss", f"minus {BASE}", "best on the way", "weight, clean", "weight, corrupted", "seconds",
    )  # fmt: skip
    return f"{setting}\n\n{table(header, lines)}"


def main() -> None:
    command = Command(
        __file__, __doc__, PRESETS, *grid.OPTIONS, "model", "steps", methods={"help": "which, with commas (all)"}
    )
    methods = command.several("methods", METHODS)
    runs = Grid(command, run, lambda result: f"held-out loss {result['losses'][-1]:.4f}")

    def job_of(method: str, seed: int) -> Job:
        job = runs.settings(PRESETS[command.given.preset], method, seed, "model", "steps")
        return job | {"weights": METHODS[method]}

    jobs = runs.jobs(methods, job_of)
    runs.publish(f"Weighters ({command.given.preset})", report, runs.run(jobs), len(jobs), runs.clock)


if __name__ == "__main__":
    main()
