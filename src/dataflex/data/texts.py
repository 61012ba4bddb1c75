"""What rows say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dataflex.data.rows import Rows


@dataclass(frozen=True)
class RowText:
    prompt: str
    """What comes before the first token that is learned."""
    answer: str
    """The rest."""

    @property
    def whole(self) -> str:
        return "\n".join(part for part in (self.prompt, self.answer) if part)


def joined(messages: Sequence[Any]) -> str:
    """What messages in LLaMA-Factory's columns say, a line each."""
    return "\n".join(message["content"] for message in messages if message["content"])


class RowTexts:
    """The texts of rows, from their tokens, special ones left out; of a pair of answers, the wanted one."""

    def __init__(self, rows: Rows, tokenizer: Any) -> None:
        self.rows, self.tokenizer = rows, tokenizer

    def __call__(self, ids: Sequence[int]) -> list[RowText]:
        return [self._text(row) for row in self.rows.__getitems__(list(ids))] if len(ids) else []

    def _text(self, row: dict[str, Any]) -> RowText:
        tokens: list[int] = row["input_ids"] if "input_ids" in row else row["chosen_input_ids"]
        labels = row.get("labels", row.get("chosen_labels")) or [0]
        first = next((i for i, label in enumerate(labels) if label != -100), len(labels))
        return RowText(*(self._decoded(part) for part in (tokens[:first], tokens[first:])))

    def _decoded(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True)).strip()
