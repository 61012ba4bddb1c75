"""Held-out rows by domain: the sums of their losses, and what an evaluation reports of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import log
from typing import Any

import numpy as np
import torch

from dataflex.data.rows import Rows
from dataflex.distributed.collectives import decide
from dataflex.signals.batching import ScoringRows, over_rows
from dataflex.signals.cross_entropy import IGNORE, forward_row_losses
from dataflex.signals.isolation import isolated

PREFIX = "eval_dataflex"  # of the scalars; `metric_for_best_model` finds only names that begin with eval_
_MEASURES = ("loss", "perplexity", "bits_per_byte")


def loss_sums(model: torch.nn.Module, rows: ScoringRows) -> np.ndarray:
    """float64 [rows, 2]: sum of the cross entropies of a row, and its trainable tokens."""

    def measure(batch: Any) -> torch.Tensor:
        sums, counts = forward_row_losses(model, batch)
        return torch.stack([sums, counts.to(sums.dtype)], dim=1)

    with isolated(model):
        return over_rows(rows, measure, "held-out rows")


@dataclass(frozen=True)
class Totals:
    """Sums over some rows."""

    loss: float
    """Sum of the cross entropies of their trainable tokens, in nats."""
    tokens: int
    """The number of these tokens."""
    bytes: int
    """Bytes of their text."""

    def measures(self) -> dict[str, float]:
        """Token-mean loss, its exponential, and bits per byte where there are bytes; nothing without a token."""
        if not self.tokens:
            return {}
        mean = self.loss / self.tokens
        with np.errstate(over="ignore"):
            out = {"loss": mean, "perplexity": float(np.exp(mean))}
        return out | ({"bits_per_byte": self.loss / log(2) / self.bytes} if self.bytes else {})


class HeldOutReport:
    """What an evaluation says of the held-out rows of every domain."""

    def __init__(self, rows: Rows, tokenizer: Any) -> None:
        self.rows, self.tokenizer = rows, tokenizer

    @cached_property
    def _bytes(self) -> np.ndarray:
        return decide(lambda: trainable_bytes(self.rows, self.tokenizer))

    def of(self, sums: np.ndarray) -> tuple[dict[str, float], dict[str, Any]]:
        """Scalars by name, and what the ledger says, equal on every rank. sums: those of `loss_sums`, of all rows."""
        names, (losses, tokens) = self.rows.domains.names, sums.T
        totals = [
            Totals(float(losses[a:b].sum()), int(tokens[a:b].sum()), int(self._bytes[a:b].sum()))
            for a, b in pairwise(self.rows.domains.offsets)
        ]
        by_domain = {name: total.measures() for name, total in zip(names, totals, strict=True)}
        averages = {"macro": macro(list(by_domain.values())), "micro": micro(totals).measures()}
        found = {
            "tokens": {name: total.tokens for name, total in zip(names, totals, strict=True)},
            "bytes": {name: total.bytes for name, total in zip(names, totals, strict=True)},
            **{m: {name: own[m] for name, own in by_domain.items() if m in own} for m in _MEASURES},
            **averages,
        }
        scalars = {f"{PREFIX}/{m}/{name}": value for name, own in by_domain.items() for m, value in own.items()}
        scalars |= {f"{PREFIX}/{name}/{m}": value for name, own in averages.items() for m, value in own.items()}
        return scalars, found


def macro(measures: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over the domains that have a value: of losses, whose exponential is the perplexity, and of bits per byte."""
    means = {m: [v[m] for v in measures if m in v] for m in ("loss", "bits_per_byte")}
    found = {m: sum(values) / len(values) for m, values in means.items() if values}
    if "loss" in found:
        with np.errstate(over="ignore"):
            found["perplexity"] = float(np.exp(found["loss"]))
    return found


def micro(totals: Sequence[Totals]) -> Totals:
    """All rows together."""
    return Totals(sum(t.loss for t in totals), sum(t.tokens for t in totals), sum(t.bytes for t in totals))


def trainable_bytes(rows: Rows, tokenizer: Any) -> np.ndarray:
    """UTF-8 bytes of the text of the trainable tokens of each row, int64 [N].

    All trainable tokens of a row are decoded at once, without special tokens. The first token of a row is predicted
    from nothing and does not count.
    """
    out = np.zeros(len(rows), dtype=np.int64)
    for index in range(len(rows)):
        row = rows[index]
        learned = [t for t in row["labels"][1:] if t != IGNORE] if "labels" in row else row["input_ids"][1:]
        text = tokenizer.decode(learned, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        out[index] = len(str(text).encode(errors="replace"))
    return out
