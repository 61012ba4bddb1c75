"""What grows with the size of a pool and the length of a run, and what does not.

python benchmarks/scale/scale.py                    # all parts, pools of up to 10^8 rows
python benchmarks/scale/scale.py --only plan,resume
python benchmarks/scale/scale.py --preset tiny      # whether the script works
python benchmarks/scale/scale.py --write            # and put the tables into RESULTS.md beside this file
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import domains
import pools
import runs
import settings
from runner import Command

# Powers of ten of rows; steps at which runs are resumed, and stages of a ledger; rows scored.
PRESETS = {
    "tiny": (5, (5, 10), (10, 100), 40),
    "cpu": (8, (10, 100, 1000), (10, 1000, 100_000), 200),
}


def divided(largest: int) -> str:
    with tempfile.TemporaryDirectory(prefix="dataflex-scale-") as folder:
        return domains.finding(largest, folder)


def main() -> None:
    command = Command(__file__, __doc__, PRESETS, only={"help": "parts, separated by commas (all)"})
    preset = command.given.preset
    largest, steps, ledgers, rows = PRESETS[preset]
    parts: dict[str, Callable[[], str]] = {
        "plan": lambda: pools.plans(largest),
        "rows": lambda: pools.reading(largest),
        "decisions": lambda: pools.deciding(largest),
        "resume": lambda: runs.resuming(steps, ledgers),
        "domains": lambda: divided(largest),
        "scoring": lambda: runs.scoring(settings.PRESETS[preset], rows),
    }
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in command.several("only", parts):
        command.publish(f"{name.capitalize()} ({preset})", parts[name](), threads=1, only=name)


if __name__ == "__main__":
    main()
