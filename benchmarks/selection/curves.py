"""Training curves of selectors against training on all the data: held-out loss and accuracy, by steps and by time.

The pool holds as many rows of each of ten instruction sets, four of them multiple choice (ARC easy and challenge, OpenBookQA,
MMLU); the target is held-out rows of these four, a task each. At fixed steps the model is asked other held-out questions of
the same sets: the loss of the right answers, and whether the right option is the likeliest. Every run is a real one in its
own process; the time that counts is training and selecting, not the evaluation. After an eighth of the steps in which all rows
are trained on, every selector chooses three times. Seeds differ in weights, rows and order; with a seed all methods share
them. Learning rates are constant after the first steps, so that a curve may be read off anywhere.

Each finished run is a file in --work: the same command goes on where it was stopped, and ends with the table.

    python benchmarks/selection/curves.py --data DIR --work DIR2              # 3 seeds, small models from scratch
    python benchmarks/selection/curves.py --data DIR --work DIR2 --report     # the table of what has finished so far
    python benchmarks/selection/curves.py --data DIR --work DIR2 --preset gpu --model PATH --write
    python benchmarks/selection/curves.py --data DIR --work DIR2 --methods "static,random,tsds,tsds 1.1.0"   # these alone
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import curve
import grid
import numpy as np
import settings
from grid import Grid, Job, Result
from measuring import spread
from runner import Command, table

STATIC, LONGER = "static", "static, longer"
METHODS: dict[str, dict[str, Any] | None] = {
    STATIC: None,
    "random": {"name": "random"},
    "token_length": {"name": "token_length"},
    "loss": {"name": "loss"},
    "delta_loss": {"name": "delta_loss"},
    "less": {"name": "less"},
    "icons": {"name": "icons"},
    "cluster_less": {"name": "cluster_less", "cluster_size": 16},
    # With an exact match and no baseline only the target's own answer is rewarded, which makes it `less`.
    "nice": {
        "name": "nice", "max_new_tokens": 16, "baseline": "mean",
        "mc_samples": 4, "generation_temperature": 0.7, "top_k": 0, "top_p": 1.0,
    },
    "greats": {"name": "greats", "proj_dim": 4096},
    "near": {"name": "near"},
    "tsds": {"name": "tsds"},
    "tsds 1.1.0": {"name": "tsds", "sigma": 0.75, "alpha": 0.6, "C": 5.0},  # its fixed scale
    "rds": {"name": "rds"},
}  # fmt: skip
# rows: of each data set of the pool. target_rows, questions: of each task.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "model": settings.PRESETS["tiny"].model, "cutoff": 192, "batch": 4, "learning_rate": 2e-3,
        "rows": 14, "target_rows": 4, "questions": 6, "steps": 24, "greats_interval": 1,
    },
    "cpu": {
        "model": settings.SMALL, "cutoff": 256, "batch": 8, "learning_rate": 2e-3,
        "rows": 100, "target_rows": 16, "questions": 40, "steps": 120, "greats_interval": 4,
    },
    "gpu": {
        "model": settings.PRESETS["gpu"].model, "cutoff": 512, "batch": 16, "learning_rate": 2e-4,
        "rows": 600, "target_rows": 30, "questions": 150, "steps": 480, "greats_interval": 1,
    },
}  # fmt: skip
_PARTS = 24  # steps are a multiple of it: warm-up 3, three selections of 7 each, an evaluation every 3
PRETRAINED_RATE = 1e-5
OPTIONS = ("template", "rows", "target_rows", "questions", "steps", "learning_rate")


def job_of(runs: Grid, method: str, seed: int) -> Job:
    given, preset = runs.given, dict(PRESETS[runs.given.preset], template="default")
    greats = preset.pop("greats_interval")
    if given.model is not None:
        preset |= {"learning_rate": PRETRAINED_RATE, "template": "qwen"}
    job = runs.settings(preset, method, seed, "model", *OPTIONS)
    part, select = job["steps"] // _PARTS, METHODS[method]
    if select is not None:
        interval = greats if method == "greats" else 7 * part
        job["select"] = {**select, "warmup": 3 * part, "interval": interval}
        job["parameters"] = _parameters(select)
    return job | {"every": 3 * part}


def _parameters(select: dict[str, Any]) -> Any:
    """All parameters of a selector, defaults included: with other defaults a run is another run."""
    from dataflex.components.registry import resolve

    own = {k: v for k, v in select.items() if k != "name"}
    return json.loads(json.dumps(asdict(resolve("select", select["name"], "name")(**own))))


def longer(job: Job, found: Sequence[Result], clock: int) -> Job | None:
    """The static run of a seed with as many steps as fit into the mean time of the selectors' runs."""
    times = [f["marks"][-1][1][clock] for f in found if f["job"]["method"] != STATIC]
    own = [f for f in found if f["job"] == job]
    if not times or not own:
        return None
    step, seconds = own[0]["marks"][-1]
    steps = round(float(np.mean(times)) / seconds[clock] * step / job["every"]) * job["every"]
    return {**job, "method": LONGER, "steps": max(steps, job["every"])}


def at(result: Result, seconds: float, clock: int) -> dict[str, float] | None:
    """Step, loss and accuracy of a run when it had trained and selected for so many seconds, between two evaluations on a
    line by steps; None before its first evaluation. A run that ended earlier stays at its end."""
    step = float(np.interp(seconds, [m[1][clock] for m in result["marks"]], [m[0] for m in result["marks"]]))
    points = result["points"]
    if step < points[1]["step"]:
        return None
    steps = [p["step"] for p in points]
    return {
        "step": step,
        **{key: float(np.interp(step, steps, [p[key] for p in points])) for key in ("loss", "accuracy")},
    }


