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

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import common
import numpy as np
from common import spread

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
        "model": common.PRESETS["tiny"].model, "cutoff": 64, "batch": 4, "steps": 20, "learning_rate": 3e-3, "warmup": 4,
        "rows": 40, "target_rows": 6, "heldout": 10, "corrupted": 0.3, "template": "qwen",
    },
    "cpu": {
        "model": {"hidden_size": 128, "layers": 3, "heads": 4, "kv_heads": 2, "intermediate_size": 344, "vocab_size": 2048},
        "cutoff": 192, "batch": 16, "steps": 200, "learning_rate": 3e-3, "warmup": 40,
        "rows": 600, "target_rows": 20, "heldout": 60, "corrupted": 0.3, "template": "qwen",
    },
    "gpu": {
        "model": "Qwen/Qwen2.5-0.5B", "cutoff": 1024, "batch": 32, "steps": 600, "learning_rate": 1e-5, "warmup": 60,
        "rows": 3000, "target_rows": 50, "heldout": 300, "corrupted": 0.3, "template": "qwen",
    },
}  # fmt: skip
_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output"}


# -- one run ---------------------------------------------------------------------------------------------------------


def run(job: dict[str, Any], data: Path, result: Path) -> None:
    """All trainings of a job, in a process of its own; what came out is written to `result`, last of all."""
    scratch, preset = common.begin_run(job, result)
    corrupted = write_rows(scratch / "data", data, job)
    model = job["model"]
    if not isinstance(model, str):
        from dataflex.demo.model import build_model

        texts = [f"{r['instruction']} {r['output']}" for name in SETS for r in _read(data / f"{name}.jsonl")[:200]]
        build_model(scratch / "model", texts, seed=job["seed"], **model)
        model = str(scratch / "model")
    weights, seconds = [dict(block) for block in job["weights"]], 0.0
    for block in weights:
        block["warmup"] = job["warmup"]
        if block["name"] == "rho1":  # its reference: a short training on clean rows alone
            steps = max(1, job["steps"] // 4)
            reference, spent, _ = train_once(job, scratch, preset, model, "reference", [], dataset=TARGET, steps=steps)
            block["reference_model_path"], seconds = str(reference), seconds + spent
    watch = _Watch(corrupted)
    if weights:
        watch.attach()
    _, spent, losses = train_once(job, scratch, preset, model, "run", weights)
    record = {"job": job, "seconds": seconds + spent, "losses": losses, "weights": watch.means()}
    common.end_run(record, result)


def train_once(
    job: dict[str, Any],
    scratch: Path,
    preset: common.Preset,
    model: str,
    name: str,
    weights: list[dict[str, Any]],
    dataset: str = TRAIN,
    steps: int | None = None,
) -> tuple[Path, float, list[float]]:
    """Output directory; seconds of the training, evaluation included (processor time on a CPU); held-out losses."""
    from dataflex.base.commands.train import train
    from dataflex.config import parse

    steps = steps or job["steps"]
    keys = common.run_keys(scratch, preset, name) | {
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
    }
    if weights:
        keys["dataflex"] = {"weight": weights}
    clock = time.perf_counter if job["gpu"] else time.process_time
    begin = clock()
    train(parse(keys))
    spent, out = clock() - begin, Path(keys["output_dir"])
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return out, spent, [r["eval_loss"] for r in history if "eval_loss" in r]


class _Watch:
    """Mean weights of the tokens trained on, of corrupted rows and of the others."""

    def __init__(self, corrupted: set[int]) -> None:
        self.corrupted, self.sums = corrupted, np.zeros((2, 2))  # [corrupted, (weight, tokens)]

    def attach(self) -> None:
        import torch

        from dataflex.trainer.weight import WeightTrainer

        stock, watch = WeightTrainer._observe, self

        def observed(trainer: Any, losses: Any, counts: Any, *args: Any, **kwargs: Any) -> Any:
            weights = stock(trainer, losses, counts, *args, **kwargs)
            if weights is not None:
                total = weights * counts if weights.ndim == 1 else weights.sum(dim=1)
                bad = torch.tensor([int(i) in watch.corrupted for i in trainer._micro_ids])
                for place, chosen in enumerate((~bad, bad)):
                    kept = chosen.to(total.device)
                    watch.sums[place] += [float(total[kept].sum()), int(counts[kept].sum())]
            return weights

        WeightTrainer._observe = observed  # type: ignore[method-assign]

    def means(self) -> list[float] | None:
        """Of the clean and of the corrupted rows."""
        return None if not self.sums[:, 1].all() else (self.sums[:, 0] / self.sums[:, 1]).tolist()


def write_rows(folder: Path, data: Path, job: dict[str, Any]) -> set[int]:
    """A dataset_dir of TRAIN (with a column `weight`: 0 for a corrupted row), TARGET and HELD_OUT; which rows of TRAIN are
    corrupted. Rows are short enough to keep some of their answer; TARGET and HELD_OUT are the same for every seed."""
    rng = random.Random(job["seed"])
    train: list[dict[str, Any]] = []
    target: list[dict[str, Any]] = []
    held_out: list[dict[str, Any]] = []
    for name in SETS:
        rows = _read(data / f"{name}.jsonl")
        target += rows[: job["target_rows"]]
        rest = [r for r in rows[job["target_rows"] :] if len(r["instruction"]) + len(r["input"]) < 3 * job["cutoff"]]
        train += rng.sample(rest, min(job["rows"], len(rest)))
        held_out += _read(data / f"{name}.heldout.jsonl")[: job["heldout"]]
    rng.shuffle(train)
    corrupted = sorted(rng.sample(range(len(train)), round(job["corrupted"] * len(train))))
    shifted = corrupted[1:] + corrupted[:1]  # rows are in random order, so this is another row, of any data set
    answers = [train[i]["output"] for i in shifted]
    for place, answer in zip(corrupted, answers, strict=True):
        train[place] = {**train[place], "output": answer}
    folder.mkdir(parents=True)
    info = {}
    for name, chosen in ((TRAIN, train), (TARGET, target), (HELD_OUT, held_out)):
        weighed = {i: 0.0 for i in corrupted} if name == TRAIN else {}
        lines = [
            json.dumps({**{c: row[c] for c in _COLUMNS.values()}, "weight": weighed.get(i, 1.0)})
            for i, row in enumerate(chosen)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        info[name] = {"file_name": f"{name}.jsonl", "columns": _COLUMNS}
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return set(corrupted)


def _read(file: Path) -> list[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


# -- the grid --------------------------------------------------------------------------------------------------------


def job_of(method: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Everything that decides what a run does."""
    job = dict(PRESETS[given.preset], method=method, seed=seed, gpu=given.preset == "gpu", weights=METHODS[method])
    job["threads"] = 8 if job["gpu"] else 1
    if given.model is not None:
        job["model"] = given.model
    if given.steps is not None:
        job["steps"] = given.steps
    return job


def start(job: dict[str, Any], given: argparse.Namespace) -> dict[str, Any] | None:
    """The result of a run, made now unless it is there; None if it failed."""
    return common.result_of(job, given, run, lambda result: f"held-out loss {result['losses'][-1]:.4f}")


def report(found: Sequence[dict[str, Any]]) -> str:
    by: dict[str, dict[int, dict[str, Any]]] = {}
    for f in found:
        by.setdefault(f["job"]["method"], {})[f["job"]["seed"]] = f
    base, lines = by.get(BASE, {}), []

    for method in METHODS:
        runs = by.get(method, {})
        if not runs:
            continue
        both = [seed for seed in runs if seed in base]
        weights = [r["weights"] for r in runs.values() if r["weights"] is not None]
        lines.append([
            method, spread([r["losses"][-1] for r in runs.values()]),
            spread([runs[s]["losses"][-1] - base[s]["losses"][-1] for s in both], "+") if both and method != BASE else "-",
            spread([min(r["losses"]) for r in runs.values()]),
            *([f"{np.mean([w[i] for w in weights]):.3f}" for i in (0, 1)] if weights else ["-", "-"]),
            f"{np.mean([r['seconds'] for r in runs.values()]):.0f}",
        ])  # fmt: skip
    job, seeds = found[0]["job"], sorted({f["job"]["seed"] for f in found})
    model = job["model"] if isinstance(job["model"], str) else (
        f"A model from scratch ({job['model']['layers']} layers of {job['model']['hidden_size']})"
    )  # fmt: skip
    setting = (
        f"{model}, {job['steps']} steps of {job['batch']} rows of at most {job['cutoff']} tokens, {job['rows']} rows of each of"
        f" {', '.join(SETS)}, {job['corrupted']:.0%} corrupted; weights act from step {job['warmup']} on. Seeds"
        f" {', '.join(map(str, seeds))}; mean and standard deviation over seeds. Weight: mean over the tokens trained on."
    )
    header = (
        "weighter", "held-out loss", f"minus {BASE}", "best on the way", "weight, clean", "weight, corrupted", "seconds",
    )  # fmt: skip
    return f"{setting}\n\n{common.table(header, lines)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder with <name>.jsonl and <name>.heldout.jsonl")
    parser.add_argument("--work", type=Path, required=True, help="where results are kept, one file per run")
    parser.add_argument("--preset", choices=tuple(PRESETS), default="cpu", help="size of everything (cpu)")
    parser.add_argument("--model", help="name or folder of a model to train instead of that of the preset")
    parser.add_argument("--methods", default=",".join(METHODS), help="which, with commas (all)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds per method (3)")
    parser.add_argument("--steps", type=int, help="optimizer steps")
    parser.add_argument("--processes", type=int, help="runs at a time (2; gpu: 1)")
    parser.add_argument("--report", action="store_true", help="start nothing, show what there is")
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    methods, processes = given.methods.split(","), given.processes or (1 if given.preset == "gpu" else 2)
    for method in methods:
        if method not in METHODS:
            parser.error(f"--methods: {method!r} is none of {', '.join(METHODS)}")
    jobs = [job_of(m, s, given) for s in range(given.seeds) for m in methods]
    os.environ.update(OMP_NUM_THREADS=str(jobs[0]["threads"]), OPENBLAS_NUM_THREADS=str(jobs[0]["threads"]))
    with ThreadPoolExecutor(processes) as pool:
        found = [f for f in pool.map(lambda job: start(job, given), jobs) if f is not None]
    missing = len(jobs) - len(found)
    if not found:
        print(f"no run has finished in {given.work}")
        sys.exit(1)
    command = "python benchmarks/reweighting/reweighting.py --data DIR --work DIR2"
    command += f" --preset {given.preset} --seeds {given.seeds}"
    command += f" --model {given.model}" if given.model else ""
    command += f" --steps {given.steps}" if given.steps else ""
    command += f" --methods {given.methods}" if given.methods != ",".join(METHODS) else ""
    preset = common.PRESETS["gpu" if given.preset == "gpu" else "cpu"]
    text = f"`{command}`: {common.machine(preset, jobs[0]['threads'])}; {processes} runs at a time"
    text += f", {missing} of {len(jobs)} runs missing" if missing else ""
    text += f"; seconds are {'by the clock' if given.preset == 'gpu' else 'processor time'}.\n\n{report(found)}"
    print(f"\n{text}")
    if given.write:
        common.write_section(f"Weighters ({given.preset})", text, Path(__file__).with_name("RESULTS.md"))
    if missing and not given.report:
        sys.exit(1)


if __name__ == "__main__":
    main()
