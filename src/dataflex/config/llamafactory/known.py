"""What LLaMA-Factory's keys may be, wherever that is known from."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Protocol


class KnownKeys(Protocol):
    """The keys of LLaMA-Factory and transformers, and the choices that no type tells."""

    imports: ClassVar[bool]
    """Whether checks may import these packages, and look into a model with them."""

    @property
    def types(self) -> Mapping[str, Any]:
        """The type of every key, as `read_typed` reads it."""

    @property
    def templates(self) -> Collection[str]: ...

    @property
    def log_levels(self) -> Collection[str]: ...

    @property
    def trackers(self) -> Collection[str]:
        """Names that `report_to` may hold."""

    @property
    def accelerator(self) -> Collection[str]:
        """Keys of `accelerator_config`."""
