"""COINCIDE: few rows of every concept and skill, more of those that help others (Lee et al., arXiv 2406.10995).

1. states            of some layers, over pictures and text apart                    signal `layer_embedding`
2. clusters          of rows with like states: concepts and skills                     `clusters`
3. transferability   of a cluster: how like it is to the others                        `clusters`
4. density           of a cluster: how like its rows are                               `clusters`
5. shares            of the budget: more for clusters that transfer and are diverse    `taking`
6. representatives   of a cluster: rows whose distribution is that of the cluster      `taking`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import ClassVar, Literal

import numpy as np

from dataflex.components.contexts import Selection, SelectionContext, State
from dataflex.components.contracts import Selector
from dataflex.components.paper import Paper
from dataflex.components.requests import LayerEmbedding, Request
from dataflex.components.selectors.coincide.clusters import (
    density,
    normed,
    spherical_k_means,
    sums,
    transferability,
)
from dataflex.components.selectors.coincide.taking import counts_at_once, counts_in_turn, representatives

_ROWS = 66  # rows of a cluster where their number is not given: 665 thousand in 10000, as in the paper
_ALIKE = 0.9  # the authors' code leaves clusters out whose centroids have a larger cosine


@dataclass(frozen=True, kw_only=True)
class CoincideSelector(Selector):
    """Few rows of every cluster of like rows, more of clusters that help others (COINCIDE).

    A row is represented by the outputs of attention in M layers, averaged over its picture tokens and over its text tokens,
    tanh of each, length one each: u, of 2 M parts. Rows are clustered by the direction of u. Of cluster i

        P_i  is in proportion to  exp(S_i / (temperature D_i))

    of the budget is taken: S_i is the mean cosine of its centroid with the others, D_i the mean of exp(-|u_p - u_q|^2 / 2)
    over pairs of its rows. Within a cluster, rows are taken one by one, each so that the maximum mean discrepancy between
    the cluster and the rows taken is least. There is no target, and there are no scores. Rows of text alone are represented
    by their text.

    Departures:

    Compared with the authors' program (`extract_embed.py`, `clustering.py`, `cluster_transferability.py`,
    `cluster_wise_prune.py`): for the same vectors and clusters the choice is the same, but that what is left of the budget
    after its last cluster is shared out again; there it is missing. What is different:

    - It embeds with one small model and trains another. Here the model of the run embeds; `dataflex-cli select` with the
      small model makes the data for the larger one ([offline](offline.md)).
    - The clusters: the authors use faiss; here rounds of spherical k-means are exact and do not depend on the machine's
      accelerator.
    - `num_clusters` is in proportion to the rows. Where 10000 is more than there are rows, every row is a cluster of its
      own, and nothing but S decides.
    - `variant: paper` follows the formulas of the paper where they differ from the program, as dataflex 1.1.0 does: S_i over
      all other clusters and all parts of the centroids, where the program takes the parts of the text and leaves out
      clusters above a cosine of 0.9; exp(-|u_p - u_q|^2) over pairs of two rows; and shares by largest remainders, where the
      program serves one cluster after another.
    - dataflex 1.1.0 has hidden states where the paper has outputs of attention, and tanh before the mean; it takes video for
      text, and selects the same rows at every update, since it embeds once.
    """

    num_clusters: int | None = None
    """Clusters; null: one for 66 rows, as in the paper. At most as many as there are rows."""
    temperature: float = 1.0
    """Larger values even the shares out."""
    embedding_layers: tuple[int, ...] | None = None
    """Layers whose attention is read, from 1 on; null: five that cut the model into six parts, as in the paper."""
    clustering_max_iter: int = 50
    """Rounds of k-means at most."""
    variant: Literal["authors", "paper"] = "authors"
    """Whose formulas: those of the authors' program, or of the paper."""
    single_member_density: float = 1.0
    """D of a cluster of one row; for `variant: paper`, whose pairs are of two rows."""
    seed: int = 42
    """Of the clusters."""

    paper: ClassVar[Paper | None] = Paper(
        authors="Lee et al.",
        title="Concept-skill Transferability-based Data Selection for Large Vision-Language Models",
        arxiv="2406.10995",
    )
    retired: ClassVar[Mapping[str, str]] = {
        "cache_dir": "nothing is cached outside the checkpoints",
        "embedding_model_name_or_path": "the model of the run embeds; `dataflex-cli select` with another model makes its data",
        "embedding_model_dtype": "a model computes in its own precision",
        "clustering_batch_size": "embedding batches are built by token budget (scoring_tokens)",
        "clustering_num_workers": "the run's own loader workers are used",
        "clustering_device": "clusters are made on the processor",
        "assignment_chunk_size": "similarities are computed in chunks of a fixed size",
        "density_chunk_size": "distances are computed in chunks of a fixed size",
    }

    def check(self) -> None:
        self.require("num_clusters", self.num_clusters is None or self.num_clusters >= 1, "at least 1")
        self.require("temperature", 0 < self.temperature < np.inf, "positive and finite")
        self.require("clustering_max_iter", self.clustering_max_iter >= 1, "at least 1")
        self.require("single_member_density", 0 < self.single_member_density < np.inf, "positive and finite")
        self.require("seed", 0 <= self.seed < 1 << 32, "between 0 and 4294967295")
        layers = self.embedding_layers
        given = layers is None or (len(layers) > 0 and len(set(layers)) == len(layers) and min(layers) >= 1)
        self.require("embedding_layers", given, "different layers, from 1 on")

    def needs(self) -> frozenset[Request]:
        layers = self.embedding_layers
        return frozenset({LayerEmbedding(layers=None if layers is None else tuple(sorted(layers)))})

    def select(
        self, state: State, signals: Mapping[str, np.ndarray], context: SelectionContext
    ) -> tuple[Selection, State]:
        chosen, clusters = self.coreset(signals["layer_embedding"], context.budget)
        return Selection(chosen, remarks={"clusters": f"{clusters} clusters of {context.rows} rows"}), state

    def coreset(self, states: np.ndarray, budget: int) -> tuple[np.ndarray, int]:
        """Indices of `budget` rows, cluster after cluster, and the number of clusters. states: float32 [rows, 2, values]."""
        rows = normed(states.reshape(len(states), -1))
        count = min(self.num_clusters or ceil(len(rows) / _ROWS), len(rows))
        owner = spherical_k_means(rows, count, seed=self.seed, rounds=self.clustering_max_iter)
        members = [np.flatnonzero(owner == i) for i in np.unique(owner)]
        owner = np.unique(owner, return_inverse=True)[1]
        if self.variant == "authors":
            text = states[:, 1] if states[:, 1].any() else states[:, 0]
            spread, alike, scale, shares = text, _ALIKE, 0.5, counts_in_turn
        else:
            spread, alike, scale, shares = rows, np.inf, 1.0, counts_at_once
        s = transferability(sums(spread, owner, len(members)), alike=alike)
        d = density([rows[i] for i in members], scale, own=self.variant == "authors", alone=self.single_member_density)
        taken = shares(s / (self.temperature * d), np.array([len(i) for i in members]), budget)
        found = [i[representatives(rows[i], n, scale)] for i, n in zip(members, taken.tolist(), strict=True) if n]
        return np.concatenate(found), len(members)
