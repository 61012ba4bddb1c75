"""The JSON schema of a configuration file, for editors and checks."""

from __future__ import annotations

from dataclasses import fields
from typing import get_type_hints

from dataflex.base.checks.arguments import key_classes
from dataflex.compat.flat import FLAT_KEYS
from dataflex.config.json_schema import Command, Json, block_schema, evaluate_schema
from dataflex.config.llamafactory.json_types import key_schema

_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_FLAT: Json = {"description": "a key of dataflex 1.1.0; see docs/migration.md"}


def schema(command: Command = "train") -> Json:
    """JSON schema, draft 2020-12, of the whole file that a command reads."""
    keys = _llamafactory_keys()
    step: Json = {"type": "object", "propertyNames": {"enum": sorted([*keys, "total_steps"])}}
    if command == "evaluate":
        return _of_evaluate(keys)
    block = {**block_schema(command, step), "description": "which samples are seen, how often, and how hard they pull"}
    flat = dict.fromkeys(FLAT_KEYS, _FLAT) if command == "train" else {}
    required = {"train": [], "select": ["dataflex", "output_dir"], "doremi": ["output_dir"]}[command]
    return {
        "$schema": _DRAFT,
        "title": f"dataflex-cli {command}",
        "type": "object",
        "properties": {
            "dataflex": block if command == "select" else {"anyOf": [block, {"type": "null"}]},
            **flat,
            **keys,
        },
        "required": required,
        "additionalProperties": False,
    }


def _of_evaluate(keys: Json) -> Json:
    """The file of `evaluate`: the block alone, or in the dataflex block of a training, of which nothing else is read."""
    either = [{"required": ["evaluate"]}, {"required": ["dataflex"]}]
    return {
        "$schema": _DRAFT,
        "title": "dataflex-cli evaluate",
        "type": "object",
        "properties": {
            "evaluate": evaluate_schema(),
            "dataflex": {"properties": {"evaluate": evaluate_schema()}},
            **keys,
        },
        "required": ["output_dir"],
        "oneOf": either,
        "additionalProperties": False,
    }


def _llamafactory_keys() -> Json:
    found: Json = {}
    for kind in key_classes():
        hints = get_type_hints(kind)
        found |= {f.name: key_schema(f, hints[f.name]) for f in fields(kind) if f.init}
    return found
