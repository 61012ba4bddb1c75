"""Clusters of vectors: their centres, the nearest centre of a vector, and names from the words that are typical of each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count as counting
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float32, Int, Int32

_ROUNDS = 100  # of Lloyd's algorithm, at most
_BLOCK = 1 << 16  # vectors that are compared with the centres at once
_WORD = r"(?u)\b[^\W\d_]{3,20}\b"
_WORDS = 3  # of a name
_VOCABULARY = 50_000  # the most frequent words, among which a name is looked for


def centres_of(
    vectors: Float32[np.ndarray, "rows dims"], count: int, seed: int
) -> tuple[Float32[np.ndarray, "k dims"], Int32[np.ndarray, " rows"]]:
    """The centres of k clusters, k <= count, and the cluster of each row. Fewer than `count` where fewer rows differ.

    Lloyd's k-means over all rows (Lloyd, 1982), from centres drawn by k-means++ (Arthur and Vassilvitskii, SODA 2007).
    One thread computes, so that sums have one order: the same rows and seed give the same centres.
    """
    import warnings

    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of equal rows, which the caller sees in k
        found = KMeans(count, n_init=1, max_iter=_ROUNDS, random_state=seed).fit(vectors)
    present, codes = np.unique(found.labels_, return_inverse=True)
    return found.cluster_centers_[present].astype(np.float32), codes.astype(np.int32)


def nearest_centre(
    vectors: Float32[np.ndarray, "rows dims"], centres: Float32[np.ndarray, "k dims"]
) -> Int32[np.ndarray, " rows"]:
    """The nearest centre of each vector by Euclidean distance; of two that are equally near, the first."""
    out = np.empty(len(vectors), dtype=np.int32)
    half = (centres.astype(np.float64) ** 2).sum(axis=1) / 2
    for start in range(0, len(vectors), _BLOCK):
        block = vectors[start : start + _BLOCK].astype(np.float64)
        out[start : start + _BLOCK] = (block @ centres.T.astype(np.float64) - half).argmax(axis=1)
    return out


def cluster_names(texts: Sequence[str], codes: Int[np.ndarray, " rows"], count: int) -> tuple[str, ...]:
    """A name for each of `count` clusters, all different: its three most typical words, as `loop-python-list`.

    With p the share of the rows of a cluster that have a word, and q that of all rows, a word counts p log(p / q): its part
    in the Kullback-Leibler divergence. Words that are frequent everywhere count nothing, in any language.

    Args:
        texts: One for each row.
        codes: The cluster of each row, in [0, count).
    """
    shares, words = _shares(texts, codes, count)
    sizes = np.bincount(codes, minlength=count)
    names = [""] * count
    for cluster in np.argsort(-sizes, kind="stable").tolist():
        names[cluster] = _free_name(_typical(cluster, shares, sizes, words), names)
    return tuple(names)


def _free_name(words: Sequence[str], taken: Sequence[str]) -> str:
    """As many words as make a name that is not taken; where all of them do not, a number after the name."""
    for length in range(min(_WORDS, len(words)), len(words) + 1):
        if length and (name := "-".join(words[:length])) not in taken:
            return name
    first = "-".join(words[:_WORDS]) or "cluster"
    return next(name for i in counting(1) if (name := first if i == 1 else f"{first}-{i}") not in taken)


def _shares(
    texts: Sequence[str], codes: Int[np.ndarray, " rows"], count: int
) -> tuple[Float32[np.ndarray, "k words"], list[str]]:
    """Of each word, the rows of each cluster that have it; the words, in their order."""
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import CountVectorizer

    try:
        counter = CountVectorizer(binary=True, token_pattern=_WORD, max_features=_VOCABULARY)
        present = counter.fit_transform(texts)
    except ValueError:  # no row has a word
        return np.zeros((count, 0), dtype=np.float32), []
    rows = len(texts)
    members = csr_matrix((np.ones(rows, dtype=np.float32), (codes, np.arange(rows))), shape=(count, rows))
    return (members @ present).toarray().astype(np.float32), counter.get_feature_names_out().tolist()


def _typical(
    cluster: int, having: Float32[np.ndarray, "k words"], sizes: Int[np.ndarray, " k"], words: Sequence[str]
) -> list[str]:
    """The most typical words of a cluster, the first one foremost, at most ten. having: rows of each cluster with a word."""
    if not words:
        return []
    p = having[cluster].astype(np.float64) / max(sizes[cluster], 1)
    q = having.sum(axis=0, dtype=np.float64) / max(sizes.sum(), 1)
    score = np.where(p > 0, p * np.log(np.maximum(p, 1e-300) / np.maximum(q, 1e-300)), 0.0)
    if not (score > 0).any():  # as of the only cluster
        score = p
    order = np.lexsort((np.arange(len(words)), -score))[:10]
    return [words[i] for i in order if score[i] > 0]
