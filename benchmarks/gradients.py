"""Rows scored per second by the gradient selectors' signal, over loops that take one backward pass per row.

Measured inside a real LoRA run, after a few steps, with the engine, the optimizer and the rows of that run. For every batch of
the signal, the same rows go through all ways one after the other, so that what else the machine does hits all alike.

    python benchmarks/gradients.py                                     # rows of the demonstration
    python benchmarks/gradients.py --data DIR --dataset a,b --target c # data sets of a dataset_dir
    python benchmarks/gradients.py --write                             # and put the table into RESULTS.md
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import inside
import numpy as np
import settings
from measuring import now, of_lengths, times_as_fast
from runner import Command, table
from ways import Way, Ways, random_signs

CUTOFF = 256  # tokens of a row at most
DIM = 4096  # of the dense projection
WARMUP = 3  # optimizer steps before the decision, so that Adam has moments
PLAIN = "plain forward and backward"


def measure(trainer: Any, count: int, buffer: int) -> str:
    import torch

    from dataflex.signals.batching import batches_of
    from dataflex.signals.isolation import isolated

    chosen = np.sort(np.random.default_rng(0).permutation(len(trainer.rows))[:count])
    pool = inside.pool_of(trainer, trainer.rows, chosen, gradients=True)
    ways = Ways(trainer.model, trainer.optimizer, inside.pool_of(trainer, trainer.target, gradients=True))
    generator = torch.Generator(device=ways.aim.device).manual_seed(0)
    matrix = random_signs(len(ways.aim), DIM, generator).float()
    compared: dict[str, Way] = {PLAIN: ways.plain}
    for kind in ("adam", "sgd"):
        compared[f"{kind}: the signal"] = ways.signal(kind)
        compared[f"{kind}: loop"] = ways.loop(kind, buffer)
        compared[f"{kind}: loop, projected"] = ways.loop(kind, buffer, lambda g: g @ matrix)
    seconds: dict[str, list[float]] = {name: [] for name in compared}
    cosines = {name: np.full(len(pool), np.nan) for name in compared}
    with isolated(trainer.model):
        for turn, (places, batch) in enumerate(batches_of(pool, "benchmark")):
            rows = [pool.prepare(pool.collate(pool.rows.__getitems__([int(i)]))) for i in pool.ids[places]]
            for name in sorted(compared, reverse=bool(turn % 2)):
                begin = now()
                values = compared[name](batch, rows)
                seconds[name].append(now() - begin)
                if values is not None:
                    cosines[name][places] = values.float().cpu().numpy()
    return report({name: np.array(values) for name, values in seconds.items()}, cosines, pool.lengths)


def report(seconds: dict[str, np.ndarray], cosines: dict[str, np.ndarray], lengths: np.ndarray) -> str:
    def line(what: str, slow: str, fast: str, target: float) -> list[str]:
        return [what, *times_as_fast(seconds[slow][1:], seconds[fast][1:], target)]

    lines = []
    for kind, target in (("adam", 7.0), ("sgd", 10.0)):
        ours, loop = f"{kind}: the signal", f"{kind}: loop"
        lines.append(
            line(f"{kind}: over the loop with a dense projection to {DIM}", f"{loop}, projected", ours, target)
        )
        lines.append(line(f"{kind}: over the loop alone", loop, ours, 3.0))
    lines.append(line("sgd: share of the speed of plain training passes", PLAIN, "sgd: the signal", 0.6))
    apart = max(float(np.nanmax(np.abs(cosines[f"{k}: the signal"] - cosines[f"{k}: loop"]))) for k in ("adam", "sgd"))
    speeds = [[name, f"{len(lengths) / s.sum():.1f}"] for name, s in seconds.items()]
    return (
        f"{of_lengths(lengths)}, {len(seconds[PLAIN])} blocks; the"
        f" cosines of the signal and of the loop differ by {apart:.1e} at most.\n\n"
        + table(("what", "times as fast", "90% interval", "target", "verdict"), lines)
        + "\n\n"
        + table(("way", "samples/s"), speeds)
    )


def main() -> None:
    command = Command(
        __file__, __doc__, settings.PRESETS, "rows", "threads",
        tokens={"type": int, "help": "scoring_tokens (the default of the device)"},
        buffer={"type": int, "default": 16, "help": "rows that the loop projects at once (16)"},
        data={"type": Path, "help": "a dataset_dir of sft data sets instead of the demonstration's"},
        dataset={"help": "data sets of --data, separated by commas"},
        target={"help": "data set of --data that the rows are compared with"},
    )  # fmt: skip
    given = command.given
    if len({given.data is None, given.dataset is None, given.target is None}) != 1:
        command.parser.error("--data, --dataset and --target go together")
    preset = settings.PRESETS[given.preset]
    given.rows = rows = given.rows or preset.pool
    with tempfile.TemporaryDirectory(prefix="dataflex-gradients-") as folder:
        work = Path(folder)
        settings.settle_environment(work, preset, given.threads)
        import torch

        torch.set_num_threads(given.threads)
        names, _, _ = settings.demonstration(work, preset, rows=-(-rows // 5), heldout=20)
        keys = settings.run_keys(work, preset, "run") | {
            "finetuning_type": "lora",
            "lora_rank": 8,
            "lora_target": "all",
            "dataset_dir": str(given.data or work / "demo"),
            "dataset": given.dataset or ",".join(names),
            "eval_dataset": given.target or f"{names[0]}_heldout",
            "cutoff_len": CUTOFF,
            "max_steps": WARMUP + 1,
            "max_samples": 2 * rows,
            "disable_gradient_checkpointing": True,
            "dataflex": {"select": {"name": "less", "warmup": WARMUP, "interval": 1}},
        }
        if given.tokens:
            keys["dataflex"]["scoring_tokens"] = given.tokens
        text = inside.during_run(keys, lambda t: measure(t, rows, given.buffer), WARMUP, log=work / "run.log")
    own = ", own data" if given.data else ""
    command.publish(
        f"Gradients ({given.preset}{own}, {given.buffer} rows projected at once)", text,
        threads=given.threads, gpu=preset.gpu, note=". LoRA of rank 8 on all linear layers",
    )  # fmt: skip


if __name__ == "__main__":
    main()
