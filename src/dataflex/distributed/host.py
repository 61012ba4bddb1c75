"""What the mixins of this layer are mixed into, for type checkers; at run time it is LLaMA-Factory's trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

Host: Any = object
if TYPE_CHECKING:
    from transformers import Trainer

    Host = Trainer
