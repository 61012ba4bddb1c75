"""Runs the grids of this folder, seed after seed, and keeps the tables beside them. Stopped, the same command goes on.

    python benchmarks/evidence/prepare.py --data DIR --model MODEL
    python benchmarks/evidence/evidence.py --jobs 2                       # all grids: many hours on two cores
    python benchmarks/evidence/evidence.py --only selection/arc,reweighting/grid --seeds 1
    python benchmarks/evidence/evidence.py --only reweighting/grid --methods plain,oracle,rho1   # these first
    python benchmarks/evidence/evidence.py --gpu --scale 10 --out runs/evidence-gpu   # after prepare.py --rows 600

Of every grid all methods are trained with the first seed, then with the second, so there are tables early. Each run is what
`dataflex-cli compare` makes of the grid alone. With --scale, steps, warm-ups and intervals are so many times as long, and the
tables stay in OUT.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# In this order: the first tables are of different claims.
GRIDS = (
    "reweighting/grid", "selection/arc", "mixture/short", "composition/grid", "selection/gsm8k", "selection/squad",
    "selection/code", "selection/before", "mixture/long",
)  # fmt: skip
# What the grids of a folder need before them: a command, its configuration, and a file that it writes last.
FIRST = {
    "reweighting": ("train", "reference", "all_results.json"),
    "mixture": ("doremi", "doremi", "proxy/dataflex/proportions.json"),
}
KEPT = ("RESULTS.md", "comparison.json")
OUT = "runs/evidence"  # as the grids have it
SCALED = ("max_steps", "total_steps", "warmup", "interval", "dataflex.select.interval")


@dataclasses.dataclass(frozen=True)
class Setting:
    """How the grids are changed: length of the runs, device, and where everything lies."""

    scale: int = 1
    gpu: bool = False
    out: str = OUT
    methods: tuple[str, ...] = ()  # none: all

    @property
    def as_written(self) -> bool:
        """Whether the runs are those that the grids of this folder name."""
        return self == Setting(methods=self.methods)

    def file(self, name: str) -> Path:
        """The configuration of that name in this folder, changed."""
        given = HERE / f"{name}.yaml"
        keys = yaml.safe_load(given.read_text())
        if self.as_written and not (self.methods and "vary" in keys):
            return given
        changed = ROOT / self.out / "grids" / f"{name}.yaml"
        changed.parent.mkdir(parents=True, exist_ok=True)
        changed.write_text(yaml.safe_dump(self.chosen(self.changed(keys)), sort_keys=False))
        return changed

    def chosen(self, keys: dict[str, Any]) -> dict[str, Any]:
        """The grid with its baseline and the methods that are asked for."""
        if not self.methods or "vary" not in keys:
            return keys
        ((axis, found),) = keys["vary"].items()
        wanted = {*self.methods, *keys["baseline"].values()}
        if unknown := set(self.methods) - set(found):
            sys.exit(f"--methods: {min(unknown)!r} is none of {', '.join(found)}")
        return {**keys, "vary": {axis: {name: value for name, value in found.items() if name in wanted}}}

    def changed(self, found: Any, key: str = "") -> Any:
        if isinstance(found, dict):
            keys = {name: self.changed(value, key if key in SCALED else name) for name, value in found.items()}
            if self.gpu and "use_cpu" in keys:
                keys = {name: value for name, value in keys.items() if name not in ("use_cpu", "flash_attn")}
            return keys
        if isinstance(found, str):
            return self.out + found.removeprefix(OUT) if found.startswith(OUT) else found
        return found * self.scale if key in SCALED and isinstance(found, int) else found


def call(*words: str) -> bool:
    """Whether the command of ours ended well."""
    return subprocess.run([sys.executable, "-m", "dataflex", *words], cwd=ROOT, check=False).returncode == 0


def prepare(grid: str, setting: Setting) -> bool:
    """Train the models that a grid needs, where they are not there."""
    folder = Path(grid).parent
    if folder.name not in FIRST:
        return True
    command, name, last = FIRST[folder.name]
    file = setting.file(str(folder / name))
    done = (ROOT / yaml.safe_load(file.read_text())["output_dir"] / last).is_file()
    again = ("overwrite_output_dir=true",) if command == "train" else ()
    return done or call(command, str(file.relative_to(ROOT)), *again)


def run(grid: str, seeds: int, jobs: int, setting: Setting) -> bool:
    """Train a grid with its first seeds, and copy its tables to the folder of the grid."""
    file = setting.file(grid)
    keys = yaml.safe_load(file.read_text())
    asked = keys["seeds"][:seeds]
    well = prepare(grid, setting) and call(
        "compare", str(file.relative_to(ROOT)), f"seeds={asked}".replace(" ", ""), "--jobs", str(jobs)
    )
    for name in KEPT if setting.as_written else ():
        made, beside = ROOT / keys["output_dir"] / name, HERE / f"{grid}.yaml"
        if made.is_file():
            shutil.copy(made, beside.with_name(name if beside.stem == "grid" else f"{beside.stem}-{name}"))
    return well


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", help="grids, separated by commas (all)")
    parser.add_argument("--methods", help="methods of the grids, separated by commas, beside the baseline (all)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each grid (3)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (1)")
    parser.add_argument("--scale", type=int, default=1, help="how many times as long the runs are (1)")
    parser.add_argument("--gpu", action="store_true", help="train on a GPU")
    parser.add_argument("--out", default=OUT, help=f"where data, models and runs lie ({OUT})")
    given = parser.parse_args()
    methods = tuple(given.methods.split(",")) if given.methods else ()
    setting = Setting(given.scale, given.gpu, given.out, methods)
    grids = given.only.split(",") if given.only else list(GRIDS)
    for unknown in (grid for grid in grids if not (HERE / f"{grid}.yaml").is_file()):
        parser.error(f"--only: {unknown!r} is none of {', '.join(GRIDS)}")
    well = [run(grid, seeds, given.jobs, setting) for seeds in range(1, given.seeds + 1) for grid in grids]
    sys.exit(0 if all(well) else 1)


if __name__ == "__main__":
    main()
