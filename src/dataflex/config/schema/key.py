"""How a key of the `dataflex` block is declared: its type, its default, and what the documentation says of it."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from dataflex.config.llamafactory.ranges import MOST_STEPS

_INT64 = (1 << 63) - 1


def _no_switch(value: Any) -> Any:
    """YAML's `true` is a number to Python."""
    if isinstance(value, bool):
        raise PydanticCustomError("switch", "must be a number")
    return value


# What a number counts: steps of the optimizer from 0 or from 1 on, other things, or a share of something.
Steps = Annotated[int, Field(ge=0, le=MOST_STEPS), BeforeValidator(_no_switch)]
SomeSteps = Annotated[int, Field(ge=1, le=MOST_STEPS), BeforeValidator(_no_switch)]
Count = Annotated[int, Field(ge=0, le=_INT64), BeforeValidator(_no_switch)]
SomeOf = Annotated[int, Field(ge=1, le=_INT64), BeforeValidator(_no_switch)]
Share = Annotated[float, Field(gt=0, le=1), BeforeValidator(_no_switch)]
# Read from a text with commas, too.
_NAMES = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
Names = Annotated[tuple[str, ...], WithJsonSchema(_NAMES)]


def key(default: Any, meaning: str, *, unset: str = "", kind: str = "") -> Any:
    """A key. unset: what its absence does, where the default does not say it. kind: its type in words, where the annotation
    does not say what a user may write."""
    more = {"unset": unset, "kind": kind}
    return field(default=default, metadata={"description": meaning, "json_schema_extra": more})


class KeyModel:
    """A block of keys, and no others."""

    __pydantic_config__ = ConfigDict(extra="forbid")
