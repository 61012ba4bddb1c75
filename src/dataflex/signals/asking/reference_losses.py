"""Losses of a reference model on every trainable token, measured once and kept on disk, memory-mapped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dataflex.distributed.collectives import add_over_ranks, ranks
from dataflex.errors import DataflexError
from dataflex.signals.batching import ScoringRows, batches_of
from dataflex.signals.cross_entropy import forward_token_losses
from dataflex.signals.isolation import isolated
from dataflex.signals.keeping.disk import kept_values
from dataflex.signals.passing import passing

_ROWS = 256  # of a piece, for each rank


class ReferenceLosses:
    """values: float32, the cross entropies of the trainable tokens of all rows, laid end to end in the order of ids.
    offsets: int64 [N + 1], where the tokens of each row begin."""

    def __init__(self, values: np.ndarray, offsets: np.ndarray) -> None:
        self.values, self.offsets = values, offsets

    def of(self, ids: np.ndarray) -> np.ndarray:
        """The values of rows `ids`, one row after the other."""
        parts = [self.values[self.offsets[i] : self.offsets[i + 1]] for i in ids]
        return np.concatenate(parts) if parts else np.empty(0, np.float32)


def reference_losses(
    load: Callable[[], tuple[torch.nn.Module, ScoringRows]],
    trainable: np.ndarray,
    folder: Path,
    key: Mapping[str, Any],
) -> ReferenceLosses:
    """trainable: int64 [N], trainable tokens of each row. load: gives the model and all rows; called when
    there is something left to measure. Equal on every rank."""
    offsets = np.concatenate([[0], np.cumsum(trainable)])
    edges = np.unique(np.append(offsets[:: _ROWS * ranks()], offsets[-1]))
    loaded: list[tuple[torch.nn.Module, ScoringRows]] = []
    stack = ExitStack()  # one pass, from the first row that is missing on

    def measure(places: np.ndarray) -> np.ndarray:
        first, last = np.searchsorted(offsets, [places[0], places[-1] + 1])
        if not loaded:
            loaded.append(load())
            stack.enter_context(passing("losses of the reference", len(trainable), done=int(first)))
        model, rows = loaded[0]
        here = np.arange(first, last)
        return _token_losses(model, rows.subset(here), offsets[first : last + 1] - offsets[first])

    with stack:
        return ReferenceLosses(kept_values(folder, key, int(offsets[-1]), measure, edges), offsets)


def _token_losses(model: torch.nn.Module, rows: ScoringRows, offsets: np.ndarray) -> np.ndarray:
    """float32 [offsets[-1]], equal on every rank. DataflexError if a loss is not finite: nothing could be compared with it."""
    out = torch.zeros(int(offsets[-1]), dtype=torch.float32, device=rows.device)
    with isolated(model):
        for places, batch in batches_of(rows, "losses of the reference"):
            losses, active = forward_token_losses(model, batch)
            if places is None:
                continue
            counts = np.diff(offsets)[places]
            if not np.array_equal(active.sum(dim=1).cpu().numpy(), counts):
                raise DataflexError("the rows of the reference do not have the tokens that they are trained on with")
            where = np.concatenate([np.arange(offsets[p], offsets[p + 1]) for p in places])
            out[torch.as_tensor(where, device=out.device)] = losses
    add_over_ranks(out)
    if not torch.isfinite(out).all():
        raise DataflexError(
            "the reference model has no finite loss on some rows; is it whole, and in a precision it can take?"
        )
    return np.asarray(out.cpu().numpy())
