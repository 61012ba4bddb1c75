"""Token ids that say what they weigh.

LLaMA-Factory joins, cuts and pads lists of token ids, and packs several rows into one. Only the ids know in the end which
message a token came from. So while rows are prepared, an id holds in the upper half of an int64 a number that stands for
a weight. Afterwards the ids become ids again, and the weights a column of their own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dataflex.data.rows import GIVEN_WEIGHTS
from dataflex.signals.cross_entropy import IGNORE

_MARKED = ("input_ids", "labels")


class Marks:
    """The weights of one batch of rows; mark i, in the upper half of an id, stands for `weights[i]`."""

    def __init__(self) -> None:
        self.weights = [1.0]
        """That of ids without a mark, which is 0, comes first."""

    def put(self, ids: list[int], weight: float) -> list[int]:
        mark = len(self.weights) << 32
        self.weights.append(weight)
        return [i + mark for i in ids]

    def taken_off(self, processed: dict[str, Any]) -> dict[str, Any]:
        """The columns input_ids and labels without marks, and GIVEN_WEIGHTS: float32, one for each id of a row."""
        rows = {
            key: [np.fromiter(row, np.int64, len(row)) for row in processed[key]] for key in _MARKED if key in processed
        }
        labels = rows.get("labels", [None] * len(rows["input_ids"]))
        out: dict[str, Any] = {key: [row.astype(np.int32).tolist() for row in found] for key, found in rows.items()}
        pairs = zip(rows["input_ids"], labels, strict=True)
        return out | {GIVEN_WEIGHTS: [self._weights_of(ids, own) for ids, own in pairs]}

    def _weights_of(self, ids: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
        """float32[T]. ids, labels: int64[T]."""
        marks = ids >> 32
        out = np.array(self.weights, dtype=np.float32)[marks]
        if labels is not None:  # the end of the last answer, which some templates leave to the processor
            ends = np.flatnonzero((marks == 0) & (labels[: len(ids)] != IGNORE))
            out[ends] = out[np.maximum(ends - 1, 0)]
        return out


class _StandIn:
    """Has all attributes of what it stands for."""

    def __init__(self, inner: Any, marks: Marks) -> None:
        self.inner, self.marks = inner, marks

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class MarkingTokenizer(_StandIn):
    """A tokenizer that is called once, with the texts that `weights` belong to."""

    def __init__(self, inner: Any, marks: Marks, weights: list[float]) -> None:
        super().__init__(inner, marks)
        self.weights = weights

    def __call__(self, texts: list[str], **kwargs: Any) -> Any:
        out = self.inner(texts, **kwargs)
        pairs = zip(out["input_ids"], self.weights, strict=True)
        out["input_ids"] = [self.marks.put(ids, weight) for ids, weight in pairs]
        return out


class MarkingTemplate(_StandIn):
    """A template that encodes one conversation at a time, whose `weights` are set before."""

    weights: list[float]
    """One for all messages, or one for each."""

    def encode_multiturn(self, tokenizer: Any, messages: list[dict[str, Any]], *args: Any) -> Any:
        weights = self.weights * len(messages) if len(self.weights) == 1 else self.weights
        turns = self.inner.encode_multiturn(tokenizer, messages, *args)
        out = []
        for turn, (prompt, answer), asked, answered in zip(
            range(len(turns)), turns, weights[::2], weights[1::2], strict=True
        ):
            # With such templates, what is learned at a prompt's first token is the end of the answer before it.
            first = weights[2 * turn - 1] if turn and self.inner.efficient_eos else asked
            marked = [*self.marks.put(prompt[:1], first), *self.marks.put(prompt[1:], asked)]
            out.append((marked, self.marks.put(answer, answered)))
        return out
