"""Mixers on seven domains of pre-training text: held-out loss, perplexity and bits per byte of each domain.

Small models from scratch on text like that of SlimPajama (arXiv, books, C4, Common Crawl, GitHub, Stack Exchange, Wikipedia),
as much of each domain as it has of the whole. Every run has the same number of steps, and within a seed the same weights and the
same held-out text. `proportional` draws domains by size, as plain training does, and is what the others are compared with.
DoReMi is its three runs; what is reported is the final one, its time that of all three. With --questions, which the largest
preset has, the model that a run ends with also says which options of multiple-choice questions it finds likeliest.

Each finished run is a file in --work: the same command goes on where it was stopped, and ends with the tables.

    python benchmarks/mixture/mixture.py --data DIR --work DIR2              # 3 seeds, small models from scratch
    python benchmarks/mixture/mixture.py --data DIR --work DIR2 --methods proportional,odm,odm_unbiased,ado,loss_gap
    python benchmarks/mixture/mixture.py --data DIR --work DIR2 --report     # the tables of what has finished so far
    python benchmarks/mixture/mixture.py --data DIR --work DIR2 --preset gpu --write
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import common
import numpy as np
import questions
from common import spread

DOMAINS = ("arxiv", "book", "c4", "commoncrawl", "github", "stackexchange", "wikipedia")
BASE = "proportional"
# Parameters of each mixer; `part` steps are a fifteenth of the run.
METHODS: dict[str, dict[str, Any]] = {
    BASE: {"name": "proportional"},
    "uniform": {"name": "uniform"},
    "temperature": {"name": "temperature", "temperature": 3.0},
    "random": {"name": "random", "warmup": 1, "interval": 1},
    "odm": {"name": "odm", "warmup": 1, "interval": 0.5, "reward": "authors"},
    "odm_averaged": {"name": "odm", "warmup": 1, "interval": 0.5, "reward": "averaged"},
    "odm_unbiased": {"name": "odm", "warmup": 1, "interval": 0.5, "reward": "unbiased"},
    "ado": {"name": "ado", "warmup": 1, "interval": 0.3, "fit_after": 8, "initial": "stratified"},
    "aioli": {"name": "aioli", "warmup": 1, "interval": 0.3, "probe_share": 0.35, "initial": "stratified"},
    "loss_gap": {"name": "loss_gap", "warmup": 1, "interval": 1, "initial": "stratified"},
    "loss_gap_paper": {
        "name": "loss_gap",
        "warmup": 1,
        "interval": 1,
        "initial": "stratified",
        "clip": True,
        "smoothing": 0.0,
    },
    "doge": {
        "name": "doge",
        "warmup": 1,
        "interval": 0.5,
        "rows_per_domain": 4,
        "online": True,
        "initial": "stratified",
    },
    "doremi": {"name": "doremi"},
}
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "model": common.PRESETS["tiny"].model, "cutoff": 64, "batch": 4, "steps": 30, "learning_rate": 3e-3,
        "characters": 140_000, "heldout": 4_000,
    },
    "cpu": {
        "model": {"hidden_size": 128, "layers": 3, "heads": 4, "kv_heads": 2, "intermediate_size": 344, "vocab_size": 2048},
        "cutoff": 256, "batch": 16, "steps": 150, "learning_rate": 3e-3, "characters": 4_000_000, "heldout": 30_000,
    },
    "gpu": {
        "model": {"hidden_size": 768, "layers": 12, "heads": 12, "kv_heads": 12, "intermediate_size": 2048, "vocab_size": 16384},
        "cutoff": 1024, "batch": 64, "steps": 3000, "learning_rate": 6e-4, "characters": 62_000_000, "heldout": 300_000,
        "questions": 1000,
    },
}  # fmt: skip
# Files that questions are taken from; no run trains on them.
TASKS = {
    "arc_easy": "arc_easy.heldout", "arc_challenge": "arc_challenge.heldout", "openbookqa": "openbookqa.heldout",
    "mmlu": "mmlu_test.heldout",
}  # fmt: skip
_PARTS = 15


# -- one run ---------------------------------------------------------------------------------------------------------


def run(job: dict[str, Any], data: Path, result: Path) -> None:
    """All trainings of a job, in a process of its own; what came out is written to `result`, last of all."""
    scratch, preset = common.begin_run(job, result)
    from dataflex.demo.model import build_model

    write_text(scratch / "data", data, job)
    texts = [line["text"] for d in DOMAINS for line in _read(scratch / "data" / f"{d}.jsonl")[:60]]
    build_model(scratch / "model", texts, seed=job["seed"], **job["model"])
    mix, seconds = dict(job["mix"]), 0.0
    if mix["name"] == "doremi":
        reference, spent = train_once(job, scratch, preset, "reference", {"name": "uniform"}, saves=True)
        seconds += spent
        mix["reference_model_path"] = str(reference)
        proxy, spent = train_once(job, scratch, preset, "proxy", mix)
        seconds += spent
        found = json.loads((proxy / "dataflex" / "proportions.json").read_text())
        mix = {"name": "static", "proportions": [found[d] for d in DOMAINS]}
    out, spent = train_once(job, scratch, preset, "final", mix, evaluates=True, saves=True)
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    evaluated = [
        {k.removeprefix("eval_dataflex/"): v for k, v in r.items() if k.startswith("eval_dataflex/")}
        | {"step": r["step"]}
        for r in history
        if any(k.startswith("eval_dataflex/") for k in r)
    ]
    shares = [[r[f"dataflex/realized/{d}"] for d in DOMAINS] for r in history if f"dataflex/realized/{DOMAINS[0]}" in r]
    record = {"job": job, "seconds": seconds + spent, "points": evaluated, "shares": np.mean(shares, axis=0).tolist()}
    if job.get("questions"):
        record["answers"] = answers_of(job, data, out)
    common.end_run(record, result)


def train_once(
    job: dict[str, Any],
    scratch: Path,
    preset: common.Preset,
    name: str,
    mix: dict[str, Any],
    *,
    evaluates: bool = False,
    saves: bool = False,
) -> tuple[Path, float]:
    """Output directory, and processor seconds (gpu: seconds) of the training, evaluation included."""
    from dataflex.base.commands.train import train
    from dataflex.config import parse

    mix = {**mix, "eval_dataset": {d: f"{d}_heldout" for d in DOMAINS}}
    keys = common.run_keys(scratch, preset, name) | {
        "stage": "pt",
        "dataset": ",".join(DOMAINS),
        "packing": True,
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "cosine",
        "warmup_steps": job["steps"] // 15,
        "disable_gradient_checkpointing": True,
        "max_steps": job["steps"],
        "logging_steps": max(1, job["steps"] // 30),
        "seed": job["seed"],
        "dataflex": {"mix": mix, "evaluate_domains": evaluates},
    }
    keys.pop("template")
    if evaluates:
        keys |= {
            "do_eval": True,
            "eval_strategy": "steps",
            "eval_steps": job["steps"] // 5,
            "per_device_eval_batch_size": 8,
        }
    if evaluates and "eval_dataset" not in keys:
        keys |= {"eval_dataset": f"{DOMAINS[0]}_heldout"}  # the Trainer evaluates something, and all domains with it
    clock = time.perf_counter if job["gpu"] else time.process_time
    begin = clock()
    train(parse(keys))
    spent = clock() - begin
    if not saves:
        for file in Path(keys["output_dir"]).glob("*.safetensors"):
            file.unlink()
    return Path(keys["output_dir"]), spent


def answers_of(job: dict[str, Any], data: Path, folder: Path) -> dict[str, Any]:
    """accuracy: share of the questions whose right option has the highest log-likelihood per byte, and of each task; asked: how
    many questions each task has; chance: the accuracy of guessing. Of the model in `folder`, in words (`cloze_rows`)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    files = {task: data / f"{name}.jsonl" for task, name in TASKS.items()}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows, asked, sizes = questions.cloze_rows(tokenizer, files, job["questions"], job["cutoff"])
    device = torch.device("cuda" if job["gpu"] else "cpu")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device)
    found = questions.evaluate(model, rows, asked, tokens=32768 if job["gpu"] else 4096, sizes=sizes)
    return {
        "accuracy": found["accuracy"],
        "tasks": found["tasks"],
        "asked": {task: sum(q["task"] == task for q in asked) for task in TASKS},
        "chance": float(np.mean([1 / q["options"] for q in asked])),
    }


