"""`doremi`: reference, proxy and final training of DoReMi (arXiv 2305.10429, section 2), each a run of `train` of its own."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import xxhash
import yaml

from dataflex.base.checks.arguments import check_arguments
from dataflex.base.checks.reference_model import check_reference
from dataflex.base.processes import children, progress
from dataflex.components.tools.proportions import in_order, read_proportions
from dataflex.config.doremi import DoremiConfig
from dataflex.deciding.mixing import PROPORTIONS
from dataflex.errors import ConfigError, Mistakes
from dataflex.locking import alone_in
from dataflex.masking import masked, to_environment
from dataflex.notices import say
from dataflex.record.completeness import newest_complete
from dataflex.values import truth
from dataflex.values.domains import data_sets
from dataflex.writing import write_atomically

_RECORD = "doremi.json"


def doremi(config: DoremiConfig) -> int:
    """Run the steps that are not done yet; the exit status of the first that fails, else 0.

    Every run is a process of its own, so two models are never in memory together. What is done is noted in doremi.json with a
    hash of the step's configuration; a step that was cut off goes on from its newest checkpoint.
    """
    mistakes = Mistakes()
    for run in config.checked():
        with mistakes.noting():
            check_arguments(run)
    mistakes.settle()
    if "reference" not in config.steps and "proxy" in config.steps:
        own = config.reference == str(config.output_dir / "reference")
        if own and not Path(config.reference).is_dir():
            raise ConfigError(
                f"dataflex.doremi.steps: there is no reference in {config.reference}; add the step reference"
            )
        check_reference(
            config.reference, str(config.runs["proxy"].get("model_name_or_path")), "dataflex.mix.reference_model_path"
        )
    found = config.output_dir / "proxy" / "dataflex" / PROPORTIONS
    if config.steps == ("final",) and not found.is_file():
        raise ConfigError(f"dataflex.doremi.steps: there is no {found}, which the step proxy writes; add it")
    with alone_in(config.output_dir):
        return _run_all(config, found)


def _run_all(config: DoremiConfig, found: Path) -> int:
    for step in config.steps:
        keys = config.runs[step]
        if step == "final":
            keys = config.final(_proportions(found, keys))
        status = _run(config.output_dir, step, keys)
        if status != 0:
            return status
    return 0


def _proportions(file: Path, keys: dict[str, Any]) -> list[float] | dict[str, float]:
    """In the order of `dataset`; by name where domains may be something else."""
    found = read_proportions(str(file), str(file))
    if keys["dataflex"].get("domains"):
        return dict(found)
    return list(in_order(str(file), found, data_sets(keys) or ()))


def _run(out: Path, step: str, keys: dict[str, Any]) -> int:
    record, file = out / _RECORD, out / f"{step}.yaml"
    done = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    digest, with_secrets = _digest(masked(keys)), _digest(keys)
    if done.get(step) in (digest, with_secrets):  # a new token is no new configuration
        say(f"{step}: done before")
        return 0
    if done.pop(step, None) is not None:
        say(f"{step}: its configuration has changed since it was done; it is run again")
        keys = {**keys, "overwrite_output_dir": True}
    write_atomically(file, _text(masked(keys)))
    folder = Path(keys["output_dir"])
    overwrites = truth(keys.get("overwrite_output_dir"), "overwrite_output_dir")
    fresh = overwrites or newest_complete(folder)[0] is None
    anew = ["overwrite_output_dir=true"] if fresh else []
    say(f"{step}: {file}")
    env = to_environment(keys) | children.parent_is(os.getpid())
    if not overwrites:
        env[progress.GOES_ON] = "1"
    status = children.run(["-m", "dataflex", "train", str(file), *anew], env)
    if status == 0:
        write_atomically(record, json.dumps({**done, step: digest}, indent=1).encode())
    return status


def _text(keys: dict[str, Any]) -> bytes:
    return yaml.safe_dump(keys, sort_keys=False).encode()


def _digest(keys: dict[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(_text(keys))
