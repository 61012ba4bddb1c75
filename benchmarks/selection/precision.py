"""Do selectors find the rows that belong to the target? Precision on a pool mixed of several data sets.

The pool holds as many rows of each data set; the target is held-out rows of one of them; each selector is asked for as many
rows as that data set has in the pool. (icons with one task, and nice where a model is too small to earn any reward, choose as
less does, and are left out; delta_loss draws at random at its first update. Rows that tsds draws twice count twice.)
Precision is the share of what it takes that comes from there: chance gives 1 / (number of data sets).

A tiny model with random weights is trained for a while on rows of the whole pool, in a real run; then all selectors choose
in turn from the same model, optimizer and pool. Seeds differ in weights, rows and order.

    python benchmarks/selection/precision.py --data DIR                # a dataset_dir; more than one target and seed each
    python benchmarks/selection/precision.py --data DIR --write        # and put the table into RESULTS.md beside this file
"""

from __future__ import annotations

import random
import sys
import tempfile
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

POOL = ("gsm8k_train", "code_alpaca", "arc_challenge", "dolly_3k", "squad_xquad_en", "boolq")
TARGETS = ("gsm8k_train", "arc_challenge", "code_alpaca", "dolly_3k")
SELECTORS: dict[str, dict[str, Any]] = {
    "random": {"name": "random"},
    "loss, medium": {"name": "loss"},
    "less, adam": {"name": "less"},
    "less, sgd": {"name": "less", "gradient_type": "sgd"},
    "less, adam, projected to 4096": {"name": "less", "proj_dim": 4096},
    "cluster_less": {"name": "cluster_less", "cluster_size": 16},
    "greats": {"name": "greats", "proj_dim": 4096, "candidates": len(POOL)},
    "rds": {"name": "rds"},
    "near": {"name": "near"},
    "tsds": {"name": "tsds"},
    "token_length": {"name": "token_length"},
}
BATCH = 8


_LARGER = {"hidden_size": 512, "layers": 8, "heads": 8, "kv_heads": 4, "intermediate_size": 1408, "vocab_size": 8192}
PRESETS = {"tiny": settings.PRESETS["tiny"].model, "cpu": settings.SMALL, "gpu": _LARGER}


def run(job: Job, data: Path, result: Path) -> None:
    """Precision and seconds of every selector for one target and seed, in a process of its own."""
    scratch, preset = grid.begin_run(job, result)
    from dataflex.demo.model import build_model

    rng, sets = random.Random(job["seed"]), {}
    for name in (*POOL, "aim"):
        aim = name == "aim"
        rows = settings.read_rows(data / (f"{job['method']}.heldout.jsonl" if aim else f"{name}.jsonl"))
        sets[name] = rng.sample(rows, min(job["target_rows" if aim else "rows"], len(rows)))
    settings.write_sets(scratch / "data", sets, settings.SFT)
    texts = [" ".join(str(v) for v in row.values()) for name in POOL for row in sets[name]]
    build_model(scratch / "model", texts, seed=job["seed"], **job["model"])
    schedule = {"warmup": job["steps"], "interval": job["rows"] // BATCH}
    keys = settings.run_keys(scratch, preset, "run") | {
        "dataset": ",".join(POOL),
        "eval_dataset": "aim",
        "learning_rate": 2e-3,
        "max_steps": job["steps"] + 1,
        "seed": job["seed"],
        "dataflex": {"select": {"name": "less", **schedule}},
    }

    def all_choose(trainer: Any) -> dict[str, dict[str, float]]:
        domains, found = trainer.rows.domains, {}
        own = list(domains.names).index(job["method"])
        for name, spec in SELECTORS.items():
            ids, seconds = inside.choose(trainer, {**keys, "dataflex": {"select": {**spec, **schedule}}})
            found[name] = {"precision": float((domains.of(ids) == own).mean()), "seconds": seconds}
        return found

    grid.end_run({"job": job, "found": inside.during_run(keys, all_choose, after=job["steps"])}, result)


def report(found: list[Result]) -> str:
    by, lines = grid.by_method(found, TARGETS), []
    for name in SELECTORS:
        cells = [spread([r["found"][name]["precision"] for r in by.get(t, {}).values()] or [np.nan]) for t in TARGETS]
        precision, seconds = ([f["found"][name][what] for f in found] for what in ("precision", "seconds"))
        lines.append([name, *cells, f"{np.mean(precision):.3f}", f"{np.median(seconds):.1f}"])
    job = found[0]["job"]
    return (
        f"A pool of {len(POOL)} x {job['rows']} rows ({', '.join(POOL)}), {job['target_rows']} target rows,"
        f" {job['steps']} warm-up steps of {BATCH} rows, seeds {grid.seeds_of(found)}; mean and standard deviation"
        f" over seeds. Chance: {1 / len(POOL):.3f}.\n\n" + table(("selector", *TARGETS, "mean", "seconds"), lines)
    )


def main() -> None:
    command = Command(
        __file__, __doc__, PRESETS, *(name for name in grid.OPTIONS if name != "work"),
        work={"type": Path, "help": "where results are kept, one file per run (nowhere)"},
        rows={"type": int, "default": 200, "help": "rows of each data set in the pool (200)"},
        target_rows={"type": int, "default": 50, "help": "rows of the target (50)"},
        steps={"type": int, "default": 30, "help": "warm-up steps (30)"},
    )  # fmt: skip
    given = command.given

    def job_of(target: str, seed: int) -> Job:
        sizes = {"rows": given.rows // BATCH * BATCH, "target_rows": given.target_rows, "steps": given.steps}
        model = {"model": PRESETS[given.preset], "cutoff": 256, "batch": BATCH, "selectors": SELECTORS}
        return runs.settings(model | sizes, target, seed)

    with tempfile.TemporaryDirectory(prefix="dataflex-precision-") as folder:
        runs = Grid(command, run, _ended, given.work or Path(folder))
        jobs = runs.jobs(TARGETS, job_of)
        runs.publish(f"Precision ({given.preset})", report, runs.run(jobs), len(jobs))


def _ended(result: Result) -> str:
    return ", ".join(f"{name} {found['precision']:.2f}" for name, found in result["found"].items())


if __name__ == "__main__":
    main()
