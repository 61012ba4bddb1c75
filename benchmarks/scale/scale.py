"""What grows with the size of a pool and the length of a run, and what does not.

python benchmarks/scale/scale.py                    # all parts, pools of up to 10^8 rows
python benchmarks/scale/scale.py --only plan,resume
python benchmarks/scale/scale.py --preset tiny      # whether the script works
python benchmarks/scale/scale.py --write            # and put the tables into RESULTS.md beside this file
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import common
import pools
import runs

RESULTS = Path(__file__).with_name("RESULTS.md")
# Powers of ten of rows; steps at which runs are resumed, and stages of a ledger; rows scored.
PRESETS = {
    "tiny": (5, (5, 10), (10, 100), 40),
    "cpu": (8, (10, 100, 1000), (10, 1000, 100_000), 200),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--preset", choices=PRESETS, default="cpu", help="sizes (cpu)")
    parser.add_argument("--only", default="plan,rows,decisions,resume,scoring", help="parts, separated by commas (all)")
    parser.add_argument("--write", action="store_true", help="put the tables into RESULTS.md beside this file")
    options = parser.parse_args()
    largest, steps, ledgers, rows = PRESETS[options.preset]
    model = common.PRESETS[options.preset]
    parts: dict[str, Callable[[], str]] = {
        "plan": lambda: pools.plans(largest),
        "rows": lambda: pools.reading(largest),
        "decisions": lambda: pools.deciding(largest),
        "resume": lambda: runs.resuming(steps, ledgers),
        "scoring": lambda: runs.scoring(model, rows),
    }
    asked = options.only.split(",")
    if unknown := [name for name in asked if name not in parts]:
        parser.error(f"--only: there is no part {unknown[0]!r}; choose from {', '.join(parts)}")
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in asked:
        command = f"python benchmarks/scale/scale.py --preset {options.preset} --only {name}"
        text = f"`{command}`: {common.machine(model, 1)}.\n\n{parts[name]()}"
        print(f"\n{text}", flush=True)
        if options.write:
            common.write_section(f"{name.capitalize()} ({options.preset})", text, RESULTS)


if __name__ == "__main__":
    main()
