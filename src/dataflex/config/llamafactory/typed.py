"""Values as the types that LLaMA-Factory and transformers give their keys.

As lenient as LLaMA-Factory's own command line: a number may be text ("1e-4"), a switch a word ("true"), a list one text with
commas. What is given to LLaMA-Factory then has the type of its key.
"""

from __future__ import annotations

import types
import typing
from enum import Enum
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from dataflex.errors import ConfigError, nearest
from dataflex.values import integer, number, shown, truth

# Texts with commas that may be a list, too. The first two stay a list.
LISTS = (
    "dataset", "eval_dataset", "adapter_name_or_path", "add_tokens", "add_special_tokens", "additional_target",
    "apollo_target", "freeze_extra_modules", "freeze_trainable_modules", "galore_target", "interleave_probs", "lora_target",
    "oft_target", "profile_modules", "ref_model_adapters", "reward_model_adapters",
)  # fmt: skip
_NUMBERS = ("interleave_probs",)  # lists of numbers
_STAY_LISTS = ("dataset", "eval_dataset")
# Texts that name something which is there or will be: a number is a slip of the hand. Elsewhere it is read as text.
NAMES = (
    "adapter_name_or_path", "cache_dir", "dataset", "dataset_dir", "deepspeed", "eval_dataset", "logging_dir", "media_dir",
    "model_name_or_path", "output_dir", "ref_model", "resume_from_checkpoint", "reward_model", "template",
    "tokenized_path",
)  # fmt: skip
# What is taken besides the type.
MORE: dict[str, Any] = {"dataset_dir": dict, "fsdp": bool, "resume_from_checkpoint": bool}
# Keys that transformers reads null for as: not at all.
NULL = ("max_grad_norm", "debug")


def read_typed(key: str, value: Any, hint: Any) -> Any:
    """value as the type `hint` of its key; ConfigError if it cannot be had."""
    options = members(hint)
    if value is None:
        if type(None) in options or Any in options or key in NULL:
            return None
        raise ConfigError(f"{key} must be {_expected(options)}, got null; leave the key out for its default")
    kinds = [o for o in options if o is not type(None)]
    if len(kinds) == 1 and kinds[0] in (int, float, bool):
        return {int: integer, float: number, bool: _switch}[kinds[0]](value, key)
    if any(map(_is_class, kinds)):  # made by a program
        return value
    enums = [k for k in kinds if isinstance(k, type) and issubclass(k, Enum)]
    if enums and set(kinds) <= {*enums, str}:
        return _choice(key, value, [str(member.value) for member in enums[0]])
    if all(typing.get_origin(k) is typing.Literal for k in kinds):
        return _choice(key, value, [a for k in kinds for a in typing.get_args(k)])
    if str in kinds and isinstance(value, list | tuple) and key in LISTS:
        names = [str(v) if key in _NUMBERS and isinstance(v, float | int) else _text(key, v) for v in value]
        return names if key in _STAY_LISTS else ",".join(names)
    if kinds == [list[str]] and isinstance(value, str):
        return [word.strip() for word in value.split(",")]
    if key in MORE:
        hint = hint | MORE[key]
        kinds.append(MORE[key])
    if isinstance(value, bool) and bool not in kinds and False not in _literals(kinds):
        raise ConfigError(f"{key} must be {_expected(kinds)}, got {value}")
    try:
        found = _adapter(hint, key not in NAMES).validate_python(value)
    except ValidationError:
        quote = "; put it in quotes" if str in kinds and isinstance(value, int | float) else ""
        raise ConfigError(f"{key} must be {_expected(kinds)}, got {shown(value)}{quote}") from None
    return found if isinstance(found, str) else value  # members of a list of choices stay the texts they are


@cache
def _adapter(hint: Any, numbers_are_text: bool) -> TypeAdapter[Any]:
    return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True, coerce_numbers_to_str=numbers_are_text))


def members(hint: Any) -> list[Any]:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return list(typing.get_args(hint)) if union else [hint]


def _is_class(kind: Any) -> bool:
    """Whether only a program can make a value of it."""
    plain = kind in (int, float, bool, str, dict, list) or kind is Any or typing.get_origin(kind) is not None
    return not plain and not (isinstance(kind, type) and issubclass(kind, Enum | BaseModel)) and kind.__name__ != "Path"


def _switch(value: Any, key: str) -> bool:
    if isinstance(value, list | tuple | dict):
        raise ConfigError(f"{key} must be true or false, got {shown(value)}")
    return truth(value, key)


def _choice(key: str, value: Any, choices: list[Any]) -> Any:
    if value is False and "no" in choices:  # YAML reads a bare `no` as a switch
        return "no"
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, bool | list | dict) or value not in choices:
        raise ConfigError(f"{key}: {shown(value)} is not a choice{nearest(str(value), map(str, choices))}")
    return value


def _literals(kinds: list[Any]) -> list[Any]:
    return [a for k in kinds if typing.get_origin(k) is typing.Literal for a in typing.get_args(k)]


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{key} must be text, or a list of texts, and {shown(value)} in it is none")
    return value


def _expected(kinds: list[Any]) -> str:
    """What a value may be, in words."""
    words = {bool: "true or false", int: "an integer", float: "a number", str: "text", dict: "a mapping"}
    said: list[str] = []
    for kind in kinds:
        if kind is type(None):
            continue
        origin = typing.get_origin(kind)
        word = words.get(origin or kind, "a list" if (origin or kind) is list else "")
        if origin is typing.Literal or (isinstance(kind, type) and issubclass(kind, Enum)):
            word = "one of its choices"
        if word and word not in said:
            said.append(word)
    return " or ".join(said) or "something else"
