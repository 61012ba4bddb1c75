"""How long `report` takes, and how large its page is, for a run of 10^5 steps, 20 domains and 200 selections of 10^6 rows.

The files are written as a run writes them, but one selection stands for all 200 (hard links), and losses are random.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from dataflex.plan.plan import Domains
from dataflex.record.exposure import Exposure
from dataflex.record.ledger import RunFiles
from dataflex.record.selection_file import SelectionRecord
from dataflex.writing import write_table

BATCH = 8


def write_run(folder: Path, steps: int, domains: int, selections: int, rows: int, every: int) -> None:
    """every: steps from one line of the log to the next."""
    rng = np.random.default_rng(0)
    names = tuple(f"domain-{d}" for d in range(domains))
    data = Domains(names, (rows // domains,) * domains)
    files = RunFiles(folder, data, writes=True)
    files.start(
        {
            "dataflex": {"select": {"name": "loss"}, "mix": {"name": "odm"}},
            "domains": {n: {"rows": rows // domains} for n in names},
        }
    )
    stage = {"unit": "samples", "proportions": [1 / domains] * domains}
    files.record({"step": 0, "component": "start", "decided": {}, "seconds": 0.0, "stage": stage})
    chosen = [np.sort(rng.choice(data.total, data.total // 10, replace=False))]
    record = SelectionRecord(
        data, chosen, rng.normal(size=data.total), tokens=rng.integers(1, 900, data.total).astype(np.int32)
    )
    first, interval = None, steps // selections
    for number in range(selections):
        step = number * interval
        path = files.path / f"selections/step_{step}.parquet"
        if first is None:
            files.write_selection(step, record)
            first = path
        else:
            os.link(first, path)
        decided = {"file": f"selections/step_{step}.parquet", "overlap": 0.5 if number else None}
        files.record({"step": step, "component": "select:loss", "decided": decided, "seconds": 1.0, "stage": stage})
    with (folder / "trainer_log.jsonl").open("w") as log:
        for step in range(every, steps + 1, every):
            shares = rng.dirichlet(np.ones(domains))
            line = {"current_steps": step, "total_steps": steps, "loss": float(rng.normal()), "elapsed_time": "1:00:00"}
            for name, share in zip(names, shares, strict=True):
                line |= {
                    f"dataflex/realized/{name}": share,
                    f"dataflex/loss/{name}": float(rng.normal()),
                    f"dataflex/epochs/{name}": 1.0,
                }
            log.write(json.dumps(line) + "\n")
    exposure = Exposure(data)
    ids = rng.integers(0, data.total, steps * BATCH)
    losses, weights = np.zeros(len(ids), dtype=np.float32), np.full(len(ids), np.nan, dtype=np.float32)
    exposure.merge(ids, losses, weights, np.arange(len(ids)) // BATCH)
    write_table(files.path / "exposure.parquet", exposure.table())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="a folder for the run, which is removed afterwards")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--domains", type=int, default=20)
    parser.add_argument("--selections", type=int, default=200)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--every", type=int, default=10, help="steps from one line of the log to the next (10)")
    options = parser.parse_args()
    run = options.work / "run"
    shutil.rmtree(run, ignore_errors=True)
    write_run(run, options.steps, options.domains, options.selections, options.rows, options.every)
    inodes = {file.stat().st_ino: file.stat().st_size for file in run.rglob("*") if file.is_file()}
    print(
        f"{options.steps:,} steps, {options.domains} domains, {options.selections} selections of {options.rows:,} rows"
    )
    print(f"files: {sum(inodes.values()) / 1e6:.0f} MB (a selection counts once)")
    page = options.work / "report.html"
    for name, more in (("tables", []), ("page", ["--html", str(page)])):
        begin, before = time.perf_counter(), os.times()
        subprocess.run(
            [sys.executable, "-m", "dataflex", "report", str(run), *more], check=True, stdout=subprocess.DEVNULL
        )
        after = os.times()
        spent = after.children_user + after.children_system - before.children_user - before.children_system
        print(f"{name}: {time.perf_counter() - begin:.1f} s, of which {spent:.1f} s of the processor")
    print(f"page: {page.stat().st_size / 1e6:.1f} MB")
    shutil.rmtree(run)


if __name__ == "__main__":
    main()
