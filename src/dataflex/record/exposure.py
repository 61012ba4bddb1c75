"""Which rows were trained on, how often, with what loss and when."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dataflex.distributed.collectives import gather, rank
from dataflex.plan.plan import Domains


class Exposure:
    """Touched rows only, sorted by id: rank 0 holds the table, and every rank its notes since the last `collect`.

    Notes are small tensors, a few per micro-batch; losses and weights stay on their device until they are collected.
    """

    def __init__(self, domains: Domains) -> None:
        self.domains = domains
        self._notes: list[tuple[int, torch.Tensor, torch.Tensor | None, torch.Tensor | None]] = []
        self.ids = np.empty(0, dtype=np.int64)
        self.seen = np.empty(0, dtype=np.int64)
        self.loss = np.empty(0, dtype=np.float32)
        self.weight = np.empty(0, dtype=np.float32)
        self.step = np.empty(0, dtype=np.int64)

    def note(
        self, step: int, ids: torch.Tensor, losses: torch.Tensor | None, weights: torch.Tensor | None = None
    ) -> None:
        """Rows of one micro-batch: ids int64[B] on the CPU, losses and weights [B] on any device; step counts from 1."""
        self._notes.append((step, ids, losses, weights))

    def collect(self) -> None:
        """Merge the notes of all ranks into rank 0's table; called on every rank."""
        ids = np.concatenate([np.empty(0, dtype=np.int64), *(i.numpy() for _, i, _, _ in self._notes)])
        steps = np.concatenate([np.empty(0, dtype=np.int64), *(np.full(len(i), s) for s, i, _, _ in self._notes)])
        losses = _of_notes([(len(i), losses) for _, i, losses, _ in self._notes])
        weights = _of_notes([(len(i), weights) for _, i, _, weights in self._notes])
        self._notes = []
        parts = list(zip(*(gather(a) for a in (ids, losses, weights, steps)), strict=True))
        if rank() == 0:
            self.merge(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def merge(self, ids: np.ndarray, loss: np.ndarray, weight: np.ndarray, step: np.ndarray) -> None:
        """Add notes (one per row served, any order; loss and weight NaN where they are not known)."""
        if not len(ids):
            return
        order = np.lexsort((step, ids))
        ids, loss, weight, step = ids[order], loss[order], weight[order], step[order]
        last = np.flatnonzero(np.append(ids[1:] != ids[:-1], True))
        first = np.append(0, last[:-1] + 1)
        new_ids, new_seen = ids[last], last - first + 1
        # Sorting the whole table again would take seconds at every checkpoint of a long run.
        index = np.searchsorted(self.ids, new_ids)
        known = index < len(self.ids)
        known[known] = self.ids[index[known]] == new_ids[known]
        gaps = index[~known]
        merged = np.insert(self.ids, gaps, new_ids[~known])
        seen, steps = np.insert(self.seen, gaps, 0), np.insert(self.step, gaps, 0)
        losses, weights = np.insert(self.loss, gaps, np.nan), np.insert(self.weight, gaps, np.nan)
        new = np.searchsorted(merged, new_ids)
        seen[new] += new_seen
        later = new[step[last] >= steps[new]]  # another rank may have noted a later step already
        taken = last[step[last] >= steps[new]]
        losses[later], weights[later], steps[later] = loss[taken], weight[taken], step[taken]
        self.ids, self.seen, self.loss, self.weight, self.step = merged, seen, losses, weights, steps

    def table(self) -> pa.Table:
        """With `last_weight` where rows were weighed."""
        names = pa.array(self.domains.names)
        columns = {
            "sample_id": self.ids,
            "domain": pa.DictionaryArray.from_arrays(self.domains.of(self.ids).astype(np.int32), names),
            "times_seen": self.seen,
            "last_loss": pa.array(self.loss, from_pandas=True),
            "last_step": self.step,
        }
        if not np.isnan(self.weight).all():
            columns["last_weight"] = pa.array(self.weight, from_pandas=True)
        return pa.table(columns)

    def load(self, path: Path) -> None:
        table = pq.read_table(path)
        self.ids = table["sample_id"].to_numpy()
        self.seen = table["times_seen"].to_numpy()
        self.loss = table["last_loss"].to_numpy().astype(np.float32)
        self.step = table["last_step"].to_numpy()
        if "last_weight" in table.column_names:
            self.weight = table["last_weight"].to_numpy().astype(np.float32)
        else:  # a run that weighs nothing, or a checkpoint from before weights were recorded
            self.weight = np.full(len(self.ids), np.nan, dtype=np.float32)


def _of_notes(notes: list[tuple[int, torch.Tensor | None]]) -> np.ndarray:
    """float32, one value per row of all notes; notes: rows, and a value for each, None: not known."""
    found = [torch.full((rows,), torch.nan) if values is None else values.float().cpu() for rows, values in notes]
    return torch.cat([torch.empty(0), *found]).numpy()
