"""What runs of a comparison have in common: the steps up to the first selection of any of them, trained once."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
import yaml

from dataflex.comparing.grids.cells import Trial, beside
from dataflex.masking import masked
from dataflex.record.completeness import MARK
from dataflex.record.ledger import DIRECTORY
from dataflex.values import truth

FOLDER = "shared"
_LOG = "trainer_log.jsonl"  # LLaMA-Factory's


@dataclass(frozen=True)
class Beginning:
    """A run that ends at the step at which the first of `trials` selects. The others go on from its checkpoint.

    Args:
        keys: Its configuration.
        step: Optimizer steps that it makes.
    """

    keys: Mapping[str, Any]
    step: int
    trials: tuple[Trial, ...]

    @property
    def name(self) -> str:
        names = ", ".join(trial.cell.name for trial in self.trials)
        return f"first {self.step} steps of {names}, seed {self.trials[0].seed}"

    @property
    def folder(self) -> Path:
        return Path(str(self.keys["output_dir"]))

    @property
    def file(self) -> Path:
        return beside(self.folder, ".yaml")

    @property
    def log(self) -> Path:
        return beside(self.folder, ".log")

    @property
    def checkpoint(self) -> Path:
        return self.folder / f"checkpoint-{self.step}"

    @property
    def done(self) -> bool:
        return (self.checkpoint / DIRECTORY / MARK).is_file()

    def text(self) -> bytes:
        return yaml.safe_dump(masked(dict(self.keys)), sort_keys=False, allow_unicode=True).encode()

    def hand_over(self, trial: Trial) -> None:
        """Let the log of a trial begin with what was logged in these steps."""
        lines = (self.folder / _LOG).read_text(encoding="utf-8").splitlines() if (self.folder / _LOG).is_file() else []
        own = [line for line in lines if json.loads(line).get("current_steps", 0) <= self.step]
        trial.folder.mkdir(parents=True, exist_ok=True)
        (trial.folder / _LOG).write_text("".join(line + "\n" for line in own), encoding="utf-8")


def beginnings(out: Path, trials: Iterable[Trial]) -> list[Beginning]:
    """Those that at least two of the trials have in common."""
    groups: dict[str, list[Trial]] = defaultdict(list)
    for trial in trials:
        keys = trial.config()
        if _may_share(keys) and _first_selection(keys) != 0:
            groups[json.dumps(_without_selector(keys), sort_keys=True, default=str)].append(trial)
    return [found for text, group in groups.items() if (found := _beginning(out, text, group)) is not None]


def _beginning(out: Path, text: str, group: Sequence[Trial]) -> Beginning | None:
    steps = [_first_selection(trial.config()) for trial in group]
    acting = [step for step in steps if step is not None]
    if len(group) < 2 or not acting:
        return None
    first = group[steps.index(min(acting))]
    folder = out / FOLDER / xxhash.xxh3_64_hexdigest(f"{min(acting)} {text}".encode())
    keys = first.config() | {"output_dir": str(folder)}
    keys |= {"save_strategy": "steps", "save_steps": min(acting), "save_only_model": False}
    keys["dataflex"].pop("evaluate", None)  # it ends before there is a model to judge
    return Beginning(keys, min(acting), tuple(group))


def _may_share(keys: Mapping[str, Any]) -> bool:
    """Runs with a plan of their own, which a checkpoint can be gone on with. An order lays its shape over the rows up to the
    first selection, which not all have at one step."""
    block = keys.get("dataflex")
    planned = isinstance(block, Mapping) and (block.get("select") or block.get("mix")) and not block.get("order")
    best = truth(keys.get("load_best_model_at_end"), "load_best_model_at_end")
    return bool(planned) and keys.get("stage") != "rm" and not best and not keys.get("resume_from_checkpoint")


def _without_selector(keys: Mapping[str, Any]) -> dict[str, Any]:
    block = {key: value for key, value in keys["dataflex"].items() if key not in ("select", "evaluate")}
    return {**keys, "dataflex": block, "output_dir": None}


def _first_selection(keys: Mapping[str, Any]) -> int | None:
    """The step before which a run selects first; None: it never does. 0 where the file does not say."""
    select = keys["dataflex"].get("select")
    if not select:
        return None
    given = select.get("warmup") if isinstance(select, Mapping) else None
    return given if isinstance(given, int) and not isinstance(given, bool) else 0


def remove(out: Path) -> None:
    """What runs have shared, once all are done."""
    shutil.rmtree(out / FOLDER, ignore_errors=True)
