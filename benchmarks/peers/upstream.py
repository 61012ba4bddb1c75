"""The same files given to dataflex 1.1.0 and to this version: seconds of selections and of ordinary steps, side by side.

Each is installed into an environment of its own below --work, with the same torch and LLaMA-Factory. Both train from one file
written for 1.1.0, in turns: a step of the one, a step of the other. So what else the machine does hits both.

    python benchmarks/peers/upstream.py --work DIR --preset tiny      # made on the spot
    python benchmarks/peers/upstream.py --work DIR --model PATH --data DIR2 --dataset a,b --target c
    python benchmarks/peers/upstream.py ... --only less --write       # and put the table into RESULTS.md beside this file
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
import settings
from environment import Unavailable, environment
from measuring import interval
from runner import Command, table
from stepping import Stepping, TooLong

ROOT = Path(__file__).resolve().parents[2]
VERSION = "1.1.0"
BESIDE = ("llamafactory", "torch", "torchvision", "torchaudio", "transformers", "traker")
HEADER = ("what", f"{VERSION} s", "dataflex s", "times as fast", "90% interval", "target", "verdict")


@dataclass(frozen=True)
class Case:
    """A run. keys: of its file. rows: of each data set. updates: decisions after `warmup` steps, `every` so many. target: of the
    decision's ratio."""

    title: str
    family: str
    component: str
    params: dict[str, Any]
    rows: int
    target: float
    keys: dict[str, Any]
    warmup: int = 3
    every: int = 3
    updates: int = 1
    aims: bool = False

    @property
    def steps(self) -> int:
        return self.warmup + self.every * self.updates


_LORA = {"finetuning_type": "lora", "lora_rank": 16, "lora_target": "all"}


def cases(rows: int, sets: int) -> dict[str, Case]:
    """By name. rows: of the pool that losses are measured of; LESS gets 16, which take 1.1.0 minutes. sets: data sets."""
    odm = {"alpha": 0.9, "warmup_steps": 1, "reward_scale": 15.0, "min_exploration_rate": 0.03}
    return {
        "less": Case(
            f"LESS, LoRA 16, projection to 4096, 16 rows, {-(-16 // sets)} of the target", "select", "less",
            {"gradient_type": "adam", "proj_dim": 4096, "seed": 123, "save_interval": 16}, 16, 10.0, _LORA, aims=True,
        ),
        "loss": Case(
            f"selection by loss, {rows} rows", "select", "loss", {"focus": "medium", "score_batch_size": 8}, rows, 3.0,
            _LORA, updates=3,
        ),
        "odm": Case("ODM", "mix", "odm", odm, 64, 1.0, _LORA, every=2, updates=8),
        "weight": Case("weighting by loss", "weight", "loss", {"strategy": "linupper", "delta": 1.0}, 64, 1.0, _LORA, 3, 16),
    }  # fmt: skip


_BUCKETS = {"select": "selectors", "mix": "mixers", "weight": "weighters"}


