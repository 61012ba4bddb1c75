"""Rows scored per second by the gradient selectors' signal, over loops that take one backward pass per row.

Measured inside a real LoRA run, at its decision after a few steps, with the engine, the optimizer and the rows of that run.
For every batch of the signal, the same rows go through all ways one after the other, so that what else the machine does hits
all alike.

    python benchmarks/gradients.py                                     # rows of the demonstration
    python benchmarks/gradients.py --data DIR --dataset a,b --target c # data sets of a dataset_dir
    python benchmarks/gradients.py --write                             # and put the table into RESULTS.md
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np

CUTOFF = 256  # tokens of a row at most
DIM = 4096  # of the dense projection
WARMUP = 3  # optimizer steps before the decision, so that Adam has moments


class _Done(Exception):
    """Ends the run once everything is measured."""


class Bench:
    """The ways to score a batch of rows. Each gives cosines with the target, float [B]."""

    def __init__(self, trainer: Any, count: int, buffer: int) -> None:
        import torch

        from dataflex.components.requests import TargetAlignment
        from dataflex.signals.gradients.alignment import exact_targets
        from dataflex.signals.gradients.directions import AdamDirection, optimizer_moments
        from dataflex.signals.gradients.passes import BatchGradients

        self.trainer, self.torch, self.buffer = trainer, torch, buffer
        request, model = TargetAlignment(), trainer.model
        chosen = np.sort(np.random.default_rng(0).permutation(len(trainer.rows))[:count])
        self.pool = trainer.signals.context.batches(request, trainer.rows, chosen)
        target = trainer.signals.context.batches(request, trainer.target)
        self.moments = optimizer_moments(trainer.optimizer)
        self.engines = {
            "sgd": BatchGradients(model),
            "adam": BatchGradients(model, direction=AdamDirection(self.moments)),
        }
        self.targets = exact_targets(target, [np.arange(len(target))], self.engines["sgd"])
        self.parameters = list(self.engines["sgd"].names)
        self.flat_target = torch.cat([self.targets[p] for p in self.parameters], dim=1)[0]
        generator = torch.Generator(device=self.flat_target.device).manual_seed(0)
        shape = (len(self.flat_target), DIM)
        self.matrix = torch.randint(
            2, shape, generator=generator, device=self.flat_target.device, dtype=torch.int8
        ).float().mul_(2).sub_(1)  # fmt: skip

    def ours(self, kind: str) -> Callable[[Any, list[Any]], Any]:
        def way(batch: Any, _: list[Any]) -> Any:
            dots, norms = self.engines[kind].dots(batch, self.targets)
            return dots[:, 0] / norms

        return way

    def plain(self, batch: Any, _: list[Any]) -> None:
        """Forward and backward of the same batch as training does it, in evaluation mode."""
        with self.torch.enable_grad():
            self.trainer.model(**batch, use_cache=False).loss.backward()
        self.trainer.model.zero_grad(set_to_none=True)

    def gradient(self, row: Any, kind: str) -> Any:
        """The flat direction of one row."""
        torch = self.torch
        with torch.enable_grad():
            self.trainer.model(**row, use_cache=False).loss.backward()
        flat = []
        for p in self.parameters:
            g = p.grad.flatten().float()
            flat.append(self.engines["adam"].direction.of(p)(g[None])[0] if kind == "adam" else g)
        out = torch.cat(flat)
        self.trainer.model.zero_grad(set_to_none=True)
        return out

    def loop(self, kind: str, project: bool) -> Callable[[Any, list[Any]], Any]:
        def way(_: Any, rows: list[Any]) -> Any:
            torch, out, buffer = self.torch, [], []
            aim = self.flat_target @ self.matrix if project else self.flat_target
            for place, row in enumerate(rows):
                buffer.append(self.gradient(row, kind))
                if len(buffer) == self.buffer or place == len(rows) - 1:
                    features = torch.stack(buffer)
                    buffer = []
                    if project:
                        features = features @ self.matrix
                    out.append((features @ aim) / features.norm(dim=1))
            return torch.cat(out)

        return way


def measure(bench: Bench) -> dict[str, Any]:
    """Seconds of every way by block, and the scores that they gave."""
    import torch

    from dataflex.signals.batching import batches_of
    from dataflex.signals.isolation import isolated

    def now() -> float:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter()

    ways: dict[str, Callable[[Any, list[Any]], Any]] = {"plain forward and backward": bench.plain}
    for kind in ("adam", "sgd"):
        ways[f"{kind}: the signal"] = bench.ours(kind)
        ways[f"{kind}: loop"] = bench.loop(kind, project=False)
        ways[f"{kind}: loop, projected"] = bench.loop(kind, project=True)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    scores = {name: np.full(len(bench.pool), np.nan) for name in ways}
    from dataflex.data.rows import SAMPLE_IDS

    with isolated(bench.trainer.model):
        for turn, (places, batch) in enumerate(batches_of(bench.pool, "benchmark")):
            rows = []
            for i in bench.pool.ids[places]:
                row = bench.trainer._prepare_inputs(bench.pool.collate(bench.pool.rows.__getitems__([int(i)])))
                row.pop(SAMPLE_IDS, None)
                rows.append(row)
            for name in sorted(ways, reverse=bool(turn % 2)):
                begin = now()
                values = ways[name](batch, rows)
                seconds[name].append(now() - begin)
                if values is not None:
                    scores[name][places] = values.float().cpu().numpy()
    return {"seconds": {n: np.array(v) for n, v in seconds.items()}, "scores": scores, "rows": len(bench.pool)}


def report(found: dict[str, Any], lengths: np.ndarray) -> str:
    seconds, scores, count = found["seconds"], found["scores"], found["rows"]
    blocks = len(seconds["adam: loop"])

    def ratio(of: str, over: str, target: float) -> list[str]:
        a, b = seconds[of], seconds[over]
        value = float(a[1:].sum() / b[1:].sum())
        low, high = common.interval(lambda i: float(a[1:][i].sum() / b[1:][i].sum()), blocks - 1)
        verdict = "met" if low >= target else "missed" if high < target else "in the noise"
        return [f"{value:.2f}", f"{low:.2f} .. {high:.2f}", f">= {target:g}", verdict]

    lines = []
    for kind, over_projected in (("adam", 7.0), ("sgd", 10.0)):
        ours = f"{kind}: the signal"
        lines.append(
            [
                f"{kind}: over the loop with a dense projection to {DIM}",
                *ratio(f"{kind}: loop, projected", ours, over_projected),
            ]
        )
        lines.append([f"{kind}: over the loop alone", *ratio(f"{kind}: loop", ours, 3.0)])
    lines.append(
        [
            "sgd: share of the speed of plain training passes",
            *ratio("plain forward and backward", "sgd: the signal", 0.6),
        ]
    )
    speeds = [[name, f"{count / s.sum():.1f}"] for name, s in seconds.items()]
    apart = max(float(np.nanmax(np.abs(scores[f"{k}: the signal"] - scores[f"{k}: loop"]))) for k in ("adam", "sgd"))
    low, middle, high = np.percentile(lengths, [5, 50, 95])
    return (
        f"{count} rows of {low:.0f} / {middle:.0f} / {high:.0f} tokens (5th, 50th, 95th percentile), {blocks} blocks; the"
        f" cosines of the signal and of the loop differ by {apart:.1e} at most.\n\n"
        + common.table(("what", "times as fast", "90% interval", "target", "verdict"), lines)
        + "\n\n"
        + common.table(("way", "samples/s"), speeds)
    )


def run(keys: dict[str, Any], count: int, buffer: int) -> str:
    """Start the run of `keys`, and give the report of its first decision."""
    from dataflex.trainer.select import SelectTrainer

    found: list[str] = []
    stock = SelectTrainer._select

    def decision(trainer: Any, step: int) -> None:
        if step < WARMUP:
            return stock(trainer, step)
        bench = Bench(trainer, count, buffer)
        found.append(report(measure(bench), bench.pool.lengths))
        raise _Done

    SelectTrainer._select = decision  # type: ignore[method-assign]
    common.train_until(keys, _Done)
    return found[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--preset", choices=common.PRESETS, default="cpu", help="size of the model and the pool (cpu)")
    parser.add_argument("--rows", type=int, help="rows scored (of the preset)")
    parser.add_argument("--threads", type=int, default=2, help="threads (2)")
    parser.add_argument("--tokens", type=int, help="scoring_tokens (the default of the device)")
    parser.add_argument("--buffer", type=int, default=16, help="rows that the loop projects at once (16)")
    parser.add_argument("--data", type=Path, help="a dataset_dir of sft data sets instead of the demonstration's")
    parser.add_argument("--dataset", help="data sets of --data, separated by commas")
    parser.add_argument("--target", help="data set of --data that the rows are compared with")
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    options = parser.parse_args()
    if len({options.data is None, options.dataset is None, options.target is None}) != 1:
        parser.error("--data, --dataset and --target go together")
    preset = common.PRESETS[options.preset]
    rows = options.rows or preset.pool
    with tempfile.TemporaryDirectory(prefix="dataflex-gradients-") as folder:
        work = Path(folder)
        common.settle_environment(work, preset, options.threads)
        import torch

        from dataflex.demo.data import DOMAINS, build_domains, training_texts

        torch.set_num_threads(options.threads)
        sizes = build_domains(work / "demo", rows_per_domain=max(200, -(-rows // len(DOMAINS))), heldout=20)
        common.make_model(work / "model", preset, list(training_texts(work / "demo")))
        names = [name for name in DOMAINS if name in sizes]
        keys = common.run_keys(work, preset, "run") | {
            "finetuning_type": "lora",
            "lora_rank": 8,
            "lora_target": "all",
            "dataset_dir": str(options.data or work / "demo"),
            "dataset": options.dataset or ",".join(names),
            "eval_dataset": options.target or f"{names[0]}_heldout",
            "cutoff_len": CUTOFF,
            "max_steps": WARMUP + 1,
            "max_samples": 2 * rows,
            "disable_gradient_checkpointing": True,
            "dataflex": {"select": {"name": "less", "warmup": WARMUP, "interval": 1}},
        }
        if options.tokens:
            keys["dataflex"]["scoring_tokens"] = options.tokens
        text = run(keys, rows, options.buffer)
        where = common.machine(preset, options.threads)
    source = f" --data DIR --dataset {options.dataset} --target {options.target}" if options.data else ""
    command = (
        f"python benchmarks/gradients.py --preset {options.preset} --rows {rows} --buffer {options.buffer}{source}"
    )
    text = f"`{command}`: {where}. LoRA of rank 8 on all linear layers.\n\n{text}"
    print(f"\n{text}")
    if options.write:
        own = ", own data" if options.data else ""
        common.write_section(f"Gradients ({options.preset}{own}, {options.buffer} rows projected at once)", text)


if __name__ == "__main__":
    main()
