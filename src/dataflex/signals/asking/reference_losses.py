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
    """Cross entropies of all trainable tokens under a reference model.

    Attributes:
        values: Rows concatenated in the order of ids, float32 [tokens].
        offsets: Where the tokens of each row begin, int64 [N + 1].
    """

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
    """The losses of a reference model, equal on every rank. Only what `folder` does not hold is measured.

    Args:
        load: Gives the model and all rows. Called only if something is left to measure.
        trainable: Trainable tokens of each row, int64 [N].
        key: What the values depend on.
    """
    offsets = np.concatenate([[0], np.cumsum(trainable)])
    edges = np.unique(np.append(offsets[:: _ROWS * ranks()], offsets[-1]))
    loaded: list[tuple[torch.nn.Module, ScoringRows]] = []
    stack = ExitStack()  # one pass, from the first row that is missing on

    def measure(indices: np.ndarray) -> np.ndarray:
        first, last = np.searchsorted(offsets, [indices[0], indices[-1] + 1])
        if not loaded:
            loaded.append(load())
            stack.enter_context(passing("losses of the reference model", len(trainable), done=int(first)))
        model, rows = loaded[0]
        here = np.arange(first, last)
        return _token_losses(model, rows.subset(here), offsets[first : last + 1] - offsets[first])

    with stack:
        return ReferenceLosses(kept_values(folder, key, int(offsets[-1]), measure, edges), offsets)


def _token_losses(model: torch.nn.Module, rows: ScoringRows, offsets: np.ndarray) -> np.ndarray:
    """float32 [offsets[-1]], equal on every rank. DataflexError if a loss is not finite: nothing could be compared with it."""
    out = torch.zeros(int(offsets[-1]), dtype=torch.float32, device=rows.device)
    with isolated(model):
        for indices, batch in batches_of(rows, "losses of the reference model"):
            losses, active = forward_token_losses(model, batch)
            if indices is None:
                continue
            counts = np.diff(offsets)[indices]
            if not np.array_equal(active.sum(dim=1).cpu().numpy(), counts):
                raise DataflexError("the rows of the reference do not have the tokens that they are trained on with")
            where = np.concatenate([np.arange(offsets[p], offsets[p + 1]) for p in indices])
            out[torch.as_tensor(where, device=out.device)] = losses
    add_over_ranks(out)
    if not torch.isfinite(out).all():
        raise DataflexError(
            "the reference model has no finite loss on some rows; is it whole, and in a precision it can take?"
        )
    return np.asarray(out.cpu().numpy())
