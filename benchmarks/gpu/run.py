"""Step overhead, speed and memory of gradient scoring, and the invariants, in bf16 on one GPU, within a time that is given.

    python benchmarks/gpu/run.py --preset gpu                              # everything, in ten minutes
    python benchmarks/gpu/run.py --preset gpu --only less --minutes 9      # the time for one part
    python benchmarks/gpu/run.py --preset tiny                             # the same on a CPU, with tiny models
    python benchmarks/gpu/run.py --preset gpu --write                      # and put the tables into RESULTS.md beside this file

What there was no time for is in the tables as such. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import apart
import common
import invariants
import less
import overhead
import shapes
import turns

RESULTS = Path(__file__).with_name("RESULTS.md")
PARTS = ("less", "overhead", "invariants")
# In this order, as far as the time goes.
OVERHEAD = (
    "plain again (the noise)", "mix static (the layer)", "select loss", "select less", "weight loss",
    "weight loss, running, 4 micro-batches", "weight loss, global, 4 micro-batches", "mix odm", "weight focal",
    "weight adapt", "select random (the layer)", "select loss, mix odm, weight loss",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Setting:
    """runs: rows and tokens of a step of the runs, and steps compared. shape: of their model. scored: models whose gradients
    are measured, and whether with LoRA, in this order. compared: runs of overhead.py."""

    runs: common.Preset
    shape: str
    scored: tuple[tuple[str, bool], ...]
    compared: tuple[str, ...]
    gpu: bool
    minutes: float


SETTINGS = {
    "tiny": Setting(
        dataclasses.replace(common.PRESETS["tiny"], pairs=14), "tiny", (("tiny", True), ("tiny, untied", False)),
        (*OVERHEAD[:2], *OVERHEAD[3:4], *OVERHEAD[6:7], *OVERHEAD[-1:]), False, 3.0,
    ),
    "gpu": Setting(
        dataclasses.replace(common.PRESETS["gpu"], cutoff=2048, rows=4, pairs=20), "0.5B",
        (("0.5B", True), ("7B", True), ("0.5B", False), ("1.5B", True), ("1.5B", False), ("7B", False)), OVERHEAD, True, 8.5,
    ),
}  # fmt: skip


class Parts:
    """The parts, each of which gives its table by the time it is given. Models and data for runs are made when first needed."""

    def __init__(self, setting: Setting, work: Path, threads: int) -> None:
        self.setting, self.work, self.threads = setting, work, threads
        self.device = "cuda" if setting.gpu else "cpu"

    def ready(self) -> None:
        if (self.work / "model").is_dir():
            return
        apart.call(_make, self.setting, self.work, self.device, log=self.work / "make.log", threads=self.threads)

    def keys(self, name: str) -> dict[str, Any]:
        return common.run_keys(self.work, self.setting.runs, name) | {
            "dataset": ",".join(f"d{i}" for i in range(overhead.DOMAINS)),
            "bf16": True,
        }

    def less(self, until: float) -> str:
        models: list[Any] = []
        sizes, scored = less.budget_of(self.setting.gpu), self.setting.scored
        for place, (shape, lora) in enumerate(scored):
            now = time.time()
            if now > until:
                models.append((less.name_of(shape, lora, sizes), {less.PLAIN: less.Found(why="no time left")}))
                continue
            end = now + (until - now) / (len(scored) - place)
            log = self.work / f"less-{place}.log"
            models += apart.call(less.measure, shape, lora, sizes, self.device, end, log=log, threads=self.threads)
            print(f"{models[-1][0]}:", *(f"{one.rate:.0f}" for one in models[-1][1].values()), "tokens/s", flush=True)
        return (
            f"Rows of {sizes.shortest} to {sizes.longest} tokens, batches of at most {sizes.budget} (7B: half); {sizes.targets}"
            " target rows; LoRA on the attention. *Exact*: inner products with the target; *projected*: features of both."
            f" *Loop*: a backward pass per row; its projection is dense, by random signs, {less.TOGETHER} rows at once.\n\n"
            + less.tables(models)
        )

    def overhead(self, until: float) -> str:
        self.ready()
        preset, took, lines = self.setting.runs, 0.0, []
        variants = overhead.variants(self.work / "model")
        for place, name in enumerate(self.setting.compared):
            begin = time.time()
            if begin + took > until:
                lines.append([name, *["-"] * 6, "not run: no time left", "-", "-"])
                continue
            variant = variants[name]
            keys = {
                "max_steps": overhead.SKIPPED + preset.pairs,
                "per_device_train_batch_size": preset.rows // variant.accumulation,
                "gradient_accumulation_steps": variant.accumulation,
            }
            plain, other = ({**self.keys(f"{place}-{which}"), **keys} for which in ("plain", "other"))
            if variant.block is not None:
                other["dataflex"] = variant.block
            # one pair each, begun by the one and the other in turn: another pair would cost another two starts of a run
            first, second = (plain, other) if place % 2 else (other, plain)
            try:
                seen = turns.run_pair(first, second, self.threads, processor_time=False)
                lines.append(overhead.compare(name, variant, [tuple(seen) if place % 2 else (seen[1], seen[0])]))
            except RuntimeError as error:
                print(error, flush=True)
                lines.append([name, *["-"] * 6, "failed", "-", "-"])
            shutil.rmtree(self.work / "runs", ignore_errors=True)  # models that the runs saved at their end
            took = time.time() - begin
            _say(lines[-1:])
        return (
            f"Full training of the {self.setting.shape} shape, a step of {preset.rows} rows of {preset.cutoff} tokens,"
            f" {preset.pairs} pairs of steps, in turns; columns as in ../README.md.\n\n"
            + common.table(overhead.HEADER, lines)
        )

    def invariants(self, until: float) -> str:
        self.ready()
        lines = invariants.check(self.keys, self.work, self.threads, until)
        return (
            f"Runs of {invariants.STEPS} steps of the {self.setting.shape} shape, scored before step {invariants.SCORED},"
            f" saved after {invariants.SAVED} and killed after {invariants.KILLED}; LoRA with dropout.\n\n"
            + common.table(invariants.HEADER, lines)
        )


def _nothing() -> None:
    return


def _make(setting: Setting, work: Path, device: str) -> None:
    """Model, tokenizer and data sets d0 to d7 of equal rows."""
    from dataflex.demo.data import build_domains, training_texts

    build_domains(work / "demo", rows_per_domain=200, heldout=1)
    texts = list(training_texts(work / "demo"))
    tokenizer = shapes.save(work / "model", shapes.SHAPES[setting.shape], device, texts)
    steps = max(overhead.SKIPPED + setting.runs.pairs, 24)  # selectors take the rows of 20 steps
    rows = -(-steps * setting.runs.rows // overhead.DOMAINS)
    count = rows * (overhead.DOMAINS + 1)
    common.write_equal_rows(work / "data", tokenizer, texts, overhead.DOMAINS + 1, count, setting.runs.cutoff)


def _say(lines: list[list[str]]) -> None:
    for line in lines:
        print(*line, sep=" | ", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--preset", choices=SETTINGS, default="gpu", help="sizes and device (gpu)")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas (all)")
    parser.add_argument("--minutes", type=float, help="time for all parts together (8.5; tiny: 3)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each process (2)")
    parser.add_argument("--write", action="store_true", help="put the tables into RESULTS.md beside this file")
    options = parser.parse_args()
    begin, setting = time.time(), SETTINGS[options.preset]
    asked = options.only.split(",")
    if unknown := [name for name in asked if name not in PARTS]:
        parser.error(f"--only: there is no part {unknown[0]!r}; choose from {', '.join(PARTS)}")
    until, texts = begin + 60 * (options.minutes or setting.minutes), {}
    work = Path(tempfile.mkdtemp(prefix="dataflex-gpu-"))
    try:
        common.settle_environment(work, setting.runs, options.threads)
        parts = Parts(setting, work, options.threads)
        apart.call(_nothing, log=work / "begin.log")  # imports are paid for once
        for place, name in enumerate(asked):
            end = time.time() + (until - time.time()) / (len(asked) - place)
            part: Callable[[float], str] = getattr(parts, name)
            try:
                texts[name] = part(end)
            except Exception as error:  # the other parts are worth having all the same
                texts[name] = f"failed: {type(error).__name__}: {error}"
                print(texts[name], flush=True)
        command = (
            f"python benchmarks/gpu/run.py --preset {options.preset} --minutes {options.minutes or setting.minutes:g}"
        )
        where = common.machine(setting.runs, options.threads)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"\n{(time.time() - begin) / 60:.1f} minutes; {where}, {_versions()}")
    for name, text in texts.items():
        print(f"\n## {name}\n\n{text}", flush=True)
        if options.write and not text.startswith("failed"):
            title = f"{name.capitalize()} ({options.preset})"
            common.write_section(title, f"`{command} --only {name}`: {where}, {_versions()}.\n\n{text}", RESULTS)
    if any(text.startswith("failed") for text in texts.values()):
        sys.exit(1)


def _versions() -> str:
    from importlib.metadata import version

    return ", ".join(f"{name} {version(name)}" for name in ("transformers", "llamafactory", "peft"))


if __name__ == "__main__":
    main()
