"""What a real run pays for the steps it has done when it is resumed, and how fast it scores on one and on two ranks."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apart
import inside
import numpy as np
import settings
from pools import SHARES
from runner import table

TINY = settings.PRESETS["tiny"]
REPEATS = 3
# Blocks of resumed runs: a decision before every step, one stage that lasts all the run, and a selection now and then.
RESUMED = {
    "mix odm, interval 1": {"mix": {"name": "odm", "warmup": 1, "interval": 1}},
    "mix static": {"mix": {"name": "static", "proportions": [0.5, 0.3, 0.2]}},
    "select random, interval 5": {"select": {"name": "random", "warmup": 2, "interval": 5}},
}
SCORED = {
    "loss": {"name": "loss", "interval": 1},
    "embedding": {"name": "rds", "interval": 1},
    "gradients, sgd": {"name": "less", "gradient_type": "sgd", "interval": 1},
    "gradients, adam": {"name": "less", "gradient_type": "adam", "interval": 1},
}
WARMUP = 2  # optimizer steps before scoring, so that Adam has moments


# -- resuming ----------------------------------------------------------------------------------------------------------


def train_through(keys: dict[str, Any]) -> list[tuple[int, float, float, int]]:
    """Train; of each save, (step, seconds of processor time of all of it, those of what is ours, bytes of its ledger)."""
    clock, found = inside.Seconds(time.process_time), []

    def saved(trainer: Any, ledger: int) -> None:
        found.append((trainer.state.global_step, clock.spent["all"][-1], clock.spent["ours"][-1], ledger))

    inside.watch_saves(clock.timed, saved)
    settings.train(keys)
    return found


def resume(keys: dict[str, Any]) -> dict[str, float]:
    """Milliseconds of processor time from a resumed run's start to its first batch, and of what is ours in them."""
    clock = inside.Seconds(time.process_time)
    inside.resume_to_first_batch(keys, clock.timed)
    return {name: 1000 * sum(values) for name, values in clock.spent.items()}


def _runs(work: Path, steps: Sequence[int], batch: int) -> tuple[list[list[str]], list[list[str]]]:
    resumed, saved = [], []
    for name, block in RESUMED.items():
        keys = settings.run_keys(work, TINY, name.split(",")[0].replace(" ", "-")) | {
            "dataset": "d0,d1,d2",
            "per_device_train_batch_size": batch,
            "max_steps": max(steps) + 10,
            "logging_steps": 100,
            "save_strategy": "steps",
            "save_steps": min(steps),
            "cutoff_len": 16,
            "dataflex": block,
        }
        out = Path(keys["output_dir"])
        (saves,) = apart.call(train_through, keys, log=work / f"{out.name}.log")
        every = {step: rest for step, *rest in saves}
        for step in steps:
            whole, ours, ledger = every[step]
            saved.append([name, f"{step}", f"{1000 * whole:.1f}", f"{1000 * ours:.2f}", f"{ledger / 1024:.1f}"])
            mine = {**keys, "resume_from_checkpoint": str(out / f"checkpoint-{step}")}
            copy, seen = out.with_name(f"{out.name}-again"), []
            for turn in range(REPEATS):
                shutil.rmtree(copy, ignore_errors=True)  # a resumed run cuts back the files of the run it goes on from
                again = {**mine, "output_dir": str(copy), "overwrite_output_dir": False}
                seen += apart.call(resume, again, log=work / f"{out.name}-{step}-{turn}.log")
            columns = ("reading", "restoring", "first batch", "in all")
            resumed.append([name, f"{step}", *(f"{np.median([s[c] for s in seen]):.1f}" for c in columns)])
        shutil.rmtree(out)
    return resumed, saved