class Pair:
    """Both versions train from the file of a case."""

    def __init__(self, case: Case, work: Path, given: Any, pythons: Sequence[Path]) -> None:
        self.case = case
        self.sides: list[Stepping] = []
        names = given.dataset.split(",")
        for name, python in zip((VERSION, "dataflex"), pythons):
            folder = work / "runs" / f"{case.family}-{case.component}" / name
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            params = case.params | ({"cache_dir": str(folder / "cache")} if case.family == "select" else {})
            presets = {case.component: {"name": case.component, "params": params}}
            (folder / "components.yaml").write_text(json.dumps({_BUCKETS[case.family]: presets}))
            keys = {
                "model_name_or_path": str(given.model), "dataset_dir": str(given.data), "dataset": given.dataset,
                "stage": "sft", "do_train": True, "template": given.template, "cutoff_len": given.tokens,
                "max_samples": -(-case.rows // (1 if case.family == "mix" else len(names))),
                "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "learning_rate": 1e-4, "seed": 0,
                "output_dir": str(folder / "run"), "overwrite_output_dir": True, "logging_steps": 1, "save_strategy": "no",
                "report_to": "none", "use_cpu": True, "bf16": False, "dataloader_pin_memory": False,
                "train_type": f"dynamic_{case.family}", "component_name": case.component,
                "components_cfg_file": str(folder / "components.yaml"), "warmup_step": case.warmup,
                "update_step": case.every, "update_times": case.updates, "train_step": case.steps, **case.keys,
            }  # fmt: skip
            if case.family == "weight":  # 1.1.0 ignores train_step there
                keys["max_steps"] = case.steps
            if case.family == "mix":
                keys |= {"mixture_sample_rule": "mixture", "init_mixture_proportions": [1 / len(names)] * len(names)}
            if case.aims:
                keys["eval_dataset"] = given.target
            (folder / "run.yaml").write_text(json.dumps(keys))
            env = {"HF_DATASETS_CACHE": str(folder / "datasets"), "DISABLE_VERSION_CHECK": "1", "PYTHONSAFEPATH": "1"}
            arguments = ["train", str(folder / "run.yaml")]
            self.sides.append(Stepping(python, "dataflex.cli", arguments, folder / "log", env, given.processor_time))

    def measured(self, limit: float) -> Measured:
        """limit: seconds that 1.1.0 is given for a step. If it takes longer, the run ends once this version has made it too."""
        seconds: list[list[float]] = [[], []]
        over = False
        try:
            starts = [side.seconds() for side in self.sides]
            for step in range(self.case.steps):
                for side in (0, 1) if step % 2 else (1, 0):
                    try:
                        seconds[side].append(self.sides[side].step(None if side else limit))
                    except TooLong as error:
                        seconds[side].append(error.seconds)
                        over = True
                if over:
                    break
        finally:
            for side in self.sides:
                side.kill()  # the model at the end is of no use
        return Measured(starts, np.array(seconds), over)


@dataclass(frozen=True)
class Measured:
    """Seconds from the start of each version to its first step, and of their steps [2, steps]. over: 1.1.0 was not done with
    the last one."""

    starts: Sequence[float]
    seconds: np.ndarray
    over: bool


def lines_of(case: Case, found: Measured) -> list[list[str]]:
    """Of the table. A decision is what its step took beyond an ordinary one."""
    seconds = found.seconds
    steps = np.arange(seconds.shape[1])
    decides = (steps >= case.warmup) & ((steps - case.warmup) % case.every == 0) & (case.family != "weight")
    ordinary = seconds[:, ~decides & (steps > 0)]  # the first step makes memory pools
    usual = np.median(ordinary, axis=1, keepdims=True)
    lines = [line("ordinary step", ordinary, 1.0)]
    if case.family == "mix":  # what the mixer does is part of all steps
        lines = [line("all steps", seconds[:, 1:], 1.0)]
    elif case.family == "select":
        lines.insert(0, line("decision", np.maximum(seconds[:, decides] - usual, 1e-3), case.target, found.over))
    lines.append(line("start to first step", np.array([[s] for s in found.starts]), 1.0))
    return [[f"{case.title}: {name}", *rest] for name, *rest in lines]


def line(name: str, seconds: np.ndarray, target: float, over: bool = False) -> list[str]:
    """seconds: [2, n] of 1.1.0 and this version. over: those of 1.1.0 are what it had taken when it was ended."""
    ratios = seconds[0] / seconds[1]

    def middle(i: Any) -> float:
        return float(np.median(ratios[i]))

    low, high = interval(middle, ratios.size)
    verdict = "met" if low >= target else "missed" if high < target and not over else "in the noise"
    within = f"{low:.2f} .. {high:.2f}" if ratios.size > 1 else "one each"
    more = "> " if over else ""
    old, new = (f"{np.median(s):.3g}" for s in seconds)
    return [name, more + old, new, f"{more}{middle(slice(None)):.2f}", within, f">= {target:g}", verdict]


def made(work: Path, given: Any) -> Any:
    """`given`, with a model and data made on the spot."""
    preset = settings.PRESETS["tiny"]
    names, _, _ = settings.demonstration(work, preset, heldout=16)
    own = {"model": work / "model", "data": work / "demo", "template": "qwen", "dataset": ",".join(names[:2])}
    return Namespace(**vars(given) | own | {"target": f"{names[0]}_heldout", "tokens": preset.cutoff})


def main() -> None:
    command = Command(
        __file__, __doc__, ("tiny", "real"), "work", "model", "processor_time", preset="real",
        data={"type": Path, "help": "a dataset_dir of sft data sets"},
        dataset={"help": "data sets of --data, separated by commas"},
        target={"help": "data set of --data that LESS aims at"},
        template={"default": "chatml", "help": "of the model (chatml)"},
        tokens={"type": int, "default": 256, "help": "tokens of a row at most (256)"},
        rows={"type": int, "default": 96, "help": "rows that losses are measured of (96)"},
        limit={"type": float, "default": 10.0, "help": "minutes that 1.1.0 is given for a step (10)"},
        only={"help": "less, loss, odm, weight, separated by commas (all)"},
    )  # fmt: skip
    given = command.given
    known = cases(given.rows, len((given.dataset or "a,b").split(",")))
    asked = command.several("only", known)
    if given.preset == "real" and None in (given.model, given.data, given.dataset, given.target):
        command.parser.error("--preset real needs --model, --data, --dataset and --target")
    work = given.work.resolve()
    try:
        pythons = [
            environment(work / f"dataflex-{VERSION}", BESIDE, [f"dataflex=={VERSION}"]),
            environment(work / "dataflex", [*BESIDE, "--editable", str(ROOT)]),
        ]
    except Unavailable as why:
        sys.exit(f"skipped: dataflex {VERSION} cannot be had here: {why}")
    settings.settle_environment(work, settings.PRESETS["tiny"], 1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    used = made(work, given) if given.preset == "tiny" else given
    for name in asked:
        case = known[name]
        if given.preset == "tiny" and case.component == "less":
            case.params["proj_dim"] = 512
        found = Pair(case, work, used, pythons).measured(60 * given.limit)
        text = table(HEADER, lines_of(case, found))
        if found.over:
            text += f"\n\n{VERSION} was ended in its decision after {given.limit:g} minutes."
        command.publish(
            f"dataflex {VERSION}: {name} ({given.preset})",
            text,
            threads=1,
            note=", seconds of processor time" if given.processor_time else "",
            only=name,
        )


if __name__ == "__main__":
    main()
