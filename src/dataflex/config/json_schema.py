"""JSON schema (draft 2020-12) of the `dataflex` block, from the keys and the parameters of the components that are installed."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, fields
from typing import Any, Literal, get_type_hints

from pydantic import ConfigDict, PydanticUserError, TypeAdapter

from dataflex.components.contracts import Component
from dataflex.components.registry import names, resolve
from dataflex.config.schema import (
    SLOT_KEYS,
    BlockKeys,
    ChoiceKeys,
    DomainsKeys,
    DoremiKeys,
    EvaluateKeys,
    GenerateKeys,
    OfflineConfig,
    WhereKeys,
)
from dataflex.config.schema.keys import BLOCKS, DOREMI_STEPS
from dataflex.errors import ConfigError

Json = dict[str, Any]
Command = Literal["train", "select", "doremi", "evaluate"]
_NAME = "a built-in component, an installed plug-in, or module:Class"


def block_schema(command: Command, steps: Json) -> Json:
    """The schema of the block as `command` reads it. steps: that of the keys of one run of `doremi`."""
    blocks: Json = {slot: _family(slot) for slot in SLOT_KEYS}
    blocks["weight"] = {"anyOf": [blocks["weight"], {"type": "array", "items": blocks["weight"], "minItems": 1}]}
    blocks["domains"] = _keys(DomainsKeys)
    condition = {**_keys(WhereKeys), "required": ["column"]}
    about = {"description": blocks["domains"]["properties"]["where"]["description"]}
    one_or_more = {"anyOf": [{"type": "array", "items": condition}, condition], **about}
    blocks["domains"]["properties"]["where"] = _nullable(one_or_more)
    either = [{"required": ["budget"]}, {"required": ["keep_ratio"]}]
    blocks["offline"] = {**_keys(OfflineConfig), **({"oneOf": either} if command == "select" else {})}
    doremi = {name: _nullable(steps) for name in DOREMI_STEPS}
    blocks["doremi"] = {**(found := _keys(DoremiKeys)), "properties": {**found["properties"], **doremi}}
    blocks["evaluate"] = evaluate_schema()
    required: list[str] = []
    if command == "select":
        blocks = {name: blocks[name] for name in ("select", "domains", "offline")}
        required = ["select"]
    elif command == "doremi":
        mixers = {"anyOf": [{"const": "doremi"}, _doremi_mixer()]}
        blocks = {
            "mix": mixers,
            "domains": blocks["domains"],
            "doremi": blocks["doremi"],
            "evaluate": blocks["evaluate"],
        }
    described = {k: {**_nullable(s, k not in required), "description": BLOCKS[k][1]} for k, s in blocks.items()}
    block = _keys(BlockKeys)
    return {**block, "properties": {**block["properties"], **described}, "required": required}


def evaluate_schema() -> Json:
    """The schema of the block `evaluate`."""
    block = _keys(EvaluateKeys)
    for name, keys in (("choice", ChoiceKeys), ("generate", GenerateKeys)):
        entry = {"anyOf": [{**_keys(keys), "required": ["dataset"]}, {"type": "string"}]}
        whole = {"anyOf": [{"type": "array", "items": entry}, entry]}
        block["properties"][name] = _nullable({**whole, "description": block["properties"][name]["description"]})
    named = [
        {"required": [name], "properties": {name: {"not": {"type": "null"}}}}
        for name in ("heldout", "choice", "generate", "tasks")
    ]
    return {**block, "anyOf": named}


def _keys(*models: type) -> Json:
    """An object with the keys of models and no others. null is no value."""
    properties: Json = {}
    for model in models:
        for name, schema in TypeAdapter(model).json_schema()["properties"].items():
            properties[name] = _nullable(_tidy(schema))
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _tidy(schema: Json) -> Json:
    """Without what is for other readers, and without a default that says less than the documentation."""
    idle = {"title", "unset", "kind", *(["default"] if schema.get("unset") or schema.get("default", 0) is None else [])}
    return {key: value for key, value in schema.items() if key not in idle}


def _nullable(schema: Json, holds: bool = True) -> Json:
    if not holds or {"type": "null"} in schema.get("anyOf", ()):
        return schema
    outside = ("description", "default")
    shown = {key: schema[key] for key in outside if key in schema}
    return {"anyOf": [{k: v for k, v in schema.items() if k not in outside}, {"type": "null"}], **shown}


def _family(slot: str) -> Json:
    """A name alone, or a block whose parameters are those of the component that it names."""
    own = _keys(*SLOT_KEYS[slot])["properties"]
    known = [name for name in names(slot) if name != "custom"]
    named = {"anyOf": [{"enum": known}, {"type": "string", "pattern": ":"}], "description": _NAME}
    anyone = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string", "pattern": ":"}, **own}}
    custom = {**anyone, "required": ["name", "class"], "properties": {"name": {"const": "custom"}, **own}}
    variants = [variant for name in known if (variant := _variant(slot, name, own)) is not None]
    return {"oneOf": [named, *variants, anyone, custom]}


def _variant(slot: str, name: str, own: Json) -> Json | None:
    """The block of one component; None for a plug-in that does not load."""
    try:
        cls = resolve(slot, name, name)
        parameters, required = _parameters(cls)
    except (ConfigError, NameError, TypeError, AttributeError):  # or whose types cannot be read
        return None
    about = (inspect.getdoc(cls) or "").split("\n\n")[0]
    properties = {"name": {"const": name, "description": " ".join(about.split())}, **own, **parameters}
    return {
        "type": "object",
        "properties": properties,
        "required": ["name", *required],
        "additionalProperties": False,
    }


def _parameters(cls: type[Component]) -> tuple[Json, list[str]]:
    """Schemas of the parameters of a component, and the names of those that are required."""
    hints = get_type_hints(cls)
    known = [f for f in fields(cls) if f.init]
    schemas: Json = {old: {"deprecated": True, "description": f"no effect: {why}"} for old, why in cls.retired.items()}
    for field in known:
        schemas[field.name] = _of_type(hints[field.name])
        if isinstance(field.default, bool | int | float | str):
            schemas[field.name] = {**schemas[field.name], "default": field.default}
    required = [f.name for f in known if f.default is MISSING and f.default_factory is MISSING]
    return schemas, required


def _of_type(hint: Any) -> Json:
    """The schema of a type; any value where it has none."""
    try:
        return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).json_schema()
    except PydanticUserError:
        return {}


def _doremi_mixer() -> Json:
    """The mixer of the proxy: its name may be left out, and its reference is the one that is trained."""
    variant = _variant("mix", "doremi", _keys(*SLOT_KEYS["mix"])["properties"])
    assert variant is not None
    return {**variant, "required": []}