def report(found: Sequence[Result], clock: int) -> str:
    by = grid.by_method(found, (*METHODS, LONGER))
    static = by.get(STATIC, {})
    lines, curves = [], []
    for method, runs in by.items():
        last = [r["points"][-1] for r in runs.values()]
        chosen = [t["rows"] for r in runs.values() for t in r["taken"]]
        aimed = sum(rows[task] for rows in chosen for task in curve.TASKS)
        then = [at(r, static[seed]["marks"][-1][1][clock], clock) for seed, r in runs.items() if seed in static]
        reached = [t for t in then if t is not None] if then and None not in then else []
        lines.append([
            method,
            spread([p["loss"] for p in last]),
            spread([p["accuracy"] for p in last]),
            f"{aimed / sum(sum(rows.values()) for rows in chosen):.2f}" if chosen else "-",
            f"{np.mean([r['scoring'][clock] for r in runs.values()]):.1f}",
            f"{np.mean([r['marks'][-1][1][clock] for r in runs.values()]):.1f}",
            f"{np.mean([t['step'] for t in reached]):.0f}" if reached else "-",
            spread([t["loss"] for t in reached]) if reached else "-",
            spread([t["accuracy"] for t in reached]) if reached else "-",
        ])  # fmt: skip
        losses = [[p["loss"] for p in r["points"]] for r in runs.values()]
        quarters = [[own[round(i * (len(own) - 1) / 4)] for i in (1, 2, 3, 4)] for own in losses]
        difference = grid.over(runs, static, lambda run: run["points"][-1]["loss"])
        curves.append([method, *(f"{value:.3f}" for value in np.mean(quarters, axis=0)), difference])
    header = (
        "method", "loss", "accuracy", "aimed at", "selecting s", "in all s", "steps then", "loss then", "accuracy then",
    )  # fmt: skip
    return (
        f"{_setting(found)}\n\n{table(header, lines)}\n\nLoss after so much of the steps:\n\n"
        + table(("method", "25 %", "50 %", "75 %", "100 %", "minus static"), curves)
    )  # fmt: skip


def _setting(found: Sequence[Result]) -> str:
    """What the runs have in common, and where they start from."""
    first = next((f for f in found if f["job"]["method"] != LONGER), found[0])
    job, seeds = first["job"], grid.seeds_of(found)
    asked, part = sum(first["asked"].values()), job["steps"] // _PARTS
    untrained = {f["job"]["seed"]: f["points"][0] for f in found}.values()
    chance = first["chance"]
    error = np.sqrt(chance * (1 - chance) / asked / len(untrained))
    greats = [f["job"]["select"]["interval"] for f in found if f["job"]["method"] == "greats"]
    longer_steps = sorted(f["job"]["steps"] for f in found if f["job"]["method"] == LONGER)
    return (
        f"{job['model'] if isinstance(job['model'], str) else 'A model from scratch'}"
        f" ({first['parameters'] / 1e6:.1f}M parameters), {job['steps']} steps of {job['batch']} rows of at most"
        f" {job['cutoff']} tokens, learning rate {job['learning_rate']:g}; at most {job['rows']} rows of each of"
        f" {len(curve.POOL)} sets ({', '.join(curve.POOL)}), {job['target_rows']} target rows of each of"
        f" {', '.join(curve.TASKS)}; selections at steps {', '.join(str((3 + 7 * i) * part) for i in range(3))}, the rows for"
        f" {7 * part} steps each{f' (greats: every {greats[0]} steps)' if greats else ''}. {asked} questions that no run"
        f" is shown and no selector aims at. Seeds {seeds}; mean and standard deviation over seeds.\n\n"
        f"Untrained: loss {spread([u['loss'] for u in untrained])}, accuracy {spread([u['accuracy'] for u in untrained])}."
        f" Chance: {chance:.3f}, with a standard error of {error:.3f} over so many questions; a model that"
        f" only knows how answers are written has a loss of {spread([u['guessing'] for u in untrained])}."
        + (
            f" *{LONGER}*: {', '.join(map(str, longer_steps))} steps, as many as take the selectors' mean time."
            if longer_steps
            else ""
        )
    )


def main() -> None:
    command = Command(
        __file__, __doc__, PRESETS, *grid.OPTIONS, "model", "processor_time",
        template={"help": "how rows are rendered (default, which is short; with --model: qwen)"},
        methods={"help": "which, with commas (all)"},
        rows={"type": int, "help": "rows of each data set of the pool"},
        target_rows={"type": int, "help": "target rows of each task"},
        questions={"type": int, "help": "questions of each task, at most"},
        steps={"type": int, "help": f"optimizer steps, a multiple of {_PARTS}"},
        learning_rate={"type": float},
    )  # fmt: skip
    given, methods = command.given, command.several("methods", METHODS)
    runs, clock = Grid(command, curve.run, _ended), int(given.processor_time)
    jobs = runs.jobs(methods, lambda method, seed: job_of(runs, method, seed))
    if jobs[0]["steps"] % _PARTS:
        command.parser.error(f"--steps must be a multiple of {_PARTS}")
    found = runs.run(jobs)
    more = [job for job in (longer(j, found, clock) for j in jobs if j["method"] == STATIC) if job is not None]
    found += runs.run(more)
    some = f": {', '.join(methods)}" if given.methods else ""
    note = f"; seconds are {'processor time' if clock else 'by the clock'}"
    title = f"Curves ({given.preset}){some}"
    runs.publish(title, lambda found: report(found, clock), found, len(jobs) + len(more), note)


def _ended(result: Result) -> str:
    last = result["points"][-1]
    return f"loss {last['loss']:.3f}, accuracy {last['accuracy']:.3f}"


if __name__ == "__main__":
    main()
