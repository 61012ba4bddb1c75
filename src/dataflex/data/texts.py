"""What rows say, from their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dataflex.data.rows import Rows


class RowTexts:
    """The text of a row, special tokens left out; of a pair of answers, that of the wanted one."""

    def __init__(self, rows: Rows, tokenizer: Any) -> None:
        self.rows, self.tokenizer = rows, tokenizer

    def __call__(self, ids: Sequence[int]) -> list[str]:
        return [self._text(row) for row in self.rows.__getitems__(list(ids))] if len(ids) else []

    def _text(self, row: dict[str, Any]) -> str:
        tokens = row.get("input_ids", row.get("chosen_input_ids"))
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True)).strip()
