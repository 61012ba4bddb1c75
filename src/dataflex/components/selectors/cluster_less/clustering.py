"""Ways to cut a set of vectors into clusters."""

from __future__ import annotations

from math import ceil, log2

import numpy as np

# Every accepted name -> the method it stands for.
METHODS = {
    "kmeans": "kmeans", "euclidean_kmeans": "kmeans",
    "spherical_kmeans": "spherical", "cosine_kmeans": "spherical",
    "farthest_first": "farthest", "kcenter": "farthest", "k_center": "farthest",
    "random_projection_lsh": "lsh", "lsh": "lsh", "rp_lsh": "lsh",
    "random_partition": "random", "random": "random",
}  # fmt: skip
# Beyond this many rows k-means sees a batch of them at a time.
_WHOLE = 20_000


def cluster(
    vectors: np.ndarray, count: int, method: str, *, seed: int, iterations: int = 20, bits: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Cluster of each row, int64 [N] in [0, count), and its distance to the cluster's centroid, float64 [N].

    kmeans, and the same on unit vectors; farthest: each next centre is the row farthest from all centres before; lsh: the
    signs of `bits` random projections (by default as many as `count` clusters need), so at most 2^bits clusters; random: equal
    parts. Empty clusters may occur.
    """
    rng = np.random.default_rng(seed)
    kind, rows = METHODS[method], np.asarray(vectors, dtype=np.float64)
    if kind == "spherical":
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        rows = rows / np.where(norms > 0, norms, 1.0)
    if kind in ("kmeans", "spherical"):
        owner = _kmeans(rows, count, seed, iterations)
    elif kind == "farthest":
        owner = _farthest_first(rows, count, int(rng.integers(len(rows))))
    elif kind == "lsh":
        planes = rng.standard_normal((rows.shape[1], bits or max(1, ceil(log2(count)))))
        codes = ((rows - rows.mean(axis=0)) @ planes > 0) @ (1 << np.arange(planes.shape[1], dtype=np.int64))
        owner = np.unique(codes, return_inverse=True)[1]
    else:
        owner = rng.permutation(len(rows)) % count
    sums = np.zeros((int(owner.max()) + 1, rows.shape[1]))
    np.add.at(sums, owner, rows)
    centroids = sums / np.maximum(np.bincount(owner), 1)[:, None]
    return owner, np.linalg.norm(rows - centroids[owner], axis=1)


def _kmeans(rows: np.ndarray, count: int, seed: int, iterations: int) -> np.ndarray:
    from sklearn.cluster import KMeans, MiniBatchKMeans

    kind = KMeans if len(rows) <= _WHOLE else MiniBatchKMeans
    return kind(n_clusters=count, n_init=1, max_iter=iterations, random_state=seed).fit(rows).labels_.astype(np.int64)


def _farthest_first(rows: np.ndarray, count: int, first: int) -> np.ndarray:
    owner = np.zeros(len(rows), dtype=np.int64)
    nearest = np.linalg.norm(rows - rows[first], axis=1)
    for k in range(1, count):
        distance = np.linalg.norm(rows - rows[int(nearest.argmax())], axis=1)
        closer = distance < nearest
        owner[closer], nearest[closer] = k, distance[closer]
    return owner