def ledger_cost(stages: Sequence[int]) -> list[list[str]]:
    """Writing and reading what a checkpoint holds of a run of so many decisions, by the functions that a run calls."""
    from dataflex.plan.plan import Domains, Plan
    from dataflex.record.ledger import RunFiles
    from dataflex.record.snapshot import Snapshot, read_snapshot, write_snapshot

    lines = []
    for count in stages:
        with tempfile.TemporaryDirectory(prefix="dataflex-scale-") as folder:
            domains = Domains(tuple("abcdefg"), (10**6,) * 7)
            plan, files, rng = Plan(domains, 0), RunFiles(folder, domains, writes=True), np.random.default_rng(0)
            files.start({})
            begin = time.process_time()
            for step in range(count):
                plan.forget(step * 64 - 1)
                stage = plan.append(step * 64, plan.domain_pools(), rng.dirichlet(np.ones(7)).tolist())
                decided = {"proportions": dict(zip(domains.names, stage.proportions, strict=True))}
                files.record(
                    {"step": step, "position": stage.start, "component": "mix:odm", "decided": decided,
                     "from": {"rows": np.ones(7), "loss": np.ones(7)}, "seconds": 0.001, "stage": stage.to_json()}
                )  # fmt: skip
            each = 1e6 * (time.process_time() - begin) / count
            position = count * 64
            snapshot = Snapshot(count, position, 64, {}, plan.stages_from(position), {}, {})
            begin = time.process_time()
            write_snapshot(Path(folder) / "checkpoint-1", snapshot, files.ledger_text)
            write = 1000 * (time.process_time() - begin)
            begin = time.process_time()
            read_snapshot(Path(folder) / "checkpoint-1")
            read, size = 1000 * (time.process_time() - begin), len(files.ledger_text)
        kept = f"{len(plan.stages)}"
        lines.append([f"{count:,}", f"{each:.0f}", f"{size / 2**20:.2f}", kept, f"{write:.1f}", f"{read:.1f}"])
    return lines


def stage_cost(positions: Sequence[int]) -> list[list[str]]:
    """The first global batch of a run resumed so far into a stage of 7 domains: as a checkpoint lets it go on, and with the order
    of the stage followed from its beginning."""
    import json

    from dataflex.plan.plan import Domains, Plan
    from dataflex.plan.stages import Stage

    domains = Domains(tuple("abcdefg"), (10**6,) * 7)
    plan = Plan(domains, 0)
    plan.append(0, plan.domain_pools(), SHARES)
    lines = []
    for position in positions:
        records = json.loads(json.dumps([stage.to_json() for stage in plan.stages_from(position)]))
        took = []
        for stages in ([Stage.from_json(r, {}) for r in records], list(plan.stages)):
            begin = time.process_time()
            Plan(domains, 0, stages=stages).rows(position, position + 64)
            took.append(1000 * (time.process_time() - begin))
        lines.append([f"{position:,}", f"{took[0]:.1f}", f"{took[1]:.1f}"])
    return lines


def resuming(steps: Sequence[int], ledgers: Sequence[int]) -> str:
    batch = 16
    with tempfile.TemporaryDirectory(prefix="dataflex-scale-") as folder:
        work = Path(folder)
        settings.settle_environment(work, TINY, 1)
        _, texts, tokenizer = settings.demonstration(work, TINY, heldout=20)
        settings.write_equal_rows(work / "data", tokenizer, texts, 3, rows=3000, tokens=16)
        resumed, saved = _runs(work, steps, batch)
    stages = apart.fresh(stage_cost, [10**power for power in range(2, 7)])
    costs = apart.fresh(ledger_cost, ledgers)
    names = ("run", "steps done", "reading, ms", "restoring, ms", "first batch, ms", "to first batch in all, ms")
    return (
        f"Resuming real runs of a tiny model, {batch} rows a step, medians of {REPEATS}, processor time. *Reading* is what"
        " happens twice, to check and to restore, in all; *restoring* holds one of them; the *first batch* holds a decision"
        f" where one is due.\n\n{table(names, resumed)}\n\nThe first global batch of 64 rows, so many positions into a"
        " stage of 7 domains:\n\n"
        + table(("positions", "resumed, ms", "followed from the beginning, ms"), stages)
        + "\n\nSaving in these runs:\n\n"
        + table(("run", "steps done", "a checkpoint, ms", "ours of it, ms", "its ledger, KiB"), saved)
        + "\n\nA ledger of so many decisions over 7 domains, without a run around it. Every checkpoint holds the whole"
        " text, so what it takes to save and to check one grows with the decisions taken:\n\n"
        + table(("decisions", "each, us", "ledger, MiB", "stages held", "writing, ms", "reading, ms"), costs)
    )


