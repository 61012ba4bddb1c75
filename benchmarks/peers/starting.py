"""Seconds from the start of a training command to its first step, over LLaMA-Factory's own; and what short commands take.

Both commands come from one environment below --work, in turns, after a start of each that is not counted.

    python benchmarks/peers/starting.py --work DIR --model PATH
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
import settings
from environment import Unavailable, environment
from measuring import interval
from runner import Command, table
from stepping import Stepping
from upstream import BESIDE, ROOT, made

TARGET = 1.05
BLOCKS = {
    "no block": None,
    "select loss": {"select": {"name": "loss", "focus": "medium", "warmup": 2, "interval": 2}},
    "mix odm": {"mix": {"name": "odm", "interval": 2}},
    "weight loss": {"weight": {"name": "loss", "strategy": "linupper"}},
}
# Ends a command, then says on another line whether torch was imported.
_WATCHED = """
import sys
from dataflex.cli import main
try:
    main()
finally:
    print("\\ntorch imported:", "torch" in sys.modules, flush=True)
"""


class Starts:
    """Starts of training commands, each ended before its first step."""

    def __init__(self, python: Path, work: Path, keys: dict[str, Any], processor_time: bool) -> None:
        self.python, self.work, self.keys, self.processor_time = python, work, keys, processor_time

    def file(self, name: str, block: dict[str, Any] | None) -> Path:
        folder = self.work / "runs" / name.replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        keys = self.keys | {"output_dir": str(folder / "run")} | ({} if block is None else {"dataflex": block})
        (folder / "run.yaml").write_text(json.dumps(keys))
        return folder / "run.yaml"

    def seconds(self, module: str, file: Path) -> float:
        env = {"HF_DATASETS_CACHE": str(self.work / "datasets"), "DISABLE_VERSION_CHECK": "1"}
        one = Stepping(self.python, module, ["train", str(file)], file.with_name("log"), env, self.processor_time)
        try:
            return one.seconds()
        finally:
            one.kill()

    def compared(self, rounds: int) -> list[list[str]]:
        plain = self.file("plain", None)
        files = {name: self.file(name, block) for name, block in BLOCKS.items()}
        seconds: dict[str, list[float]] = {name: [] for name in ("plain", *files)}
        for turn in range(rounds + 1):
            order = [("plain", "llamafactory.cli", plain), *((n, "dataflex.cli", f) for n, f in files.items())]
            for name, module, file in order if turn % 2 else order[::-1]:
                seconds[name].append(self.seconds(module, file))
        return [self.line(name, np.array(seconds["plain"][1:]), np.array(seconds[name][1:])) for name in files]

    def line(self, name: str, plain: np.ndarray, other: np.ndarray) -> list[str]:
        ratios = other / plain

        def middle(i: Any) -> float:
            return float(np.median(ratios[i]))

        low, high = interval(middle, len(ratios))
        verdict = "met" if high <= TARGET else "missed" if low > TARGET else "in the noise"
        shown = f"{middle(slice(None)):.3f}", f"{low:.3f} .. {high:.3f}"
        return [name, f"{np.median(plain):.2f}", f"{np.median(other - plain):+.2f}", *shown, f"<= {TARGET}", verdict]


def short(python: Path, arguments: list[str], rounds: int) -> list[str]:
    """A line: seconds of a command, and whether it imports torch."""
    seconds = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        ended = subprocess.run([python, "-c", _WATCHED, *arguments], capture_output=True, text=True, cwd=ROOT)
        seconds.append(time.perf_counter() - begin)
        if ended.returncode:
            raise RuntimeError(f"dataflex-cli {' '.join(arguments)}: {ended.stderr[-2000:]}")
    imported = ended.stdout.rstrip().rsplit(": ", 1)[-1] == "True"
    return [arguments[0], f"{np.median(seconds[1:]):.2f}", "yes" if imported else "no", "missed" if imported else "met"]


def main() -> None:
    command = Command(
        __file__, __doc__, ("tiny", "real"), "work", "model", "processor_time", preset="real",
        rounds={"type": int, "default": 5, "help": "starts of each (5)"},
        template={"default": "chatml", "help": "of the model (chatml)"},
    )  # fmt: skip
    given = command.given
    if given.preset == "real" and given.model is None:
        command.parser.error("--preset real needs --model")
    work = given.work.resolve()
    try:
        python = environment(work / "dataflex", [*BESIDE, "--editable", str(ROOT)])
    except Unavailable as why:
        sys.exit(f"skipped: no environment can be made here: {why}")
    settings.settle_environment(work, settings.PRESETS["tiny"], 1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    used = made(work, given)
    keys = {
        "model_name_or_path": str(given.model or used.model), "dataset_dir": str(used.data), "dataset": used.dataset,
        "stage": "sft", "do_train": True, "finetuning_type": "lora", "template": used.template, "cutoff_len": 256,
        "max_steps": 8, "per_device_train_batch_size": 2, "learning_rate": 1e-4, "seed": 0, "overwrite_output_dir": True,
        "save_strategy": "no", "report_to": "none", "use_cpu": True, "bf16": False, "dataloader_pin_memory": False,
    }  # fmt: skip
    starts = Starts(python, work, keys, given.processor_time)
    lines = starts.compared(given.rounds)
    plan = str(starts.file("weight loss", BLOCKS["weight loss"]))
    quick = [short(python, arguments, 3) for arguments in (["--help"], ["list"], ["plan", plan])]
    text = "\n\n".join(
        [
            table(("block", "plain s", "more s", "ratio", "90% interval", "target", "verdict"), lines),
            table(("command", "s", "torch imported", "verdict"), quick),
        ]
    )
    note = ", training commands in processor time" if given.processor_time else ""
    command.publish(f"Start ({given.preset})", text, threads=1, note=note)


if __name__ == "__main__":
    main()
