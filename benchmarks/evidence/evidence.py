"""Runs the grids of this folder, seed after seed, and keeps the tables beside them. Stopped, the same command goes on.

    python benchmarks/evidence/prepare.py --data DIR --model MODEL
    python benchmarks/evidence/evidence.py --jobs 2                       # all grids: many hours on two cores
    python benchmarks/evidence/evidence.py --only selection/arc,reweighting/grid --seeds 1

Of every grid all methods are trained with the first seed, then with the second, so there are tables early. Each run is what
`dataflex-cli compare` makes of the grid alone.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# In this order: the first tables are of different claims.
GRIDS = (
    "reweighting/grid", "selection/arc", "mixture/short", "composition/grid", "selection/gsm8k", "selection/squad", "selection/code",
    "selection/before", "mixture/long",
)  # fmt: skip
# What the grids of a folder need before them: a command, its configuration, and a file that it writes last.
FIRST = {
    "reweighting": ("train", "reference", "all_results.json"),
    "mixture": ("doremi", "doremi", "proxy/dataflex/proportions.json"),
}
KEPT = ("RESULTS.md", "comparison.json")


def call(*words: str) -> bool:
    """Whether the command of ours ended well."""
    return subprocess.run([sys.executable, "-m", "dataflex", *words], cwd=ROOT, check=False).returncode == 0


def prepare(grid: str) -> bool:
    """Train the models that a grid needs, where they are not there."""
    folder = Path(grid).parent
    if folder.name not in FIRST:
        return True
    command, name, last = FIRST[folder.name]
    file = HERE / folder / f"{name}.yaml"
    done = (ROOT / yaml.safe_load(file.read_text())["output_dir"] / last).is_file()
    again = ("overwrite_output_dir=true",) if command == "train" else ()
    return done or call(command, str(file.relative_to(ROOT)), *again)


def run(grid: str, seeds: int, jobs: int) -> bool:
    """Train a grid with its first seeds, and copy its tables to the folder of the grid."""
    file = HERE / f"{grid}.yaml"
    keys = yaml.safe_load(file.read_text())
    asked = keys["seeds"][:seeds]
    well = prepare(grid) and call(
        "compare", str(file.relative_to(ROOT)), f"seeds={asked}".replace(" ", ""), "--jobs", str(jobs)
    )
    for name in KEPT:
        made = ROOT / keys["output_dir"] / name
        if made.is_file():
            shutil.copy(made, file.with_name(name if file.stem == "grid" else f"{file.stem}-{name}"))
    return well


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", help="grids, separated by commas (all)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each grid (3)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (1)")
    given = parser.parse_args()
    grids = given.only.split(",") if given.only else list(GRIDS)
    for unknown in (grid for grid in grids if not (HERE / f"{grid}.yaml").is_file()):
        parser.error(f"--only: {unknown!r} is none of {', '.join(GRIDS)}")
    well = [run(grid, seeds, given.jobs) for seeds in range(1, given.seeds + 1) for grid in grids]
    sys.exit(0 if all(well) else 1)


if __name__ == "__main__":
    main()
