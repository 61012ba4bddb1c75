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

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import grid
import numpy as np
import questions
import settings
from grid import Grid, Job, Result
from measuring import spread
from runner import Command, table

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
        "name": "loss_gap", "warmup": 1, "interval": 1, "initial": "stratified", "clip": True, "smoothing": 0.0,
    },
    "doge": {
        "name": "doge", "warmup": 1, "interval": 0.5, "rows_per_domain": 4, "online": True, "initial": "stratified",
    },
    "doremi": {"name": "doremi"},
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "model": settings.PRESETS["tiny"].model, "cutoff": 64, "batch": 4, "steps": 30, "learning_rate": 3e-3,
        "characters": 140_000, "heldout": 4_000,
    },
    "cpu": {
        "model": settings.SMALL,
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


def run(job: Job, data: Path, result: Path) -> None:
    """All trainings of a job, in a process of its own; what came out is written to `result`, last of all."""
    scratch, preset = grid.begin_run(job, result)
    from dataflex.demo.model import build_model

    write_text(scratch / "data", data, job)
    texts = [line["text"] for d in DOMAINS for line in settings.read_rows(scratch / "data" / f"{d}.jsonl")[:60]]
    build_model(scratch / "model", texts, seed=job["seed"], **job["model"])
    mix, before = dict(job["mix"]), 0.0
    if mix["name"] == "doremi":
        reference, spent, _ = train(job, scratch, preset, "reference", {"name": "uniform"})
        mix["reference_model_path"] = str(reference)
        proxy, more, _ = train(job, scratch, preset, "proxy", mix)
        before = spent + more
        found = json.loads((proxy / "dataflex" / "proportions.json").read_text())
        mix = {"name": "static", "proportions": [found[d] for d in DOMAINS]}
    out, spent, history = train(job, scratch, preset, "final", mix, evaluates=True)
    points = []
    for line in history:
        found = {k.removeprefix("eval_dataflex/"): v for k, v in line.items() if k.startswith("eval_dataflex/")}
        points += [{**found, "step": line["step"]}] if found else []
    shares = [[r[f"dataflex/realized/{d}"] for d in DOMAINS] for r in history if f"dataflex/realized/{DOMAINS[0]}" in r]
    record = {"job": job, "seconds": before + spent, "points": points, "shares": np.mean(shares, axis=0).tolist()}
    if job.get("questions"):
        record["answers"] = answers_of(job, data, out)
    grid.end_run(record, result)


def train(
    job: Job, scratch: Path, preset: settings.Preset, name: str, mix: dict[str, Any], evaluates: bool = False
) -> tuple[Path, float, list[dict[str, Any]]]:
    """Of one training, what `settings.train_timed` gives."""
    held_out = {d: f"{d}_heldout" for d in DOMAINS}
    keys = settings.run_keys(scratch, preset, name) | {
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
        "dataflex": {"mix": {**mix, "eval_dataset": held_out}, "evaluate_domains": evaluates},
    }
    keys.pop("template")
    if evaluates:
        keys |= {
            "eval_dataset": held_out[DOMAINS[0]],  # the Trainer evaluates something, and all domains with it
            "do_eval": True,
            "eval_strategy": "steps",
            "eval_steps": job["steps"] // 5,
            "per_device_eval_batch_size": 8,
        }
    return settings.train_timed(keys, job["gpu"])


def answers_of(job: Job, data: Path, folder: Path) -> dict[str, Any]:
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
    return {"accuracy": found["accuracy"], "tasks": found["tasks"], **questions.about(asked, TASKS)}


def write_text(folder: Path, data: Path, job: Job) -> None:
    """A dataset_dir with so many characters of the domains in all, each in its share of the data, documents in an order of the
    seed; and `<domain>_heldout`, the same for every seed."""
    rng = np.random.default_rng(job["seed"])
    sizes = {d: (data / f"{d}.jsonl").stat().st_size for d in DOMAINS}
    sets: dict[str, list[dict[str, str]]] = {}
    for d in DOMAINS:
        lines, wanted = settings.read_rows(data / f"{d}.jsonl"), job["characters"] * sizes[d] / sum(sizes.values())
        sets[d] = cut([lines[i] for i in rng.permutation(len(lines))], wanted)
        sets[f"{d}_heldout"] = cut(settings.read_rows(data / f"{d}.heldout.jsonl"), job["heldout"])
    settings.write_sets(folder, sets, {"prompt": "text"})


def cut(rows: list[dict[str, Any]], characters: float) -> list[dict[str, str]]:
    """The first so many characters of them."""
    kept, total = [], 0
    for row in rows:
        if total >= characters:
            break
        kept.append({"text": row["text"][: int(characters - total)]})
        total += len(kept[-1]["text"])
    return kept


# -- the grid --------------------------------------------------------------------------------------------------------


def job_of(runs: Grid, method: str, seed: int) -> Job:
    job = runs.settings(PRESETS[runs.given.preset], method, seed, "steps", "questions")
    part, mix = job["steps"] / _PARTS, dict(METHODS[method])
    for name in ("warmup", "interval"):
        if name in mix:
            mix[name] = max(1, round(mix[name] * part))
    return {**job, "mix": mix}


def report(found: list[Result]) -> str:
    by = grid.by_method(found, METHODS)
    base, asks = by.get(BASE, {}), all("answers" in f for f in found)
    averages, perplexities, bits, shares, answers = [], [], [], [], []
    for method, runs in by.items():
        last = [run["points"][-1] for run in runs.values()]

        def cell(key: str, digits: int = 3, last: list[dict[str, float]] = last) -> str:
            return spread([p[key] for p in last], digits=digits)

        averages.append([
            method, cell("macro/loss"), grid.over(runs, base, lambda run: run["points"][-1]["macro/loss"]),
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
    job = found[0]["job"]
    setting = (
        f"A model from scratch ({job['model']['layers']} layers of {job['model']['hidden_size']}), {job['steps']} steps of"
        f" {job['batch']} rows of {job['cutoff']} tokens, packed; {job['characters'] / 1e6:g}M characters in all,"
        f" {job['heldout'] / 1e3:g}k held out of each domain. Seeds {grid.seeds_of(found)};"
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
        by_task = ["Accuracy by task:", table(("method", *TASKS), answers)]
    return "\n\n".join([
        setting,
        table(("method", *measured), averages), *by_task,
        "Held-out perplexity:", table(header, perplexities),
        "Held-out bits per byte:", table(header, bits),
        "Share of the rows drawn:", table(header, shares),
    ])  # fmt: skip


def main() -> None:
    command = Command(
        __file__, __doc__, PRESETS, *grid.OPTIONS, "steps",
        methods={"help": f"which, with commas (all); loss_gap needs {BASE} among them"},
        questions={"type": int, "help": "multiple-choice questions of each task, at most (none; gpu: 1000)"},
    )  # fmt: skip
    methods = command.several("methods", METHODS)
    runs = Grid(
        command,
        run,
        lambda result: "macro loss {macro/loss:.4f}, micro {micro/loss:.4f}".format(**result["points"][-1]),
    )
    jobs = runs.jobs(methods, lambda method, seed: job_of(runs, method, seed))
    found = runs.run(job for job in jobs if job["mix"]["name"] != "loss_gap")
    ends = {f["job"]["seed"]: f["points"][-1] for f in found if f["job"]["method"] == BASE}
    later = []
    for job in jobs:
        if (
            job["mix"]["name"] == "loss_gap" and job["seed"] in ends
        ):  # the losses that the baseline of the seed ends with
            losses = [round(ends[job["seed"]][f"loss/{d}"], 4) for d in DOMAINS]
            later.append({**job, "mix": {**job["mix"], "reference_losses": losses}})
    found += runs.run(later)
    runs.publish(f"Mixers ({command.given.preset})", report, found, len(jobs), runs.clock)


if __name__ == "__main__":
    main()
