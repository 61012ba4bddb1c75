"""Samples scored per second by the `loss` signal, over a loop that gives the model one row at a time.

The signal is measured inside a real run, at its first decision and with the call the trainer makes. Between two of its
batches its clock stands still while the rows of the batch just scored go through the loops one by one: all see the same
rows at the same time, so that what else the machine does hits them alike.

    python benchmarks/scoring.py                                # rows of the demonstration
    python benchmarks/scoring.py --data DIR --dataset a,b       # rows of a dataset_dir
    python benchmarks/scoring.py --write                        # and put the tables into RESULTS.md
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np

TARGET = 4.0
BUDGETS = (1024, 2048, 4096, 8192, 16384)
ROUNDS = 5
CUTOFF = 256  # tokens of a row at most, but for the gpu preset, which has its own
_POOL = "loss signal"
_OWN, _LOGITS = "one row, the model's own loss", "one row, logits and cross entropy"


class _Done(Exception):
    """Ends the run once everything is measured."""


def now() -> float:
    """The time when all that was asked of the device is done."""
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


class Bench:
    """Scores `count` rows of a trainer's pool; built and used at the trainer's first decision."""

    def __init__(self, trainer: Any, count: int) -> None:
        from dataflex.data.rows import Rows

        self.trainer = trainer
        parts, rng = [], np.random.default_rng(0)
        share = -(-count // len(trainer.rows.parts))
        for part in trainer.rows.parts:
            kept = np.sort(rng.choice(len(part), size=min(share, len(part)), replace=False))
            parts.append(part.select(kept))
        self.rows = Rows(parts, trainer.rows.domains.names)
        self.lengths = self.rows.lengths()

    def score(self, budget: int, row_loss: Callable[[Any, Any], Any] | None = None) -> tuple[np.ndarray, float]:
        """The losses of all rows as `Signals.measure` gets them, and the seconds they took."""
        from dataflex.components.requests import Loss
        from dataflex.signals.stage_loss import stage_losses

        trainer, begin = self.trainer, now()
        pool = dataclasses.replace(trainer.signals.context.batches(Loss(), self.rows), budget=budget)
        values = stage_losses(trainer.model, pool, row_loss or trainer._score)
        return values, now() - begin

    def single(self, place: int) -> Any:
        """A batch of one row, by the same path as the batches of the pool."""
        batch = self.trainer.data_collator(self.rows.__getitems__([place]))
        batch.pop("dataflex_sample_ids")
        return self.trainer._prepare_inputs(batch)

    def own_loss(self, place: int) -> float:
        return float(self.trainer.model(**self.single(place)).loss)

    def logits_loss(self, place: int) -> float:
        import torch.nn.functional as F

        batch = self.single(place)
        labels = batch.pop("labels")
        logits = self.trainer.model(**batch).logits
        return float(F.cross_entropy(logits[0, :-1].float(), labels[0, 1:], ignore_index=-100))

    def side_by_side(self, budget: int) -> tuple[dict[str, np.ndarray], float]:
        """Seconds of each way by block (a batch of the pool), and the largest relative difference of two losses."""
        loops = {_OWN: self.own_loss, _LOGITS: self.logits_loss}
        seconds: dict[str, list[float]] = {name: [] for name in (_POOL, *loops)}
        found = {name: np.full(len(self.rows), np.nan) for name in loops}
        resumed = 0.0

        def row_loss(model: Any, batch: Any) -> Any:
            nonlocal resumed
            places = batch["dataflex_sample_ids"].tolist()
            values = self.trainer._score(model, batch)
            paused = now()
            seconds[_POOL].append(paused - resumed)
            turn = len(seconds[_POOL]) % 2
            for name in sorted(loops, reverse=bool(turn)):
                begin = now()
                found[name][places] = [loops[name](place) for place in places]
                seconds[name].append(now() - begin)
            resumed = now()
            return values

        resumed = now()
        losses, _ = self.score(budget, row_loss)
        seconds[_POOL][-1] += now() - resumed
        difference = max(float(np.nanmax(np.abs(v - losses) / np.abs(losses))) for v in found.values())
        if any((np.isnan(v) != np.isnan(losses)).any() for v in found.values()):
            raise RuntimeError("the ways do not agree on which rows have a loss")
        return {name: np.array(values) for name, values in seconds.items()}, difference

    def sweep(self) -> dict[int, list[float]]:
        """Seconds of the whole pool by budget, one per round; each round begins with another budget."""
        seconds: dict[int, list[float]] = {budget: [] for budget in BUDGETS}
        for turn in range(ROUNDS):
            for budget in (*BUDGETS[turn:], *BUDGETS[:turn]):
                seconds[budget].append(self.score(budget)[1])
        return seconds


def report(bench: Bench, budget: int) -> str:
    lengths, rows = bench.lengths, len(bench.rows)
    bench.score(budget)  # thread and memory pools
    seconds, difference = bench.side_by_side(budget)
    signal, blocks = seconds[_POOL], len(seconds[_POOL])
    lines = [[f"{_POOL}, budget {budget}", f"{rows / signal.sum():.1f}", "1", "-", "-", "-"]]
    for name in (_OWN, _LOGITS):
        loop = seconds[name]
        ratio = float(loop.sum() / signal.sum())
        low, high = common.interval(lambda i, loop=loop: float(loop[i].sum() / signal[i].sum()), blocks)
        verdict = "met" if low >= TARGET else "missed" if high < TARGET else "in the noise"
        target = f">= {TARGET:g}"
        lines.append([name, f"{rows / loop.sum():.1f}", f"{ratio:.2f}", f"{low:.2f} .. {high:.2f}", target, verdict])
    header = ("way", "samples/s", "signal is faster by", "90% interval", "target", "verdict")
    timed = bench.sweep()
    by_budget = []
    for size, values in timed.items():
        relative = np.median(np.array(timed[budget]) / np.array(values))
        padded = sum(max(lengths[b]) * len(b) for b in _batches(lengths, size))
        by_budget.append(
            [f"{size}", f"{rows / np.median(values):.1f}", f"{relative:.3f}", f"{lengths.sum() / padded:.3f}"]
        )
    fastest = min(timed, key=lambda size: float(np.median(timed[size])))
    low, middle, high = np.percentile(lengths, [5, 50, 95])
    return (
        f"{rows} rows of {low:.0f} / {middle:.0f} / {high:.0f} tokens (5th, 50th, 95th percentile), {blocks} blocks; the"
        f" losses of the three ways differ by {difference:.1e} at most (relative).\n\n{common.table(header, lines)}\n\n"
        f"By token budget (`scoring_tokens`), medians of {ROUNDS} rounds; fastest here: {fastest}, default: {budget}.\n\n"
        + common.table(("budget", "samples/s", "over the default's", "share not padding"), by_budget)
    )


def _batches(lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    from dataflex.signals.batching import token_batches

    return token_batches(lengths, budget)


def measure(keys: dict[str, Any], count: int) -> str:
    """Start the run of `keys`, and give the report of its first decision."""
    from dataflex.trainer.core import DynamicTrainer

    from dataflex.signals.batching import token_budget

    found: list[str] = []

    def first_decision(trainer: Any, step: int) -> None:
        from dataflex.signals.isolation import isolated

        bench = Bench(trainer, count)
        with isolated(trainer.model):
            found.append(report(bench, token_budget(trainer.args.device)))
        raise _Done

    DynamicTrainer._decide = first_decision  # type: ignore[method-assign]
    common.train_until(keys, _Done)
    return found[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--preset", choices=common.PRESETS, default="cpu", help="size of the model and the pool (cpu)")
    parser.add_argument("--rows", type=int, help="rows scored (of the preset)")
    parser.add_argument("--threads", type=int, default=2, help="threads (2)")
    parser.add_argument("--data", type=Path, help="a dataset_dir of sft data sets instead of the demonstration's")
    parser.add_argument("--dataset", help="data sets of --data, separated by commas")
    parser.add_argument("--write", action="store_true", help="put the tables into RESULTS.md")
    options = parser.parse_args()
    if (options.data is None) != (options.dataset is None):
        parser.error("--data and --dataset go together")
    preset = common.PRESETS[options.preset]
    rows = options.rows or preset.pool
    with tempfile.TemporaryDirectory(prefix="dataflex-scoring-") as folder:
        work = Path(folder)
        common.settle_environment(work, preset, options.threads)
        import torch

        from dataflex.demo.data import DOMAINS, build_domains, training_texts

        torch.set_num_threads(options.threads)
        sizes = build_domains(work / "demo", rows_per_domain=max(200, -(-rows // len(DOMAINS))), heldout=1)
        common.make_model(work / "model", preset, list(training_texts(work / "demo")))
        keys = common.run_keys(work, preset, "run") | {
            "dataset_dir": str(options.data or work / "demo"),
            "dataset": options.dataset or ",".join(name for name in DOMAINS if name in sizes),
            "cutoff_len": max(CUTOFF, preset.cutoff),
            "max_steps": 1,
            "dataflex": {"select": {"name": "loss", "interval": 1}},
        }
        text = measure(keys, rows)
        where = common.machine(preset, options.threads)
    source = f" --data DIR --dataset {options.dataset}" if options.data else ""
    command = (
        f"python benchmarks/scoring.py --preset {options.preset} --rows {rows} --threads {options.threads}{source}"
    )
    text = f"`{command}`: {where}.\n\n{text}"
    print(f"\n{text}")
    if options.write:
        common.write_section(f"Scoring ({options.preset}{', own data' if options.data else ''})", text)


if __name__ == "__main__":
    main()
