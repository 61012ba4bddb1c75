"""Cells of a grid, and their trials: one training of a cell with one seed."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dataflex.masking import masked
from dataflex.values import number, truth
from dataflex.values.nested import flat

_UNSAFE = re.compile(r"[^\w.+=-]+")


@dataclass(frozen=True)
class Cell:
    """One combination of variants."""

    name: str
    """As the table prints it."""
    choices: Mapping[str, str]
    """The name of the variant of each axis."""
    keys: Mapping[str, Any]
    """The configuration, without seed and output_dir."""

    @property
    def folder(self) -> str:
        return _UNSAFE.sub("_", self.name).strip("_")


@dataclass(frozen=True)
class Trial:
    """One training of a cell with one seed.

    Args:
        steps: Its optimizer steps; None: those of the file.
        counts_tokens: Whether the training counts the tokens that it reads.
    """

    cell: Cell
    seed: int
    out: Path
    steps: int | None = None
    counts_tokens: bool = False

    @property
    def name(self) -> str:
        return f"{self.cell.name}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        steps = "" if self.steps is None else f"_steps-{self.steps}"
        return self.out / self.cell.folder / f"seed-{self.seed}{steps}"

    @property
    def file(self) -> Path:
        """The configuration that `train` is given."""
        return beside(self.folder, ".yaml")

    @property
    def log(self) -> Path:
        """What the training prints."""
        return beside(self.folder, ".log")

    def config(self) -> dict[str, Any]:
        """The keys of the training. With held-out rows it evaluates at its end."""
        keys = copy.deepcopy(dict(self.cell.keys)) | {"seed": self.seed, "output_dir": str(self.folder)}
        if holds_out(keys) and keys.get("do_eval") is None:
            keys["do_eval"] = True
        if self.counts_tokens:
            # The attention mask of neat packing numbers the rows of a pack, so its sum is no count.
            numbered = truth(keys.get("neat_packing"), "neat_packing")
            keys["include_num_input_tokens_seen"] = "all" if numbered else "non_padding"
        if self.steps is not None:
            keys["max_steps"] = self.steps
            if isinstance(keys.get("dataflex"), dict) and "total_steps" in keys["dataflex"]:
                keys["dataflex"]["total_steps"] = self.steps
            if "train_step" in keys:  # the spelling of 1.1.0
                keys["train_step"] = self.steps
        return keys

    def text(self) -> bytes:
        """What is written to `file`: secrets are masked."""
        return yaml.safe_dump(masked(self.config()), sort_keys=False, allow_unicode=True).encode()


def beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(folder.name + suffix)


def holds_out(keys: Mapping[str, Any]) -> bool:
    """Whether LLaMA-Factory has rows to evaluate on."""
    return bool(keys.get("eval_dataset")) or number(keys.get("val_size") or 0, "val_size") > 0


def settings_that_differ(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By the name of a configuration, the keys whose values are not the same in all, by path; those it lacks are left out."""
    found = {name: flat(keys) for name, keys in configs.items()}
    names = dict.fromkeys(key for own in found.values() for key in own)
    differ = [key for key in names if len({str(own[key]) if key in own else None for own in found.values()}) > 1]
    return {name: {key: own[key] for key in differ if key in own} for name, own in found.items()}
