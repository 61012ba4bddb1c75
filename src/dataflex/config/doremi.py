"""The configuration of `doremi`: one file that stands for the three runs of the method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataflex.config.files import CONFIG_SUFFIXES, read_file
from dataflex.config.load import parse
from dataflex.config.schema import DoremiKeys, RunConfig, own_keys
from dataflex.config.schema.keys import DOREMI_STEPS
from dataflex.errors import ConfigError, Mistakes, nearest

STEPS = DOREMI_STEPS
_SAMPLING = ("proportions", "initial")


@dataclass(frozen=True)
class DoremiConfig:
    """output_dir: the runs are folders of it, named by step. steps: those to run, in order. runs: the keys of each step as a
    configuration of `train`; the final one lacks its proportions. reference: the reference model, as the proxy names it."""

    output_dir: Path
    steps: tuple[str, ...]
    runs: Mapping[str, dict[str, Any]]
    reference: str

    def final(self, proportions: Sequence[float] | Mapping[str, float]) -> dict[str, Any]:
        return _with_mix(self.runs["final"], {"name": "static", "proportions": proportions})

    def checked(self) -> list[RunConfig]:
        """The runs as far as they can be checked beforehand: with the mixer of the reference, whose model is not there yet."""
        mix = self.runs["reference"]["dataflex"]["mix"]
        mistakes, runs = Mistakes(), []
        with mistakes.noting():
            parse(self.runs["proxy"])
        for step in STEPS:
            with mistakes.noting():
                runs.append(parse(_with_mix(self.runs[step], mix)))
        mistakes.settle()
        return runs


def load_doremi(arguments: Sequence[str]) -> DoremiConfig:
    """arguments: `<file> [key=value ...]`. ConfigError for anything that one of the runs would refuse."""
    if not arguments or not arguments[0].endswith(CONFIG_SUFFIXES):
        raise ConfigError(
            f"doremi reads a {', '.join(CONFIG_SUFFIXES)} file, got {arguments[0] if arguments else 'none'!r}"
        )
    raw = read_file(Path(arguments[0]), list(arguments[1:]))
    block = raw.pop("dataflex", None) or {}
    if not isinstance(block, Mapping):
        raise ConfigError(f"dataflex must be a block of keys, got {block!r}")
    block = dict(block)
    own = block.pop("doremi", None) or {}
    if not isinstance(own, Mapping):
        raise ConfigError(f"dataflex.doremi must be a block of keys, got {own!r}")
    known = own_keys(DoremiKeys)
    unknown = [key for key in own if key not in known]
    if unknown:
        raise ConfigError(f"dataflex.doremi.{unknown[0]}: unknown key{nearest(str(unknown[0]), known)}")
    extra = [slot for slot in ("select", "weight", "order", "offline") if block.get(slot) is not None]
    if extra:
        raise ConfigError(f"dataflex.{extra[0]} cannot be part of doremi; train with the proportions it finds instead")
    mix = block.pop("mix", None) or {}
    if not isinstance(mix, str | Mapping):
        raise ConfigError(f"dataflex.mix must be a block with a name, got {mix!r}")
    mix = {"name": mix} if isinstance(mix, str) else dict(mix)
    if mix.setdefault("name", "doremi") != "doremi":
        raise ConfigError(f"dataflex.mix.name: doremi trains its proxy with the mixer doremi, got {mix['name']!r}")
    if not raw.get("output_dir"):
        raise ConfigError("output_dir is required: the runs are folders of it")
    out = Path(str(raw["output_dir"]))
    domains = block.get("domains")
    if isinstance(domains, Mapping) and domains.get("by") == "cluster":  # the three runs share them
        block["domains"] = {"path": str(out / "clusters.parquet"), **domains}
    given = mix.get("reference_model_path")
    steps = _steps(own.get("steps"), given)
    reference = str(given or out / "reference")
    mixers = {
        "reference": {"name": "static", **{k: v for k, v in mix.items() if k in _SAMPLING}},
        "proxy": {**mix, "reference_model_path": reference},
        "final": {"name": "static"},
    }
    runs = {}
    for step in STEPS:
        changes = own.get(step) or {}
        if not isinstance(changes, Mapping) or "dataflex" in changes or "output_dir" in changes:
            raise ConfigError(
                f"dataflex.doremi.{step} must be a block of LLaMA-Factory's keys for that run, got {changes!r}"
            )
        inherited = dict(block)
        if step != "final":  # the models before it are means, and are not judged
            inherited.pop("evaluate", None)
        if {"total_steps", "max_steps", "num_train_epochs"} & set(changes):
            inherited.pop("total_steps", None)
        if "total_steps" in changes:
            inherited["total_steps"] = changes["total_steps"]
        keys = {**raw, **{k: v for k, v in changes.items() if k != "total_steps"}, "output_dir": str(out / step)}
        runs[step] = {**keys, "do_train": True, "dataflex": {**inherited, "mix": mixers[step]}}
    return DoremiConfig(out, steps, runs, reference)


def _steps(asked: Any, reference: Any) -> tuple[str, ...]:
    if asked is None:
        return STEPS if reference is None else STEPS[1:]
    if not isinstance(asked, str | list):
        raise ConfigError(f"dataflex.doremi.steps must be a list of steps, got {asked!r}")
    names = [n.strip() for n in asked.split(",")] if isinstance(asked, str) else asked
    for name in names:
        if name not in STEPS:
            raise ConfigError(f"dataflex.doremi.steps: unknown step {name!r}{nearest(str(name), STEPS)}")
    if not names:
        raise ConfigError(f"dataflex.doremi.steps names no step; choose from {', '.join(STEPS)}")
    if "reference" in names and reference is not None:
        raise ConfigError(
            "dataflex.mix.reference_model_path is given, so there is no reference to train in doremi.steps"
        )
    return tuple(step for step in STEPS if step in names)


def _with_mix(run: dict[str, Any], mix: Mapping[str, Any]) -> dict[str, Any]:
    return {**run, "dataflex": {**run["dataflex"], "mix": dict(mix)}}