def write_text(folder: Path, data: Path, job: dict[str, Any]) -> None:
    """A dataset_dir with so many characters of the domains in all, each in its share of the data, documents in an order of the
    seed; and `<domain>_heldout`, the same for every seed."""
    rng = np.random.default_rng(job["seed"])
    folder.mkdir(parents=True)
    sizes = {d: (data / f"{d}.jsonl").stat().st_size for d in DOMAINS}
    info = {}
    for d in DOMAINS:
        lines = _read(data / f"{d}.jsonl")
        wanted = job["characters"] * sizes[d] / sum(sizes.values())
        parts = {d: ([lines[i] for i in rng.permutation(len(lines))], wanted)}
        parts[f"{d}_heldout"] = (_read(data / f"{d}.heldout.jsonl"), job["heldout"])
        for name, (rows, characters) in parts.items():
            kept, total = [], 0
            for row in rows:
                if total >= characters:
                    break
                text = row["text"][: int(characters - total)]
                kept.append(json.dumps({"text": text}))
                total += len(text)
            (folder / f"{name}.jsonl").write_text("\n".join(kept) + "\n", encoding="utf-8")
            info[name] = {"file_name": f"{name}.jsonl", "columns": {"prompt": "text"}}
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")


def _read(file: Path) -> list[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


# -- the grid --------------------------------------------------------------------------------------------------------


def job_of(method: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Everything that decides what a run does."""
    job = dict(PRESETS[given.preset], method=method, seed=seed, gpu=given.preset == "gpu")
    job["threads"] = 8 if job["gpu"] else 1
    for name in ("steps", "questions"):
        if getattr(given, name) is not None:
            job[name] = getattr(given, name)
    part, mix = job["steps"] / _PARTS, dict(METHODS[method])
    for name in ("warmup", "interval"):
        if name in mix:
            mix[name] = max(1, round(mix[name] * part))
    return {**job, "mix": mix}


def start(job: dict[str, Any], given: argparse.Namespace) -> dict[str, Any] | None:
    """The result of a run, made now unless it is there; None if it failed."""

    def ended(result: dict[str, Any]) -> str:
        last = result["points"][-1]
        return f"macro loss {last['macro/loss']:.4f}, micro {last['micro/loss']:.4f}"

    return common.result_of(job, given, run, ended)


def report(found: Sequence[dict[str, Any]]) -> str:
    by: dict[str, dict[int, dict[str, Any]]] = {}
    for f in found:
        by.setdefault(f["job"]["method"], {})[f["job"]["seed"]] = f
    base, asks = by.get(BASE, {}), all("answers" in f for f in found)
    averages, perplexities, bits, shares, answers = [], [], [], [], []
    for method in METHODS:
        runs = by.get(method, {})
        if not runs:
            continue
        last = {seed: r["points"][-1] for seed, r in runs.items()}

        def cell(key: str, digits: int = 3, last: dict[int, dict[str, float]] = last) -> str:
            return spread([p[key] for p in last.values()], digits=digits)

        both = [seed for seed in last if seed in base]
        differences = [last[s]["macro/loss"] - base[s]["points"][-1]["macro/loss"] for s in both]
        averages.append([
            method, cell("macro/loss"), spread(differences, "+") if both and method != BASE else "-",
            cell("micro/loss"), cell("macro/bits_per_byte"), f"{np.mean([r['seconds'] for r in runs.values()]):.0f}",
        ])  # fmt: skip
        if asks:
            given = [r["answers"] for r in runs.values()]
            averages[-1].append(spread([a["accuracy"] for a in given]))
            answers.append([method, *(spread([a["tasks"].get(t, np.nan) for a in given]) for t in TASKS)])
        perplexities.append([method, *(cell(f"perplexity/{d}", 1) for d in DOMAINS)])
        bits.append([method, *(cell(f"bits_per_byte/{d}") for d in DOMAINS)])
        drawn = np.mean([r["shares"] for r in runs.values()], axis=0)
        shares.append([method, *(f"{s:.3f}" for s in drawn)])
    job, seeds = found[0]["job"], sorted({f["job"]["seed"] for f in found})
    setting = (
        f"A model from scratch ({job['model']['layers']} layers of {job['model']['hidden_size']}), {job['steps']} steps of"
        f" {job['batch']} rows of {job['cutoff']} tokens, packed; {job['characters'] / 1e6:g}M characters in all,"
        f" {job['heldout'] / 1e3:g}k held out of each domain. Seeds {', '.join(map(str, seeds))};"
        " mean and standard deviation over seeds, at the last step."
    )
    header = ("method", *DOMAINS)
    measured = ["macro loss", f"minus {BASE}", "micro loss", "macro bits per byte", "seconds"]
    by_task = []
    if asks:
        asked, chance = found[0]["answers"]["asked"], found[0]["answers"]["chance"]
        error = np.sqrt(chance * (1 - chance) / sum(asked.values()))
        setting += (
            f" Accuracy: of {sum(asked.values())} questions ({', '.join(f'{n} of {t}' for t, n in asked.items())}); chance is"
            f" {chance:.3f}, with a standard error of {error:.3f} over so many questions."
        )
        measured.append("accuracy")
        by_task = ["Accuracy by task:", common.table(("method", *TASKS), answers)]
    return "\n\n".join([
        setting,
        common.table(("method", *measured), averages), *by_task,
        "Held-out perplexity:", common.table(header, perplexities),
        "Held-out bits per byte:", common.table(header, bits),
        "Share of the rows drawn:", common.table(header, shares),
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--data", type=Path, required=True, help="a folder with <domain>.jsonl and <domain>.heldout.jsonl"
    )
    parser.add_argument("--work", type=Path, required=True, help="where results are kept, one file per run")
    parser.add_argument("--preset", choices=tuple(PRESETS), default="cpu", help="size of everything (cpu)")
    parser.add_argument(
        "--methods", default=",".join(METHODS), help=f"which, with commas (all); loss_gap needs {BASE} among them"
    )
    parser.add_argument("--seeds", type=int, default=3, help="seeds per method (3)")
    parser.add_argument("--steps", type=int, help="optimizer steps")
    parser.add_argument(
        "--questions", type=int, help="multiple-choice questions of each task, at most (none; gpu: 1000)"
    )
    parser.add_argument("--processes", type=int, help="runs at a time (2; gpu: 1)")
    parser.add_argument("--report", action="store_true", help="start nothing, show what there is")
    parser.add_argument("--write", action="store_true", help="put the tables into RESULTS.md")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    methods, processes = given.methods.split(","), given.processes or (1 if given.preset == "gpu" else 2)
    for method in methods:
        if method not in METHODS:
            parser.error(f"--methods: {method!r} is none of {', '.join(METHODS)}")
    jobs = {(m, s): job_of(m, s, given) for s in range(given.seeds) for m in methods}
    threads = str(next(iter(jobs.values()))["threads"])
    os.environ.update(OMP_NUM_THREADS=threads, OPENBLAS_NUM_THREADS=threads)
    found: list[dict[str, Any]] = []
    with ThreadPoolExecutor(processes) as pool:
        first = [job for job in jobs.values() if job["mix"]["name"] != "loss_gap"]
        found = [f for f in pool.map(lambda job: start(job, given), first) if f is not None]
        ends = {f["job"]["seed"]: f["points"][-1] for f in found if f["job"]["method"] == BASE}
        second = []
        for (_, seed), job in jobs.items():
            if job["mix"]["name"] == "loss_gap" and seed in ends:  # the losses that the baseline of the seed ends with
                losses = [round(ends[seed][f"loss/{d}"], 4) for d in DOMAINS]
                second.append({**job, "mix": {**job["mix"], "reference_losses": losses}})
        found += [f for f in pool.map(lambda job: start(job, given), second) if f is not None]
    missing = len(jobs) - len(found)
    if not found:
        print(f"no run has finished in {given.work}")
        sys.exit(1)
    preset = common.PRESETS["gpu" if given.preset == "gpu" else "cpu"]
    command = (
        f"python benchmarks/mixture/mixture.py --data DIR --work DIR2 --preset {given.preset} --seeds {given.seeds}"
    )
    command += f" --steps {given.steps}" if given.steps else ""
    command += f" --questions {given.questions}" if given.questions is not None else ""
    command += f" --methods {given.methods}" if given.methods != ",".join(METHODS) else ""
    text = f"`{command}`: {common.machine(preset, int(threads))}; {processes} runs at a time"
    text += f", {missing} of {len(jobs)} runs missing" if missing else ""
    text += f"; seconds are {'by the clock' if given.preset == 'gpu' else 'processor time'}.\n\n{report(found)}"
    print(f"\n{text}")
    if given.write:
        common.write_section(f"Mixers ({given.preset})", text, Path(__file__).with_name("RESULTS.md"))
    if missing and not given.report:
        sys.exit(1)


if __name__ == "__main__":
    main()
