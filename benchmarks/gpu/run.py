"""Step overhead, speed and memory of gradient scoring, and the invariants, in bf16 on one GPU, within a time that is given.

    python benchmarks/gpu/run.py --preset gpu                              # everything, in ten minutes
    python benchmarks/gpu/run.py --preset gpu --only less --minutes 9      # the time for one part
    python benchmarks/gpu/run.py --preset tiny                             # the same on a CPU, with tiny models
    python benchmarks/gpu/run.py --preset gpu --everything --work DIR      # short parts of all; again and again until it is done
    python benchmarks/gpu/run.py --preset gpu --write                      # and put the tables into RESULTS.md beside this file

What there was no time for is in the tables as such. Nothing is downloaded.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import apart
import everything
import invariants
import kept
import less
import overhead
import settings
import shapes
from runner import Command, table

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

    runs: settings.Preset
    shape: str
    scored: tuple[tuple[str, bool], ...]
    compared: tuple[str, ...]
    minutes: float


SETTINGS = {
    "tiny": Setting(
        dataclasses.replace(settings.PRESETS["tiny"], pairs=14), "tiny", (("tiny", True), ("tiny, untied", False)),
        (*OVERHEAD[:2], *OVERHEAD[3:4], *OVERHEAD[6:7], *OVERHEAD[-1:]), 3.0,
    ),
    "gpu": Setting(
        dataclasses.replace(settings.PRESETS["gpu"], cutoff=2048, rows=4, pairs=20), "0.5B",
        (("0.5B", True), ("7B", True), ("0.5B", False), ("1.5B", True), ("1.5B", False), ("7B", False)), OVERHEAD, 8.5,
    ),
}  # fmt: skip


class Parts:
    """The parts, each of which gives its table by the time it is given. Models and data for runs are made when first needed."""

    def __init__(self, setting: Setting, work: Path, threads: int) -> None:
        self.setting, self.work, self.threads = setting, work, threads
        self.device = "cuda" if setting.runs.gpu else "cpu"

    def ready(self) -> None:
        if not (self.work / "model").is_dir():
            apart.call(_make, self.setting, self.work, self.device, log=self.work / "make.log", threads=self.threads)

    def keys(self, place: Any, which: str) -> dict[str, Any]:
        return overhead.keys_of_run(self.work, self.setting.runs, place, which) | {"bf16": True}

    def less(self, until: float) -> str:
        models: list[Any] = []
        sizes, scored = less.SIZES[self.device], self.setting.scored
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
            # one pair each, begun by the one and the other in turn: another pair would cost another two starts of a run
            orders = [bool(place % 2)]
            try:
                keys_of = partial(self.keys, place)
                lines.append(overhead.compare(name, variants[name], keys_of, preset, self.threads, orders))
            except RuntimeError as error:
                print(error, flush=True)
                lines.append([name, *["-"] * 6, "failed", "-", "-"])
            shutil.rmtree(self.work / "runs", ignore_errors=True)  # models that the runs saved at their end
            took = time.time() - begin
            print(*lines[-1], sep=" | ", flush=True)
        return (
            f"Full training of the {self.setting.shape} shape, a step of {preset.rows} rows of {preset.cutoff} tokens,"
            f" {preset.pairs} pairs of steps, in turns; columns as in ../README.md.\n\n" + table(overhead.HEADER, lines)
        )

    def invariants(self, until: float) -> str:
        self.ready()
        lines = invariants.check(partial(self.keys, "invariants"), self.work, self.threads, until)
        return (
            f"Runs of {invariants.STEPS} steps of the {self.setting.shape} shape, scored before step {invariants.SCORED},"
            f" saved after {invariants.SAVED} and killed after {invariants.KILLED}; LoRA with dropout.\n\n"
            + table(invariants.HEADER, lines)
        )


def _everything(command: Command, parts: Parts, until: float) -> int:
    """Measure what --work does not have yet, and print the table of all it has; the exit status."""
    given, folder = command.given, command.given.work.resolve()
    todo = everything.parts_of(parts, everything.SIZES[given.preset])
    card = everything.card(parts.work / "begin.log")  # imports are paid for once
    kept.run(todo, folder, until - time.time(), card)
    text = table(("part", "what", "value", "s", "on"), kept.lines_of(todo, folder))
    left, failed = kept.left_over(todo, folder), kept.failed(todo, folder)
    if left:
        text += f"\n\nLeft: {'; '.join(left)}. The same command goes on with these."
    command.publish(f"Everything ({given.preset})", text, threads=given.threads, gpu=parts.setting.runs.gpu)
    return 1 if failed else 0


def _nothing() -> None:
    return


def _make(setting: Setting, work: Path, device: str) -> None:
    """Model, tokenizer and data sets d0 to d7 of equal rows."""
    from dataflex.demo.data import build_domains, training_texts

    build_domains(work / "demo", rows_per_domain=200, heldout=1)
    texts = list(training_texts(work / "demo"))
    tokenizer = shapes.save(work / "model", shapes.SHAPES[setting.shape], device, texts)
    overhead.make_data(work, tokenizer, texts, setting.runs, least=24)  # selectors take the rows of 20 steps


def main() -> None:
    command = Command(
        __file__, __doc__, SETTINGS, "threads", preset="gpu",
        only={"help": "parts, separated by commas (all)"},
        minutes={"type": float, "help": "time for all parts together (8.5; tiny: 3)"},
        everything={"action": "store_true", "help": "short parts of all there is, kept in --work; the same command goes on"},
        work={"type": Path, "help": "where --everything keeps what is done"},
    )  # fmt: skip
    given, begin, setting = command.given, time.time(), SETTINGS[command.given.preset]
    asked, texts = command.several("only", PARTS), dict[str, str]()
    given.minutes = given.minutes or setting.minutes
    until = begin + 60 * given.minutes
    if given.everything != (given.work is not None):
        command.parser.error("--everything and --work go together")
    work = Path(tempfile.mkdtemp(prefix="dataflex-gpu-"))
    try:
        settings.settle_environment(work, setting.runs, given.threads)
        parts = Parts(setting, work, given.threads)
        if given.everything:
            sys.exit(_everything(command, parts, until))
        apart.call(_nothing, log=work / "begin.log")  # imports are paid for once
        for place, name in enumerate(asked):
            end = time.time() + (until - time.time()) / (len(asked) - place)
            part: Callable[[float], str] = getattr(parts, name)
            try:
                texts[name] = part(end)
            except Exception as error:  # the other parts are worth having all the same
                print(f"{name} failed: {type(error).__name__}: {error}", flush=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"\n{(time.time() - begin) / 60:.1f} minutes")
    note = "".join(f", {name} {version(name)}" for name in ("transformers", "llamafactory", "peft"))
    for name, text in texts.items():
        title, gpu = f"{name.capitalize()} ({given.preset})", setting.runs.gpu
        command.publish(title, text, threads=given.threads, gpu=gpu, note=note, only=name)
    if len(texts) < len(asked):
        sys.exit(1)


if __name__ == "__main__":
    main()
