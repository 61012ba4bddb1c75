"""Samples scored per second by the `loss` signal, over a loop that gives the model one row at a time.

The signal is measured inside a real run, before its first step and with the call the trainer makes. Between two of its
batches its clock stands still while the rows of the batch just scored go through the loops one by one: all see the same
rows at the same time, so that what else the machine does hits them alike.

    python benchmarks/scoring.py                                # rows of the demonstration
    python benchmarks/scoring.py --data DIR --dataset a,b       # rows of a dataset_dir
    python benchmarks/scoring.py --write                        # and put the tables into RESULTS.md
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import inside
import numpy as np
import settings
from measuring import now, of_lengths, times_as_fast
from runner import Command, table

TARGET = 4.0
BUDGETS = (1024, 2048, 4096, 8192, 16384)
ROUNDS = 5
CUTOFF = 256  # tokens of a row at most, but for the gpu preset, which has its own
_POOL = "loss signal"
_OWN, _LOGITS = "one row, the model's own loss", "one row, logits and cross entropy"


class Bench:
    """Scores `count` rows of a trainer's pool; built and used before the trainer's first step."""

    def __init__(self, trainer: Any, count: int) -> None:
        self.trainer, rng = trainer, np.random.default_rng(0)
        sizes, offsets = trainer.rows.domains.sizes, trainer.rows.domains.offsets
        share = -(-count // len(sizes))
        chosen = [np.sort(rng.choice(n, size=min(share, n), replace=False)) for n in sizes]
        self.ids = np.concatenate([begin + part for begin, part in zip(offsets, chosen)])
        self.lengths = trainer.rows.lengths()[self.ids]
        self.row_loss = inside.row_losses(trainer)

    def score(self, budget: int, row_loss: Callable[[Any, Any], Any] | None = None) -> tuple[np.ndarray, float]:
        """The losses of all rows as the `loss` signal gives them, and the seconds they took."""
        from dataflex.signals.stage_loss import stage_losses

        begin = now()
        pool = inside.pool_of(self.trainer, self.trainer.rows, self.ids, budget)
        values = stage_losses(self.trainer.model, pool, row_loss or self.row_loss)
        return values, now() - begin

    def single(self, row: int) -> Any:
        """A batch of one row, by the same path as the batches of the pool."""
        pool = inside.pool_of(self.trainer, self.trainer.rows, self.ids, gradients=True)
        return pool.prepare(pool.collate(pool.rows.__getitems__([row])))

    def own_loss(self, row: int) -> float:
        return float(self.trainer.model(**self.single(row)).loss)

    def logits_loss(self, row: int) -> float:
        import torch.nn.functional as F

        batch = self.single(row)
        labels = batch.pop("labels")
        logits = self.trainer.model(**batch).logits
        return float(F.cross_entropy(logits[0, :-1].float(), labels[0, 1:], ignore_index=-100))

    def side_by_side(self, budget: int) -> tuple[dict[str, np.ndarray], float]:
        """Seconds of each way by block (a batch of the pool), and the largest relative difference of two losses."""
        loops = {_OWN: self.own_loss, _LOGITS: self.logits_loss}
        seconds: dict[str, list[float]] = {name: [] for name in (_POOL, *loops)}
        found = {name: np.full(len(self.trainer.rows), np.nan) for name in loops}
        resumed = 0.0

        def row_loss(model: Any, batch: Any) -> Any:
            nonlocal resumed
            rows = batch["dataflex_sample_ids"].tolist()
            values = self.row_loss(model, batch)
            paused = now()
            seconds[_POOL].append(paused - resumed)
            turn = len(seconds[_POOL]) % 2
            for name in sorted(loops, reverse=bool(turn)):
                begin = now()
                found[name][rows] = [loops[name](row) for row in rows]
                seconds[name].append(now() - begin)
            resumed = now()
            return values

        resumed = now()
        losses, _ = self.score(budget, row_loss)
        seconds[_POOL][-1] += now() - resumed
        others = [values[self.ids] for values in found.values()]
        difference = max(float(np.nanmax(np.abs(v - losses) / np.abs(losses))) for v in others)
        if any((np.isnan(v) != np.isnan(losses)).any() for v in others):
            raise RuntimeError("the ways do not agree on which rows have a loss")
        return {name: np.array(values) for name, values in seconds.items()}, difference

    def sweep(self) -> dict[int, list[float]]:
        """Seconds of the whole pool by budget, one per round; each round begins with another budget."""
        seconds: dict[int, list[float]] = {budget: [] for budget in BUDGETS}
        for turn in range(ROUNDS):
            for budget in (*BUDGETS[turn:], *BUDGETS[:turn]):
                seconds[budget].append(self.score(budget)[1])
        return seconds


def measure(trainer: Any, count: int) -> str:
    from dataflex.signals.batching import default_batch_tokens, token_batches
    from dataflex.signals.isolation import isolated

    bench, budget = Bench(trainer, count), default_batch_tokens(trainer.args.device)
    lengths, rows = bench.lengths, len(bench.ids)
    with isolated(trainer.model):
        bench.score(budget)  # thread and memory pools
        seconds, difference = bench.side_by_side(budget)
        timed = bench.sweep()
    signal = seconds[_POOL]
    lines = [[f"{_POOL}, budget {budget}", f"{rows / signal.sum():.1f}", "1", "-", "-", "-"]]
    for name in (_OWN, _LOGITS):
        lines.append([name, f"{rows / seconds[name].sum():.1f}", *times_as_fast(seconds[name], signal, TARGET)])
    by_budget = []
    for size, values in timed.items():
        relative = np.median(np.array(timed[budget]) / np.array(values))
        padded = sum(max(lengths[b]) * len(b) for b in token_batches(lengths, size))
        shares = f"{relative:.3f}", f"{lengths.sum() / padded:.3f}"
        by_budget.append([f"{size}", f"{rows / np.median(values):.1f}", *shares])
    fastest = min(timed, key=lambda size: float(np.median(timed[size])))
    header = ("way", "samples/s", "signal is faster by", "90% interval", "target", "verdict")
    return (
        f"{of_lengths(lengths)}, {len(signal)} blocks; the"
        f" losses of the three ways differ by {difference:.1e} at most (relative).\n\n{table(header, lines)}\n\n"
        f"By token budget (`scoring_tokens`), medians of {ROUNDS} rounds; fastest here: {fastest}, default: {budget}.\n\n"
        + table(("budget", "samples/s", "over the default's", "share not padding"), by_budget)
    )


def main() -> None:
    command = Command(
        __file__, __doc__, settings.PRESETS, "rows", "threads",
        data={"type": Path, "help": "a dataset_dir of sft data sets instead of the demonstration's"},
        dataset={"help": "data sets of --data, separated by commas"},
    )  # fmt: skip
    given = command.given
    if (given.data is None) != (given.dataset is None):
        command.parser.error("--data and --dataset go together")
    preset = settings.PRESETS[given.preset]
    given.rows = rows = given.rows or preset.pool
    with tempfile.TemporaryDirectory(prefix="dataflex-scoring-") as folder:
        work = Path(folder)
        settings.settle_environment(work, preset, given.threads)
        import torch

        torch.set_num_threads(given.threads)
        names, _, _ = settings.demonstration(work, preset, rows=-(-rows // 5))
        keys = settings.run_keys(work, preset, "run") | {
            "dataset_dir": str(given.data or work / "demo"),
            "dataset": given.dataset or ",".join(names),
            "cutoff_len": max(CUTOFF, preset.cutoff),
            "max_steps": 1,
            "dataflex": {"select": {"name": "loss", "interval": 1}},
        }
        text = inside.during_run(keys, lambda trainer: measure(trainer, rows), log=work / "run.log")
    title = f"Scoring ({given.preset}{', own data' if given.data else ''})"
    command.publish(title, text, threads=given.threads, gpu=preset.gpu)


if __name__ == "__main__":
    main()