# -- scoring -----------------------------------------------------------------------------------------------------------


def score(keys: dict[str, Any], count: int) -> tuple[int, int, list[tuple[float, float]]]:
    """(rows, tokens, [(wall seconds, processor seconds) of a pass]) of the pass that the run's selector asks for."""
    return inside.during_run(keys, lambda trainer: passes_of(trainer, count), after=WARMUP)


def passes_of(trainer: Any, count: int) -> tuple[int, int, list[tuple[float, float]]]:
    import torch.distributed as dist

    from dataflex.components.contracts import declared
    from dataflex.components.requests import as_requests

    chosen = np.sort(np.random.default_rng(0).permutation(len(trainer.rows))[:count])
    (request,) = [r for r in as_requests(declared(trainer.config.select.component.needs)) if r.per == "row"]
    passes = []
    for turn in range(REPEATS + 1):
        if dist.is_initialized():
            dist.barrier()
        wall, spent = time.perf_counter(), time.process_time()
        inside.measured(trainer, request, chosen, afresh=True)
        if turn:  # the first one sets up thread and memory pools
            passes.append((time.perf_counter() - wall, time.process_time() - spent))
    return count, int(trainer.rows.lengths()[chosen].sum()), passes


def scoring(preset: settings.Preset, count: int) -> str:
    lines = []
    with tempfile.TemporaryDirectory(prefix="dataflex-scale-") as folder:
        work = Path(folder)
        settings.settle_environment(work, preset, 1)
        names, _, _ = settings.demonstration(work, preset, heldout=20)
        for name, select in SCORED.items():
            seen = {}
            for ranks in (1, 2):
                keys = settings.run_keys(work, preset, f"{name.replace(', ', '-')}-{ranks}") | {
                    "dataset_dir": str(work / "demo"),
                    "dataset": ",".join(names),
                    "eval_dataset": f"{names[0]}_heldout",
                    "per_device_train_batch_size": 2,
                    "cutoff_len": 256,
                    "max_steps": WARMUP + 1,
                    "dataflex": {"select": {**select, "warmup": WARMUP}},
                    **({"finetuning_type": "lora", "lora_target": "all"} if "gradients" in name else {}),
                }
                log = work / f"{Path(keys['output_dir']).name}.log"
                seen[ranks] = apart.call(score, keys, count, log=log, ranks=ranks)
            (rows, tokens, one), two = seen[1][0], seen[2]
            wall = float(np.median([w for w, _ in one])), float(np.median([w for w, _ in two[0][2]]))
            # of two ranks, the one that has more to do
            spent = float(np.median([p for _, p in one])), max(float(np.median([p for _, p in r[2]])) for r in two)
            rates = [f"{rows / s:.1f}" for s in spent] + [f"{tokens / s:.0f}" for s in spent]
            lines.append([name, *rates, f"{spent[0] / spent[1]:.2f}", f"{wall[0] / wall[1]:.2f}"])
    header = ("signal", "rows/s, 1 rank", "2 ranks", "tokens/s, 1 rank", "2 ranks", "times as fast", "by wall time")
    return (
        f"A scoring pass over {count} rows of at most 256 tokens inside a real run, one thread per rank (gloo), medians of"
        f" {REPEATS} passes. A pass of gradients holds those over its target of 20 rows. Rates are by processor time, of two"
        " ranks that of the busier one: what a core for each would give. *By wall time* is what came of it beside other work.\n\n"
        + table(header, lines)
    )
