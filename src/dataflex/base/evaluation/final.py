"""The final model of a training, evaluated by a command of its own once the training is over."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from dataflex.base.processes import children
from dataflex.config import SET_BY_EVALUATE, RunConfig
from dataflex.masking import masked, to_environment
from dataflex.notices import say
from dataflex.values import words
from dataflex.writing import write_atomically

FILE = Path("dataflex") / "evaluate.yaml"
# Of one machine: the final model is there, and the others may be gone.
_ONE_NODE = {"NNODES": "1", "NODE_RANK": "0", "MASTER_PORT": "", "USE_RAY": "0"}


def evaluate_final(config: RunConfig) -> int:
    """Exit status of `evaluate` on the model in output_dir. Its configuration is written to `dataflex/evaluate.yaml` there.

    A process of its own: it loads the model as any later evaluation does, so both have the same figures, and the memory of
    the training is free again. Of several machines the first evaluates.
    """
    if os.environ.get("NODE_RANK", "0") != "0":
        return 0
    keys = final_keys(config)
    file = Path(str(keys["output_dir"])) / FILE
    write_atomically(file, yaml.safe_dump(masked(keys), sort_keys=False).encode())
    say(f"evaluate: {file}")
    env = to_environment(keys) | children.parent_is(os.getpid()) | _ONE_NODE
    return children.run(["-m", "dataflex", "evaluate", str(file)], env)


def final_keys(config: RunConfig) -> dict[str, Any]:
    """The keys of a training, changed so that they name the model that it saves."""
    assert config.evaluate is not None
    keys = {key: value for key, value in config.llamafactory.items() if key not in (*SET_BY_EVALUATE, *_OF_TRAINING)}
    if keys.get("finetuning_type", "lora") == "lora":
        keys["adapter_name_or_path"] = ",".join([*_below(config.llamafactory), str(keys["output_dir"])])
    else:
        keys["model_name_or_path"] = str(keys["output_dir"])
    return {**keys, "evaluate": _written(config.evaluate)}


# What splits a model for training, or changes one that is loaded.
_OF_TRAINING = (
    "deepspeed",
    "fsdp",
    "fsdp_config",
    "overwrite_output_dir",
    "create_new_adapter",
    "pissa_init",
    "pissa_convert",
)


def _below(keys: Mapping[str, Any]) -> list[str]:
    """Adapters that the new one is on top of. Without `create_new_adapter` the last one is trained on, and saved anew."""
    given = words(keys.get("adapter_name_or_path"))
    return given if keys.get("create_new_adapter") else given[:-1]


def _written(block: Any) -> Any:
    """The block as a user writes it: without keys at their defaults."""
    if isinstance(block, tuple | list):
        return [_written(entry) for entry in block]
    if not is_dataclass(block):
        return block
    given = {own.name: getattr(block, own.name) for own in fields(block) if own.name != "path"}
    defaults = {own.name: own.default for own in fields(block)}
    return {name: _written(value) for name, value in given.items() if value != defaults[name]}
