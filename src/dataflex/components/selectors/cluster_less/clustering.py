"""Ways to cut a set of vectors into clusters: those that dataflex 1.1.0 offers."""

from __future__ import annotations

from math import ceil, log2
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, Float64, Int64

# Every accepted name -> the method it stands for.
METHODS = {
    "kmeans": "kmeans", "euclidean_kmeans": "kmeans",
    "spherical_kmeans": "spherical_kmeans", "cosine_kmeans": "spherical_kmeans",
    "farthest_first": "farthest_first", "kcenter": "farthest_first", "k_center": "farthest_first",
    "random_projection_lsh": "lsh", "lsh": "lsh", "rp_lsh": "lsh",
    "random_partition": "random", "random": "random",
}  # fmt: skip
# Beyond this many rows k-means sees a batch of them at a time: whole rounds over more take minutes.
_WHOLE_ROUNDS = 20_000


def cluster(
    vectors: Float[np.ndarray, "rows dims"],
    count: int,
    method: str,
    *,
    seed: int,
    iterations: int = 20,
    bits: int | None = None,
) -> tuple[Int64[np.ndarray, " rows"], Float64[np.ndarray, " rows"]]:
    """Cluster of each row, in [0, count), and its distance to the mean of the cluster. Empty clusters may occur.

    iterations: of k-means. bits: of lsh, None: as many as `count` clusters need; it makes 2^bits clusters at most.
    """
    kind, rows, rng = METHODS[method], np.asarray(vectors, dtype=np.float64), np.random.default_rng(seed)
    if kind == "spherical_kmeans":
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        rows = rows / np.where(norms > 0, norms, 1.0)
    match kind:
        case "kmeans" | "spherical_kmeans":
            owner = k_means(rows, count, seed, iterations)
        case "farthest_first":
            owner = farthest_first(rows, count, int(rng.integers(len(rows))))
        case "lsh":
            owner = by_signs(rows, bits or max(1, ceil(log2(count))), rng)
        case _:
            owner = rng.permutation(len(rows)) % count
    return owner, distance_to_mean(rows, owner)


def k_means(
    rows: Float64[np.ndarray, "rows dims"], count: int, seed: int, iterations: int
) -> Int64[np.ndarray, " rows"]:
    from sklearn.cluster import KMeans, MiniBatchKMeans

    kind = KMeans if len(rows) <= _WHOLE_ROUNDS else MiniBatchKMeans
    return kind(n_clusters=count, n_init=1, max_iter=iterations, random_state=seed).fit(rows).labels_.astype(np.int64)


def farthest_first(rows: Float64[np.ndarray, "rows dims"], count: int, first: int) -> Int64[np.ndarray, " rows"]:
    """Each next centre is the row farthest from all centres before; rows belong to the nearest centre."""
    owner = np.zeros(len(rows), dtype=np.int64)
    nearest = np.linalg.norm(rows - rows[first], axis=1)
    for k in range(1, count):
        distance = np.linalg.norm(rows - rows[int(nearest.argmax())], axis=1)
        closer = distance < nearest
        owner[closer], nearest[closer] = k, distance[closer]
    return owner


def by_signs(rows: Float64[np.ndarray, "rows dims"], bits: int, rng: np.random.Generator) -> Int64[np.ndarray, " rows"]:
    """Locality-sensitive hashing: rows on the same side of all of `bits` random planes through the mean."""
    planes = rng.standard_normal((rows.shape[1], bits))
    codes = ((rows - rows.mean(axis=0)) @ planes > 0) @ (1 << np.arange(bits, dtype=np.int64))
    return np.unique(codes, return_inverse=True)[1]


def distance_to_mean(
    rows: Float64[np.ndarray, "rows dims"], owner: Int64[np.ndarray, " rows"]
) -> Float64[np.ndarray, " rows"]:
    sums = np.zeros((int(owner.max()) + 1, rows.shape[1]))
    np.add.at(sums, owner, rows)
    means = sums / np.maximum(np.bincount(owner), 1)[:, None]
    return np.linalg.norm(rows - means[owner], axis=1)
