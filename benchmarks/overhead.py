"""Step time of each dynamic run over the same run of LLaMA-Factory alone, at equal steps, rows and row lengths.

Two trainers, each in its own process and both the real thing, take turns: one optimizer step of the plain run, one of
the other, and so on, so that what else the machine does hits both. Ratios are of neighbouring steps.

    python benchmarks/overhead.py                # --preset tiny for a quick look, --preset gpu on a GPU
    python benchmarks/overhead.py --write        # and put the tables into RESULTS.md
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import multiprocessing.connection
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import numpy as np

SKIPPED = 10  # first steps of a run: memory pools, thread pools, lazy imports
DOMAINS = 7
LAYER, RUNNING = 1.02, 1.03

_CONTEXT = multiprocessing.get_context("forkserver")
_PRELOAD = (
    "datasets.formatting.torch_formatter",
    "llamafactory.train.tuner",
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.qwen2.tokenization_qwen2",
    "transformers.trainer_seq2seq",
    "dataflex.base.data",
    "dataflex.base.train",
    "dataflex.trainer",
)


@dataclass(frozen=True)
class Variant:
    """block: what stands under `dataflex` (None: nothing, the plain run once more). target: of the median ratio."""

    block: dict[str, Any] | None
    accumulation: int = 1
    target: float | None = None


def variants() -> dict[str, Variant]:
    weight = {"name": "loss", "strategy": "linupper"}
    every_20 = {"name": "loss", "focus": "medium", "interval": 20}
    odm = {"name": "odm", "interval": 10}
    return {
        "plain again (the noise)": Variant(None),
        "mix static (the layer)": Variant({"mix": {"name": "static"}}, target=LAYER),
        "select random (the layer)": Variant({"select": {"name": "random", "interval": 10}}, target=LAYER),
        "weight loss": Variant({"weight": weight}, target=RUNNING),
        "weight loss, running, 4 micro-batches": Variant({"weight": {**weight, "scope": "running"}}, 4, RUNNING),
        "weight loss, global, 4 micro-batches": Variant({"weight": {**weight, "scope": "global"}}, 4),
        "mix odm": Variant({"mix": odm}),
        "select loss": Variant({"select": every_20}),
        "select loss, mix odm, weight loss": Variant({"select": every_20, "mix": odm, "weight": weight}),
    }


# -- one trainer, in its own process -----------------------------------------------------------------------------------


def child(config: dict[str, Any], log: str, threads: int, mine: Any, other: Any, ready: Any, answer: Any) -> None:
    """Train from `config` and send what `_Clock` saw through `answer`; the turn is taken by the semaphore `mine`."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    import torch

    torch.set_num_threads(threads)
    clock = _Clock(mine, other, ready)
    clock.attach()
    if "dataflex" in config:
        from dataflex.base.train import train
        from dataflex.config import parse

        train(parse(config))
    else:
        from llamafactory.train.tuner import run_exp

        run_exp(args=config)
    answer.send(clock.seen())


