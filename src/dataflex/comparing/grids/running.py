"""Runs the trials of a comparison: each an ordinary `train` of a written file, skipped where it is done."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

from dataflex.base.processes import progress
from dataflex.base.processes.side_by_side import Command, run_side_by_side
from dataflex.comparing.grids import beginnings
from dataflex.comparing.grids.beginnings import Beginning
from dataflex.comparing.grids.cells import Trial
from dataflex.errors import ConfigError
from dataflex.masking import to_environment
from dataflex.notices import say
from dataflex.record.completeness import newest_complete
from dataflex.record.ledger import DIRECTORY
from dataflex.record.sharing import BRANCHES, SIGNALS, STOPS_AT
from dataflex.version import __version__
from dataflex.writing import write_atomically

RECORD = "runs.json"
_ERROR = "dataflex: error: "
_GPUS = "CUDA_VISIBLE_DEVICES"
_START_OVER = ["overwrite_output_dir=true"]


class Runs:
    """The trials below one output directory, with a record of those that are done."""

    def __init__(self, out: Path, jobs: int, gpus: int | None = None, *, share: bool = False) -> None:
        """gpus: of each run; None: all that are visible. share: whether runs have steps and measured values in common."""
        self.out, self.jobs, self.share = out, jobs, share
        self.places = places(jobs, gpus, visible_gpus() if jobs > 1 or gpus is not None else ())

    def run(self, trials: Sequence[Trial]) -> list[Trial]:
        """Run those that are not done; the trials that have failed. A failed one is said in a line, and the others go on."""
        done = self.done(trials)
        left = [trial for trial in trials if trial not in done]
        if len(left) < len(trials):
            say(f"{len(trials) - len(left)} of {len(trials)} runs are done")
        by_name = {trial.name: trial for trial in left}
        failed: list[Trial] = []
        began: dict[str, float] = {}
        starts = self._begin(left)

        def commands() -> Any:
            for trial in left:
                began[trial.name] = time.monotonic()
                say(f"{trial.name}: {trial.file}")
                yield self._command(trial, starts.get(trial.name))

        def ended(command: Command, status: int) -> None:
            trial = by_name[command.name]
            if status == 0:
                self._note(trial, trials)
                seconds = time.monotonic() - began[trial.name]
                say(f"{trial.name}: done in {seconds:.0f} s ({len(self.done(trials))} of {len(trials)} runs are done)")
                return
            failed.append(trial)
            say(f"{trial.name}: failed with status {status}: {last_line(trial.log)} ({trial.log})")

        run_side_by_side(commands(), self.jobs, ended, lambda slot: self.places[slot])
        if self.share and not failed:
            beginnings.remove(self.out)
        return failed

    def _begin(self, trials: Sequence[Trial]) -> dict[str, Beginning]:
        """Train what several trials begin with; by the names of these trials. One with a checkpoint of its own, or whose
        beginning has failed, has none."""
        fresh = [trial for trial in trials if self.share and _starts_over(trial)]
        found = beginnings.beginnings(self.out, fresh)

        def commands() -> Iterator[Command]:
            for one in found:
                if not one.done:
                    say(f"{one.name}: {one.file}")
                    write_atomically(one.file, one.text())
                    stops = {STOPS_AT: str(one.step)}
                    words = ("train", str(one.file), "overwrite_output_dir=true")
                    yield Command(one.name, words, one.log, {**to_environment(one.keys), **stops, **self._sharing()})

        def ended(command: Command, status: int) -> None:
            if status:
                say(f"{command.name}: failed with status {status}: {last_line(command.log)} ({command.log})")

        run_side_by_side(commands(), self.jobs, ended, lambda slot: self.places[slot])
        return {trial.name: one for one in found if one.done for trial in one.trials}

    def _sharing(self) -> dict[str, str]:
        """The environment of runs that share what they measure."""
        return {SIGNALS: str((self.out / beginnings.FOLDER / "signals").absolute())} if self.share else {}

    def done(self, trials: Sequence[Trial]) -> list[Trial]:
        """Those that have finished with the same configuration."""
        record = self._read()
        return [t for t in trials if t.folder.is_dir() and record.get(self._key(t), {}).get("digest") == digest(t)]

    def _command(self, trial: Trial, beginning: Beginning | None) -> Command:
        write_atomically(trial.file, trial.text())
        keys = trial.config()
        env = {**to_environment(keys), progress.GOES_ON: "1", **self._sharing()}
        if beginning is not None:
            beginning.hand_over(trial)
            begin, env = [f"resume_from_checkpoint={json.dumps(str(beginning.checkpoint))}"], env | {BRANCHES: "1"}
        else:
            begin = _where_to_begin(trial.folder, str(keys.get("stage")))
        return Command(trial.name, ("train", str(trial.file), *begin), trial.log, env)

    def _key(self, trial: Trial) -> str:
        return str(trial.folder.relative_to(self.out))

    def _read(self) -> dict[str, Any]:
        file = self.out / RECORD
        try:
            found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            return dict(found)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"output_dir: {file} cannot be read ({error}); remove it to run all again") from None

    def _note(self, trial: Trial, order: Sequence[Trial]) -> None:
        """order: of the record, which `compare` reads. Side by side, runs end in any order."""
        found = self._read() | {self._key(trial): {"digest": digest(trial), "dataflex": __version__}}
        first = [key for one in order if (key := self._key(one)) in found]
        record = {key: found[key] for key in dict.fromkeys([*first, *found])}
        write_atomically(self.out / RECORD, json.dumps(record, indent=1).encode())


def digest(trial: Trial) -> str:
    """Of the configuration; a secret that has changed makes no other run."""
    return xxhash.xxh3_64_hexdigest(trial.text())


def _starts_over(trial: Trial) -> bool:
    """Whether a trial has no checkpoint to go on from."""
    return _where_to_begin(trial.folder, str(trial.config().get("stage"))) == _START_OVER


def _where_to_begin(folder: Path, stage: str) -> list[str]:
    """Keys that have a trial go on from its newest whole checkpoint, or start over where there is none."""
    if stage == "rm":  # LLaMA-Factory cannot resume a reward model
        return _START_OVER
    if any(folder.glob(f"checkpoint-*/{DIRECTORY}")):
        try:
            return [] if newest_complete(folder)[0] is not None else _START_OVER
        except ConfigError:  # checkpoints that nothing can go on from, such as those of a model alone
            return _START_OVER
    # A run without a block. LLaMA-Factory would take the last checkpoint, whole or not; its trainer_state.json is written last.
    whole = {path.parent.name: path.parent for path in folder.glob("checkpoint-*/trainer_state.json")}
    steps = [int(name.removeprefix("checkpoint-")) for name in whole if name.removeprefix("checkpoint-").isdigit()]
    if not steps:
        return _START_OVER
    return [f"resume_from_checkpoint={json.dumps(str(whole[f'checkpoint-{max(steps)}']))}"]


def last_line(log: Path) -> str:
    """What a failed run said of its end: its error, or else its last line."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    errors = [line.removeprefix(_ERROR) for line in lines if line.startswith(_ERROR)]
    return (errors or [line.strip() for line in lines if line.strip()] or ["it printed nothing"])[-1]


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that a run started here would take, as CUDA_VISIBLE_DEVICES names them."""
    given = os.environ.get(_GPUS)
    if given is not None:
        return tuple(name.strip() for name in given.split(",") if name.strip())
    import torch

    return tuple(map(str, range(torch.cuda.device_count())))


def places(jobs: int, gpus: int | None, visible: Sequence[str]) -> list[Mapping[str, str]]:
    """The environment of each of `jobs` places. A run takes as many ranks as it sees GPUs, and its global batch grows with them,
    so the number of GPUs of a run never follows from `jobs`. ConfigError where there are too few."""
    if gpus is None and len(visible) <= 1:
        return [{}] * jobs  # they share what there is
    if gpus is None:
        raise ConfigError(
            f"--jobs: {len(visible)} GPUs are visible, and every run would take all of them; say --gpus, the GPUs of a run"
        )
    if jobs * gpus > len(visible):
        raise ConfigError(
            f"--gpus: {jobs} runs with {gpus} GPUs each need {jobs * gpus}, and {len(visible)} are visible"
        )
    return [{_GPUS: ",".join(visible[j * gpus : (j + 1) * gpus])} for j in range(jobs)]
