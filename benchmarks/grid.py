"""Grids of runs, each in a process of its own and each finished one a file: the same command goes on where it was stopped."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import apart
from measuring import spread
from runner import Command
from settings import PRESETS, Preset, settle_environment

Job = dict[str, Any]  # everything that decides what a run does: method, seed, gpu, threads, cutoff, batch, ...
Result = dict[str, Any]  # job, and what came out
OPTIONS = ("data", "work", "seeds", "processes", "report")


class Grid:
    """run: makes the result of a job in a process of its own, of the job, the folder --data and the file to be written.
    ended: what to say of a result. work: instead of --work. The command has the OPTIONS."""

    def __init__(
        self,
        command: Command,
        run: Callable[[Job, Path, Path], None],
        ended: Callable[[Result], str],
        work: Path | None = None,
    ) -> None:
        self.command, self.given, self._run, self._ended = command, command.given, run, ended
        self.gpu = self.given.preset == "gpu"
        self.threads = 8 if self.gpu else 1
        self.processes = self.given.processes or (1 if self.gpu else 2)
        self.work: Path = work or self.given.work
        self.work.mkdir(parents=True, exist_ok=True)

    def settings(self, preset: Job, method: str, seed: int, *options: str) -> Job:
        """What the jobs of all grids hold: the sizes of a preset, with those of `options` that were given in their place."""
        given = {name: getattr(self.given, name) for name in options}
        job = dict(preset, method=method, seed=seed, gpu=self.gpu, threads=self.threads)
        return job | {name: value for name, value in given.items() if value is not None}

    def jobs(self, methods: Collection[str], job_of: Callable[[str, int], Job]) -> list[Job]:
        return [job_of(method, seed) for seed in range(self.given.seeds) for method in methods]

    def run(self, jobs: Iterable[Job]) -> list[Result]:
        """The results of those that have not failed."""
        os.environ.update(OMP_NUM_THREADS=str(self.threads), OPENBLAS_NUM_THREADS=str(self.threads))
        with ThreadPoolExecutor(self.processes) as pool:
            return [found for found in pool.map(self._result, jobs) if found is not None]

    def publish(
        self, title: str, body: Callable[[list[Result]], str], found: list[Result], expected: int, note: str = ""
    ) -> None:
        """The tables of what has finished. Status 1 if there is none, or if a run of so many expected ones has failed."""
        if not found:
            print(f"no run has finished in {self.work}")
            sys.exit(1)
        missing = expected - len(found)
        notes = f"; {self.processes} runs at a time"
        notes += f", {missing} of {expected} runs missing" if missing else ""
        self.command.publish(title, body(found), threads=self.threads, gpu=self.gpu, note=notes + note)
        if missing and not self.given.report:
            sys.exit(1)

    @property
    def clock(self) -> str:
        """What the seconds of `settings.train_timed` are."""
        return f"; seconds are {'by the clock' if self.gpu else 'processor time'}"

    def _result(self, job: Job) -> Result | None:
        """The result of a run, made now unless it is there; None, with the end of its log, if it failed."""
        file = file_of(self.work, job)
        name = f"{job['method']}, seed {job['seed']}"
        if not file.is_file():
            if self.given.report:
                return None
            begin = time.perf_counter()
            context = multiprocessing.get_context("spawn")
            process = context.Process(target=self._run, args=(job, self.given.data, file), daemon=True)
            process.start()
            process.join()
            if process.exitcode != 0 or not file.is_file():
                log = file.with_suffix(".log")
                print(f"{name} failed ({log}):\n{apart.end_of(log)}", file=sys.stderr, flush=True)
                return None
            said = self._ended(json.loads(file.read_text(encoding="utf-8")))
            print(f"{name}: {said}, {time.perf_counter() - begin:.0f} s in all", flush=True)
        return json.loads(file.read_text(encoding="utf-8"))


def file_of(work: Path, job: Job) -> Path:
    """Where the result of a run is kept: under everything that decides what it does."""
    digest = hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()[:10]
    return work / f"{job['method'].replace(', ', '-')}.seed{job['seed']}.{digest}.json"


# -- one run -----------------------------------------------------------------------------------------------------------


def begin_run(job: Job, result: Path) -> tuple[Path, Preset]:
    """At the start of a run, in a process of its own, which from now on ends with the one that started it and prints to a log
    beside `result`: an empty folder, and the preset with the sizes of the job."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    scratch = result.with_suffix(".running")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    apart.print_to(result.with_suffix(".log"))
    preset = replace(PRESETS["gpu" if job["gpu"] else "cpu"], cutoff=job["cutoff"], rows=job["batch"])
    settle_environment(scratch, preset, job["threads"])
    import torch

    torch.set_num_threads(job["threads"])
    return scratch, preset


def end_run(record: Result, result: Path) -> None:
    """Write what came out, last of all, and clean up."""
    part = result.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1), encoding="utf-8")
    part.replace(result)
    shutil.rmtree(result.with_suffix(".running"))
    result.with_suffix(".log").unlink()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


# -- results -----------------------------------------------------------------------------------------------------------


def by_method(found: Sequence[Result], order: Iterable[str]) -> dict[str, dict[int, Result]]:
    """method -> seed -> result, of the methods that have any."""
    out = {method: {f["job"]["seed"]: f for f in found if f["job"]["method"] == method} for method in order}
    return {method: runs for method, runs in out.items() if runs}


def over(runs: dict[int, Result], base: dict[int, Result], value: Callable[[Result], float]) -> str:
    """By how much a value is above that of the baseline with the same seed; "-" for the baseline itself."""
    both = [seed for seed in runs if seed in base]
    return "-" if runs is base or not both else spread([value(runs[s]) - value(base[s]) for s in both], "+")


def seeds_of(found: Sequence[Result]) -> str:
    return ", ".join(map(str, sorted({f["job"]["seed"] for f in found})))
