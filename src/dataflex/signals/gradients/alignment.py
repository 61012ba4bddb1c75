"""The alignment of each row's gradient with the gradients of a target.

LESS (arXiv 2402.04333, equations 6 and 7): the alignment of row z with subtask k is the mean over the subtask's rows z'
of

    cos(Gamma(z), grad l(z'))  =  < Gamma(z) / |Gamma(z)|,  mean over z' of grad l(z') / |grad l(z')| >.

So one vector per subtask holds all that is needed of the target. Rows need inner products with these vectors, and their
own norms. No N x P matrix is kept, and no projection is needed. A gradient is divided by its norm, which is known at the
end of the backward pass, so the factors of a batch are kept until then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dataflex.distributed.collectives import add_over_ranks
from dataflex.errors import DataflexError
from dataflex.signals.batching import ScoringRows, batches_of, over_rows
from dataflex.signals.gradients.passes import BatchGradients, Targets, row_count
from dataflex.signals.gradients.projection import Concatenation, Projection
from dataflex.signals.isolation import isolated
from dataflex.signals.passing import passing

if TYPE_CHECKING:
    from jaxtyping import Float, Float64, Int64
    from torch import Tensor

# Values of exact target vectors (subtasks x trainable values) beyond which a projection is used: 2 GiB in fp32.
EXACT_VALUES = 1 << 29
DEFAULT_DIM = 8192
# Values of exact features (rows x trainable values) beyond which they are projected: 1 GiB in fp64.
EXACT_FEATURES = 1 << 27
_NO_GRADIENT = "no row of subtask {} of the target has a finite gradient; has training diverged?"


def is_exact(engine: BatchGradients, subtasks: int, proj_dim: int | None) -> bool:
    return proj_dim is None and subtasks * engine.sites.values <= EXACT_VALUES


def alignment(
    rows: ScoringRows,
    target: ScoringRows,
    subtasks: Sequence[Int64[np.ndarray, " indices"]],
    engine: BatchGradients,
    target_engine: BatchGradients,
    *,
    proj_dim: int | None = None,
    seed: int = 0,
) -> Float64[np.ndarray, "rows subtasks"]:
    """Alignments of rows with subtasks; NaN for rows without a gradient.

    Memory beyond the model's own: K x P values for exact vectors, or K x proj_dim.

    Args:
        subtasks: Indices into `target`, one array per subtask.
        engine: For the rows.
        target_engine: For the target, over the same parameters. The directions of the two differ.
    """
    with isolated(engine.model):
        if is_exact(target_engine, len(subtasks), proj_dim):
            vectors = exact_targets(target, subtasks, target_engine)
            return over_rows(rows, lambda batch: _cosines(*engine.dots(batch, vectors)), "gradients")
        dim = proj_dim or DEFAULT_DIM
        projection = Projection(target_engine.names, dim, seed, formed=engine.direction is not None)
        features = over_rows(
            target, lambda batch: _normalised(target_engine.features(batch, projection)), "target gradients"
        )
        means = np.stack([_mean(features[indices], k) for k, indices in enumerate(subtasks)])
        aim = torch.as_tensor(means, dtype=torch.float32, device=rows.device)
        return over_rows(rows, lambda batch: _normalised(engine.features(batch, projection)) @ aim.T, "gradients")


def interaction(
    rows: ScoringRows,
    target: ScoringRows,
    engine: BatchGradients,
    target_engine: BatchGradients,
    projection: Projection | Concatenation,
) -> Float64[np.ndarray, "rows 1+rows"]:
    """Inner products of gradients. Keeps the features of all rows at once.

    Row i holds <g_i, mean gradient of the target>, then <g_i, g_j> for every j. It is NaN for an i without a gradient,
    and 0 for a j without one.
    """
    with isolated(engine.model):
        aim = over_rows(target, lambda batch: target_engine.features(batch, projection), "target gradients")
        features = over_rows(rows, lambda batch: engine.features(batch, projection), "gradients")
    known = np.isfinite(features).all(axis=1)
    mean, filled = _mean(aim, 0), np.where(known[:, None], features, 0.0)
    out = np.concatenate([(filled @ mean)[:, None], filled @ filled.T], axis=1)
    out[~known] = np.nan
    return out


def exact_targets(
    target: ScoringRows, subtasks: Sequence[Int64[np.ndarray, " indices"]], engine: BatchGradients
) -> Targets:
    """For each subtask the mean of its rows' unit gradients, equal on every rank."""
    # One row may have more tokens than there is room for; then the pass is made twice, on every rank.
    room = engine.tokens_at_once(target.device)
    at_once = len(target) == 0 or int(target.lengths.max()) <= room
    target = replace(target, batch_tokens=min(target.batch_tokens, room)) if at_once else target
    counts = torch.zeros(len(subtasks), dtype=torch.int64, device=target.device)

    def add(batch: Any, k: int, own: Int64[np.ndarray, " rows"] | None, totals: Any) -> None:
        counts[k] += engine.add_units(batch, totals, at_once=at_once, dummy=own is None).sum()

    found = _sums(target, subtasks, engine, "target gradients", add)
    add_over_ranks(counts)
    for k, count in enumerate(counts.tolist()):
        if not count:
            raise DataflexError(_NO_GRADIENT.format(k))
        for total in found.values():
            total[k] /= count
    return found


