"""`schema`: the JSON schema of a configuration file, for editors and checks."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, cast, get_args, get_type_hints

from dataflex import notices
from dataflex.base.checks.arguments import key_classes
from dataflex.compat.flat import FLAT_KEYS
from dataflex.config.json_schema import Command, Json, block_schema
from dataflex.config.llamafactory.json_types import key_schema
from dataflex.errors import ConfigError, DataflexError, nearest
from dataflex.writing import write_atomically

_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_FLAT: Json = {"description": "a key of dataflex 1.1.0; see docs/migration.md"}


def schema(command: Command = "train") -> Json:
    """JSON schema, draft 2020-12, of the whole file that a command reads."""
    keys = _llamafactory_keys()
    step: Json = {"type": "object", "propertyNames": {"enum": sorted([*keys, "total_steps"])}}
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


def _llamafactory_keys() -> Json:
    found: Json = {}
    for kind in key_classes():
        hints = get_type_hints(kind)
        found |= {f.name: key_schema(f, hints[f.name]) for f in fields(kind) if f.init}
    return found


def main(arguments: list[str]) -> int:
    """Exit status of `schema [--for COMMAND] [--output FILE]`."""
    try:
        asked = _options(arguments)
        text = json.dumps(schema(cast(Command, asked.get("for", "train"))), indent=1, ensure_ascii=False)
        if "output" in asked:
            write_atomically(Path(asked["output"]), f"{text}\n".encode())
        else:
            notices.show(text)
    except DataflexError as error:
        notices.error(str(error))
        return error.exit_status
    return 0


def _options(arguments: list[str]) -> dict[str, Any]:
    known, commands = ("--for", "--output"), get_args(Command)
    if len(arguments) % 2 or any(word not in known for word in arguments[::2]):
        word = next((word for word in arguments[::2] if word not in known), arguments[-1])
        raise ConfigError(
            f"schema: {word!r} is not understood; usage: schema [--for {'|'.join(commands)}] [--output FILE]"
        )
    asked = {word[2:]: value for word, value in zip(arguments[::2], arguments[1::2], strict=True)}
    if asked.get("for", "train") not in commands:
        raise ConfigError(f"schema: --for {asked['for']}: unknown command{nearest(asked['for'], commands)}")
    return asked
