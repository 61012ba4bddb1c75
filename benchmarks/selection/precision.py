"""Do selectors find the rows that belong to the target? Precision on a pool mixed of several data sets.

The pool holds as many rows of each data set; the target is held-out rows of one of them; each selector is asked for as many
rows as that data set has in the pool. (icons with one task, and nice where a model is too small to earn any reward, choose as
less does, and are left out; delta_loss draws at random at its first update. Rows that tsds draws twice count twice.)
Precision is the share of what it takes that comes from there: chance gives 1 / (number of data sets).

A tiny model with random weights is trained for a while on rows of the whole pool, in a real run; at its decision all
selectors choose in turn from the same model, optimizer and pool. Seeds differ in weights, rows and order.

    python benchmarks/selection/precision.py --data DIR                # a dataset_dir; more than one target and seed each
    python benchmarks/selection/precision.py --data DIR --write        # and put the table into RESULTS.md beside this file
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import common
import numpy as np

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


class _Done(Exception):
    """Ends the run once every selector has chosen."""


def prepare(work: Path, data: Path, rows: int, target_rows: int, seed: int, target: str, model: dict[str, Any]) -> None:
    """A dataset_dir with `rows` rows of each set and `target_rows` held-out ones of the target, and a model of this seed."""
    from dataflex.demo.model import build_model

    rng, info, texts = random.Random(seed), {}, []
    for name, file, count in [
        *((n, f"{n}.jsonl", rows) for n in POOL),
        ("aim", f"{target}.heldout.jsonl", target_rows),
    ]:
        lines = (data / file).read_text(encoding="utf-8").splitlines()
        chosen = rng.sample(lines, min(count, len(lines)))
        (work / f"{name}.jsonl").write_text("\n".join(chosen) + "\n", encoding="utf-8")
        info[name] = {
            "file_name": f"{name}.jsonl",
            "columns": {"prompt": "instruction", "query": "input", "response": "output"},
        }
        if name != "aim":
            texts += [" ".join(str(v) for v in json.loads(line).values()) for line in chosen]
    (work / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    build_model(work / "model", texts, seed=seed, **model)


def one(job: tuple[Any, ...]) -> list[dict[str, Any]]:
    """Precision and seconds of every selector for one target and seed."""
    data, target, seed, options = job
    with tempfile.TemporaryDirectory(prefix="dataflex-precision-") as folder:
        work = Path(folder)
        preset = common.PRESETS["gpu" if options["gpu"] else "cpu"]
        common.settle_environment(work, preset, options["threads"])
        import torch

        torch.set_num_threads(options["threads"])
        prepare(work, Path(data), options["rows"], options["target_rows"], seed, target, options["model"])
        keys = common.run_keys(work, preset, "run") | {
            "dataset_dir": str(work),
            "dataset": ",".join(POOL),
            "eval_dataset": "aim",
            "cutoff_len": 256,
            "per_device_train_batch_size": BATCH,
            "learning_rate": 2e-3,
            "max_steps": options["steps"] + 1,
            "seed": seed,
            "dataflex": {"select": {"name": "less", "warmup": options["steps"], "interval": options["rows"] // BATCH}},
        }
        return _choose(keys, target, seed)


def _choose(keys: dict[str, Any], target: str, seed: int) -> list[dict[str, Any]]:
    from dataflex.config import parse
    from dataflex.trainer.select import SelectTrainer

    stock, found = SelectTrainer._select, []
    schedule = {k: keys["dataflex"]["select"][k] for k in ("warmup", "interval")}

    def decide(trainer: Any, step: int) -> None:
        if step < schedule["warmup"]:
            return stock(trainer, step)
        own = list(trainer.rows.domains.names).index(target)
        for name, spec in SELECTORS.items():
            block = {**keys, "dataflex": {"select": {**spec, **schedule}}}
            selected = parse(block).dataflex.select  # type: ignore[union-attr]
            type(trainer).config = replace(trainer.config, select=selected)
            trainer.states["select"] = trainer._init_component("select")
            stages = list(trainer.plan.stages)
            trainer._measured = (-1, {})
            begin = time.perf_counter()
            stock(trainer, step)
            seconds = time.perf_counter() - begin
            ids = trainer.plan.stages[-1].pools[0].ids
            trainer.plan.stages[:] = stages
            precision = float((trainer.rows.domains.of(ids) == own).mean())
            found.append({"selector": name, "target": target, "seed": seed, "precision": precision, "seconds": seconds})
        raise _Done

    SelectTrainer._select = decide  # type: ignore[method-assign]
    common.train_until(keys, _Done)
    return found


def report(found: Sequence[dict[str, Any]], options: dict[str, Any]) -> str:
    lines = []
    for name in SELECTORS:
        mine = [f for f in found if f["selector"] == name]
        cells = [name]
        for target in TARGETS:
            values = [f["precision"] for f in mine if f["target"] == target]
            cells.append(
                f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else f"{values[0]:.3f}"
            )
        lines.append(
            [*cells, f"{np.mean([f['precision'] for f in mine]):.3f}", f"{np.median([f['seconds'] for f in mine]):.1f}"]
        )
    seeds = sorted({f["seed"] for f in found})
    return (
        f"A pool of {len(POOL)} x {options['rows']} rows ({', '.join(POOL)}), {options['target_rows']} target rows,"
        f" {options['steps']} warm-up steps of {BATCH} rows, seeds {', '.join(map(str, seeds))}; mean and standard deviation"
        f" over seeds. Chance: {1 / len(POOL):.3f}.\n\n"
        + common.table(("selector", *TARGETS, "mean", "seconds"), lines)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--data", type=Path, required=True, help="a dataset_dir with the sets of POOL and their heldout files"
    )
    parser.add_argument(
        "--preset", choices=("cpu", "gpu"), default="cpu", help="gpu: a larger model, one process (cpu)"
    )
    parser.add_argument("--rows", type=int, default=200, help="rows of each data set in the pool (200)")
    parser.add_argument("--target-rows", type=int, default=50, help="rows of the target (50)")
    parser.add_argument("--steps", type=int, default=30, help="warm-up steps (30)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds per target (3)")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, a thread each (2)")
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    given = parser.parse_args()
    gpu = given.preset == "gpu"
    model: dict[str, Any] = {
        "hidden_size": 128,
        "layers": 3,
        "heads": 4,
        "kv_heads": 2,
        "intermediate_size": 344,
        "vocab_size": 2048,
    }
    if gpu:
        model = {
            "hidden_size": 512,
            "layers": 8,
            "heads": 8,
            "kv_heads": 4,
            "intermediate_size": 1408,
            "vocab_size": 8192,
        }
    options = {
        "rows": given.rows // BATCH * BATCH, "target_rows": given.target_rows, "steps": given.steps, "gpu": gpu,
        "threads": 8 if gpu else 1, "model": model,
    }  # fmt: skip
    jobs = [(str(given.data), target, seed, options) for seed in range(given.seeds) for target in TARGETS]
    context = multiprocessing.get_context("spawn")
    found: list[dict[str, Any]] = []
    with context.Pool(1 if gpu else given.processes, maxtasksperchild=1) as pool:
        for part in pool.imap_unordered(one, jobs):
            found += part
            print(
                f"{part[0]['target']}, seed {part[0]['seed']}: "
                + ", ".join(f"{f['selector']} {f['precision']:.2f}" for f in part),
                flush=True,
            )
    where = common.machine(common.PRESETS[given.preset], options["threads"])
    command = (
        f"python benchmarks/selection/precision.py --data DIR --preset {given.preset} --rows {given.rows}"
        f" --target-rows {given.target_rows} --steps {given.steps} --seeds {given.seeds}"
    )
    text = f"`{command}`: {where}; {given.processes} runs at a time.\n\n{report(found, options)}"
    print(f"\n{text}")
    if given.write:
        common.write_section(f"Precision ({given.preset})", text, Path(__file__).with_name("RESULTS.md"))


if __name__ == "__main__":
    main()