class _Clock:
    """Seconds from the end of one optimizer step to the end of the next, the waiting for the other trainer left out.

    A step so holds everything between: logging, decisions, loading, forward, backward, optimizer. Time in scoring passes
    and in decisions is kept as well, per step.
    """

    def __init__(self, mine: Any, other: Any, ready: Any) -> None:
        self.mine, self.other, self.ready = mine, other, ready
        self.begin = 0.0
        self.steps: list[float] = []
        self.shapes: set[tuple[int, ...]] = set()
        self.spent = {"scoring": [0.0], "deciding": [0.0]}

    def attach(self) -> None:
        from transformers import Trainer
        from transformers.trainer_callback import CallbackHandler

        from dataflex.trainer import core

        begin, end, track = CallbackHandler.on_train_begin, CallbackHandler.on_step_end, Trainer._track_num_input_tokens

        def on_train_begin(handler: Any, *args: Any, **kwargs: Any) -> Any:
            control = begin(handler, *args, **kwargs)
            self.ready.wait()
            self.take_turn()
            return control

        def on_step_end(handler: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            control = end(handler, args, state, control, **kwargs)
            self.end_turn(last=state.global_step >= state.max_steps)
            return control

        def track_tokens(trainer: Any, inputs: Any) -> None:
            self.shapes.add(tuple(inputs["input_ids"].shape))
            track(trainer, inputs)

        CallbackHandler.on_train_begin = on_train_begin
        CallbackHandler.on_step_end = on_step_end
        Trainer._track_num_input_tokens = track_tokens
        core.pool_losses = self.timed("scoring", core.pool_losses)
        core.DynamicTrainer._decide = self.timed("deciding", core.DynamicTrainer._decide)

    def timed(self, name: str, stock: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            begin = self.now()
            try:
                return stock(*args, **kwargs)
            finally:
                self.spent[name][-1] += self.now() - begin

        return wrapped

    @staticmethod
    def now() -> float:
        """The time when all that was asked of the device is done."""
        import torch

        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter()

    def take_turn(self) -> None:
        self.mine.acquire()
        self.begin = self.now()

    def end_turn(self, last: bool) -> None:
        self.steps.append(self.now() - self.begin)
        for values in self.spent.values():
            values.append(0.0)
        self.other.release()
        self.mine.acquire() if not last else self.leave()
        self.begin = self.now()

    def leave(self) -> None:
        """After the last step: what is written then must not run beside the other's last step."""
        self.ready.wait()

    def seen(self) -> dict[str, Any]:
        count = len(self.steps)
        spent = {name: values[:count] for name, values in self.spent.items()}
        return {"steps": self.steps, "shapes": sorted(self.shapes), **spent}


def run_pair(plain: dict[str, Any], other: dict[str, Any], threads: int) -> list[dict[str, Any]]:
    """Both runs in turns; what each one's clock saw. RuntimeError with the end of the log if one of them fails."""
    turns = [_CONTEXT.Semaphore(1), _CONTEXT.Semaphore(0)]
    ready = _CONTEXT.Barrier(2)
    processes, answers, logs = [], [], []
    for place, config in enumerate((plain, other)):
        receive, send = _CONTEXT.Pipe(duplex=False)
        logs.append(Path(f"{config['output_dir']}.log"))
        logs[-1].parent.mkdir(parents=True, exist_ok=True)
        arguments = (config, str(logs[-1]), threads, turns[place], turns[1 - place], ready, send)
        processes.append(_CONTEXT.Process(target=child, args=arguments))
        processes[-1].start()
        send.close()
        answers.append(receive)
    try:
        return [_receive(answer, processes, logs) for answer in answers]
    finally:
        for process in processes:
            process.join(10)
            process.kill()


def _receive(answer: Any, processes: list[Any], logs: list[Path]) -> dict[str, Any]:
    pending = [p.sentinel for p in processes]
    while not answer.poll():
        ended = multiprocessing.connection.wait([answer, *pending])
        pending = [s for s in pending if s not in ended]
        for process, log in zip(processes, logs, strict=True):
            if process.exitcode not in (None, 0):
                raise RuntimeError(f"a run failed:\n{log.read_text(errors='replace')[-3000:]}")
    return answer.recv()


# -- what is reported --------------------------------------------------------------------------------------------------


def compare(name: str, variant: Variant, plain: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """One line of the table."""
    if plain["shapes"] != other["shapes"] or len(plain["shapes"]) != 1:
        raise RuntimeError(f"{name}: micro-batches of {plain['shapes']} and {other['shapes']} cannot be compared")
    a = np.array(plain["steps"])[SKIPPED:]
    scoring, deciding = (np.array(other[key])[SKIPPED:] for key in ("scoring", "deciding"))
    b = np.array(other["steps"])[SKIPPED:] - scoring
    ratios = b / a
    ratio = float(np.median(ratios))
    low, high = common.interval(lambda i: float(np.median(ratios[i])), len(ratios))
    decisions = (deciding - scoring)[deciding > 0]
    verdict = "-"
    if variant.target is not None:
        verdict = "met" if high <= variant.target else "missed" if low > variant.target else "in the noise"
    return [
        name,
        f"{1000 * np.median(a):.1f}",
        f"{1000 * np.median(b - a):+.2f}",
        f"{ratio:.3f}",
        f"{low:.3f} .. {high:.3f}",
        f"{b.sum() / a.sum():.3f}",
        "-" if variant.target is None else f"<= {variant.target:.2f}",
        verdict,
        f"{1000 * decisions.mean():.1f}" if len(decisions) else "-",
        f"{scoring[scoring > 0].mean():.2f}" if scoring.any() else "-",
    ]


_HEADER = (
    "run", "plain ms", "more ms", "ratio", "90% interval", "of totals", "target", "verdict", "decision ms", "scoring s",
)  # fmt: skip


def plan_cost() -> str:
    """Microseconds of `Plan.rows` for one global batch, consecutive batches of a stage of seven domains."""
    from dataflex.trainer.plan import Domains, Plan

    lines = []
    for size in (10_000, 10_000_000):
        plan = Plan(Domains(tuple("abcdefg"), (size,) * DOMAINS), seed=0)
        plan.append(0, plan.domain_pools(), [0.3, 0.2, 0.15, 0.12, 0.1, 0.08, 0.05])
        line = [f"{size:,}"]
        for batch in (8, 512):
            plan.rows(0, batch)
            times = []
            for step in range(1, 501):
                begin = time.perf_counter()
                plan.rows(step * batch, (step + 1) * batch)
                times.append(time.perf_counter() - begin)
            line.append(f"{1e6 * np.median(times):.0f}")
        lines.append(line)
    return common.table((f"rows in each of {DOMAINS} domains", "batch of 8, us", "batch of 512, us"), lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--preset", choices=common.PRESETS, default="cpu", help="size of the model and of a step (cpu)")
    parser.add_argument("--pairs", type=int, help="pairs of steps compared per run (of the preset)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each trainer (2)")
    parser.add_argument("--only", default="", help="measure the runs whose name contains this")
    parser.add_argument("--write", action="store_true", help="put the tables into RESULTS.md")
    options = parser.parse_args()
    preset = common.PRESETS[options.preset]
    pairs = options.pairs or preset.pairs
    asked = {name: variant for name, variant in variants().items() if options.only in name}
    if not asked:
        parser.error(f"--only: no run has {options.only!r} in its name")
    with tempfile.TemporaryDirectory(prefix="dataflex-overhead-") as folder:
        work = Path(folder)
        common.settle_environment(work, preset, options.threads)
        _CONTEXT.set_forkserver_preload(list(_PRELOAD))
        from dataflex.demo.data import build_domains, training_texts

        build_domains(work / "demo", rows_per_domain=200, heldout=1)
        texts = list(training_texts(work / "demo"))
        tokenizer = common.make_model(work / "model", preset, texts)
        steps = SKIPPED + pairs
        common.write_equal_rows(work / "data", tokenizer, texts, DOMAINS, steps * preset.rows, preset.cutoff)
        lines = []
        for place, (name, variant) in enumerate(asked.items()):
            keys = {
                "dataset": ",".join(json.loads((work / "data" / "dataset_info.json").read_text())),
                "max_steps": steps,
                "per_device_train_batch_size": preset.rows // variant.accumulation,
                "gradient_accumulation_steps": variant.accumulation,
            }
            plain = {**common.run_keys(work, preset, f"{place}-plain"), **keys}
            other = {**common.run_keys(work, preset, f"{place}-other"), **keys}
            if variant.block is not None:
                other["dataflex"] = variant.block
            lines.append(compare(name, variant, *run_pair(plain, other, options.threads)))
            print(f"{name}: {lines[-1][3]} ({lines[-1][4]})", flush=True)
    text = (
        f"`python benchmarks/overhead.py --preset {options.preset} --pairs {pairs}`: {common.machine(preset, options.threads)}."
        f" A step is {preset.rows} rows of {preset.cutoff} tokens; each line is {pairs} pairs of steps.\n\n"
        f"{common.table(_HEADER, lines)}\n\nThe plan alone, per optimizer step:\n\n{plan_cost()}"
    )
    print(f"\n{text}")
    if options.write:
        common.write_section(f"Overhead of a step ({options.preset})", text)


if __name__ == "__main__":
    main()