def _sums(
    rows: ScoringRows,
    groups: Sequence[Int64[np.ndarray, " indices"]],
    engine: BatchGradients,
    name: str,
    add: Callable[[Any, int, Int64[np.ndarray, " rows"] | None, Any], None],
) -> Targets:
    """For each group k what `add` adds to totals for its batches, equal on every rank.

    Args:
        name: Of the pass.
        add: Takes (batch, k, indices within the group or None for a dummy, totals by parameter).
    """
    device = rows.device
    kind = torch.float32 if device.type == "mps" else torch.float64
    found: Targets = {
        p: torch.empty((len(groups), n), dtype=torch.float32, device=device) for p, n in engine.sizes.items()
    }
    with passing(name, sum(map(len, groups))):
        for k, indices in enumerate(groups):
            totals = {p: torch.zeros(n, dtype=kind, device=device) for p, n in engine.sizes.items()}
            for own, batch in batches_of(rows.subset(indices), name):
                add(batch, k, own, totals)
            for p, total in totals.items():
                add_over_ranks(total)
                found[p][k] = total
    return found


def group_products(
    rows: ScoringRows,
    groups: Sequence[Int64[np.ndarray, " indices"]],
    engine: BatchGradients,
    *,
    proj_dim: int | None = None,
    seed: int = 0,
) -> Float64[np.ndarray, "groups groups"]:
    """<g_i, g_j>, g_k the mean gradient of the rows at indices `groups[k]`; exact where K gradients fit."""
    with isolated(engine.model):
        if is_exact(engine, len(groups), proj_dim):

            def add(batch: Any, k: int, own: Int64[np.ndarray, " rows"] | None, totals: Any) -> None:
                weight = np.nan if own is None else 1.0 / len(groups[k])
                engine.add_weighted(batch, torch.full((row_count(batch),), weight, device=rows.device), totals)

            means = _sums(rows, groups, engine, "mean gradients", add)
            return np.asarray(sum((m.double() @ m.double().T).cpu().numpy() for m in means.values()))
        projection = Projection(engine.names, proj_dim or DEFAULT_DIM, seed, formed=engine.direction is not None)
        features = over_rows(rows, lambda batch: engine.features(batch, projection), "gradients")
    vectors = np.stack([_mean(features[indices], k) for k, indices in enumerate(groups)])
    return np.asarray(vectors @ vectors.T)


def _cosines(dots: Float[Tensor, "rows subtasks"], norms: Float[Tensor, " rows"]) -> Float[Tensor, "rows subtasks"]:
    """A row whose gradient is zero has no direction, and no value."""
    return dots / torch.where(norms > 0, norms, torch.nan)[:, None]


def _normalised(vectors: Float[Tensor, "rows dims"]) -> Float[Tensor, "rows dims"]:
    norms = vectors.norm(dim=1, keepdim=True)
    return vectors / torch.where(norms > 0, norms, torch.nan)


def _mean(features: Float64[np.ndarray, "rows dims"], k: int) -> Float64[np.ndarray, " dims"]:
    usable = np.isfinite(features).all(axis=1)
    if not usable.any():
        raise DataflexError(_NO_GRADIENT.format(k))
    return features[usable].mean(axis=0)
