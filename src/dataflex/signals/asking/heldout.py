"""Held-out rows by domain: what an evaluation reports about them, and the signal `heldout_loss`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import log
from typing import Any, ClassVar

import numpy as np
import torch

from dataflex.config.schema import DataflexConfig
from dataflex.data.rows import Rows
from dataflex.distributed.collectives import decide
from dataflex.distributed.host import Host
from dataflex.errors import DataflexError
from dataflex.record.ledger import RunFiles
from dataflex.signals.batching import Pool, over_pool
from dataflex.signals.cross_entropy import IGNORE, forward_row_losses
from dataflex.signals.isolation import isolated

# Cross entropies and trainable tokens of held-out rows: what is measured where rows have tokens.
HELD_OUT_SUMS = "heldout_sums"
PREFIX = "eval_dataflex"  # of the scalars; `metric_for_best_model` finds only names that begin with eval_
_MEASURES = ("loss", "perplexity", "bits_per_byte")


@dataclass(frozen=True)
class Totals:
    """Of some rows: sum of the cross entropies (nats) of their trainable tokens, these tokens, and the bytes of their text."""

    loss: float
    tokens: int
    bytes: int

    def measures(self) -> dict[str, float]:
        """Token-mean loss, its exponential, and bits per byte where there are bytes; nothing without a token."""
        if not self.tokens:
            return {}
        mean = self.loss / self.tokens
        with np.errstate(over="ignore"):
            out = {"loss": mean, "perplexity": float(np.exp(mean))}
        return out | ({"bits_per_byte": self.loss / log(2) / self.bytes} if self.bytes else {})


class DomainEvaluation(Host):  # type: ignore[misc]
    """Mixin over the Trainer's evaluation: the measures of every domain join those of the data set it evaluates first, so that
    they are logged, seen by callbacks and returned with them. held_out: one part per domain, None if there are no such rows."""

    config: ClassVar[DataflexConfig]
    stage_name: ClassVar[str]
    per_row: ClassVar[bool]
    held_out: Rows | None
    run_files: RunFiles
    _to_evaluate: bool = False

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        if eval_dataset is None:  # else one set of several, or of the caller's own
            self._to_evaluate = (
                self.held_out is not None
                and self.config.evaluate_domains
                and self.per_row
                and self.stage_name in ("pt", "sft")
            )
        return super().evaluate(eval_dataset, *args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        output = super().evaluation_loop(*args, **kwargs)
        if self._to_evaluate:
            self._to_evaluate = False
            output.metrics.update(self._evaluate_domains())
        return output

    def _evaluate_domains(self) -> dict[str, float]:
        """Scalars by name, equal on every rank; a line of the ledger says the same."""
        begin, names = time.perf_counter(), self._kept_apart.domains.names
        totals = self._held_out_totals()
        by_domain = {name: total.measures() for name, total in zip(names, totals, strict=True)}
        averages = {"macro": macro(list(by_domain.values())), "micro": micro(totals).measures()}
        step = self.state.global_step
        self.run_files.record(
            {
                "step": step,
                "position": self.position(step),
                "component": "evaluate",
                "decided": {},
                "from": {
                    "tokens": {name: total.tokens for name, total in zip(names, totals, strict=True)},
                    "bytes": {name: total.bytes for name, total in zip(names, totals, strict=True)},
                    **{m: {name: found[m] for name, found in by_domain.items() if m in found} for m in _MEASURES},
                    **averages,
                },
                "seconds": round(time.perf_counter() - begin, 3),
            }
        )
        out = {f"{PREFIX}/{m}/{name}": value for name, found in by_domain.items() for m, value in found.items()}
        return out | {f"{PREFIX}/{name}/{m}": value for name, found in averages.items() for m, value in found.items()}

    def _held_out_totals(self) -> list[Totals]:
        losses, tokens = self.signal(HELD_OUT_SUMS).T
        out = []
        for a, b in pairwise(self._kept_apart.domains.offsets):
            counted = self._held_out_bytes[a:b].sum()
            out.append(Totals(float(losses[a:b].sum()), int(tokens[a:b].sum()), int(counted)))
        return out

    def _held_out_losses(self) -> np.ndarray:
        """float64 [held-out rows]: token-mean cross entropy, NaN for a row without a trainable token."""
        losses, tokens = self.signal(HELD_OUT_SUMS).T
        with np.errstate(invalid="ignore"):
            return losses / tokens  # type: ignore[no-any-return]

    def _held_out_tokens(self) -> np.ndarray:
        """float64 [held-out rows]: trainable tokens; 1 in stages of pairs, whose loss is not one of tokens."""
        if self.stage_name in ("pt", "sft"):
            return np.asarray(self.signal(HELD_OUT_SUMS)[:, 1])
        return np.ones(len(self._kept_apart))

    def _measure_held_out(self, pool: Pool) -> np.ndarray:
        """float64 [rows, 2]: sum of the cross entropies of a row, and its trainable tokens."""

        def measure(batch: Any) -> torch.Tensor:
            sums, counts = forward_row_losses(self.model, batch)
            return torch.stack([sums, counts.to(sums.dtype)], dim=1)

        with isolated(self.model):
            return over_pool(pool, measure, "held-out rows")

    @cached_property
    def _held_out_bytes(self) -> np.ndarray:
        return decide(lambda: trainable_bytes(self._kept_apart, self.processing_class))

    @property
    def _kept_apart(self) -> Rows:
        if self.held_out is None:
            raise DataflexError("there are no held-out rows")
        return self.held_out


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
    """UTF-8 bytes of the text that the trainable tokens of each row decode to, all of them at once and special tokens left out,
    int64 [N]. The first token of a row is predicted from nothing and does not count."""
    out = np.zeros(len(rows), dtype=np.int64)
    for place in range(len(rows)):
        row = rows[place]
        learned = [t for t in row["labels"][1:] if t != IGNORE] if "labels" in row else row["input_ids"][1:]
        text = tokenizer.decode(learned, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        out[place] = len(str(text).encode(errors="replace"))
    return out
