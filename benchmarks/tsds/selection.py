"""The selection step of TSDS against a straightforward implementation of the paper: an inverted-file index and a heap.

Embeddings are unit-norm mixtures of Gaussians, rows and target with mixture weights of their own. Both sides get the same
arrays and threads, and give a probability per row; which goes first alternates from point to point. A third time the rows
are compared with all others (`exact`), which says how far each result is from what the paper defines: total variation.

    python benchmarks/tsds/selection.py             # all points; the largest take minutes
    python benchmarks/tsds/selection.py --write     # and put the table into RESULTS.md beside this file
    python benchmarks/tsds/selection.py --million   # instead: 1M rows, 500 targets, time and peak memory

Needs faiss (pip install faiss-cpu) for the implementation that is compared with.
"""

from __future__ import annotations

import heapq
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import numpy as np
from runner import Command, table

WIDTH, COMPONENTS = 384, 100
PARAMETERS: dict[str, Any] = {"max_K": 5000, "kde_K": 1000, "sigma": 0.75, "alpha": 0.6, "C": 5.0}
# Rows and targets of each point.
SIZES = {
    "tiny": [(1000, 20), (2000, 50)],
    "cpu": [(rows, targets) for rows in (5_000, 20_000, 100_000) for targets in (50, 200, 1000)],
}


def mixture(rows: int, targets: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 [rows, 384] and [targets, 384]: components of unequal weight and spread, some dense, some with few neighbours."""
    rng = np.random.default_rng(seed)
    centres = unit(rng.standard_normal((COMPONENTS, WIDTH), dtype=np.float32))
    spread = rng.uniform(0.3, 1.0, COMPONENTS).astype(np.float32)

    def draw(count: int, weights: np.ndarray) -> np.ndarray:
        out = np.empty((count, WIDTH), dtype=np.float32)
        for start in range(0, count, 100_000):
            part = out[start : start + 100_000]
            kind = rng.choice(COMPONENTS, len(part), p=weights)
            noise = rng.standard_normal(part.shape, dtype=np.float32) / np.sqrt(WIDTH, dtype=np.float32)
            part[:] = unit(centres[kind] + spread[kind, None] * noise)
        return out

    return draw(rows, rng.dirichlet(np.ones(COMPONENTS))), draw(targets, rng.dirichlet(np.full(COMPONENTS, 0.3)))


def unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def with_index(rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The paper with faiss's IVFFlat (sqrt(n) / 2 lists, 10 probed) for both searches, and one heap event after another."""
    limit = len(rows) // 10
    most, around = min(PARAMETERS["max_K"], limit), min(PARAMETERS["kde_K"], limit)
    squares, places = _index(rows).search(targets, most)
    distances, lengths = np.sqrt(np.maximum(squares, 0)), (places >= 0).sum(axis=1)
    found = np.unique(places[places >= 0])
    candidates = np.ascontiguousarray(rows[found])
    near, _ = _index(candidates).search(candidates, around)
    rho = np.full(len(rows), np.nan)
    rho[found] = np.maximum(1 - near / PARAMETERS["sigma"] ** 2, 0).sum(axis=1)

    M, price, gain = len(targets), PARAMETERS["alpha"] / PARAMETERS["C"], (1 - PARAMETERS["alpha"]) * len(targets)
    shares = [1 / rho[places[j, : lengths[j]]] for j in range(M)]
    heap = [(shares[j][0], 0, j) for j in range(M)]
    heapq.heapify(heap)
    travelled = [distances[j, 0] * shares[j][0] for j in range(M)]
    rate, filled, total, s = [0.0] * M, [0] * M, 0.0, 1.0
    while heap:
        s, k, j = heapq.heappop(heap)
        total -= rate[j]
        rate[j] = distances[j, k + 1] * s - travelled[j]
        total += rate[j]
        if price * total >= gain:
            break
        filled[j] = k + 1
        if k + 2 < lengths[j]:
            heapq.heappush(heap, (s + shares[j][k + 1], k + 1, j))
            travelled[j] += distances[j, k + 1] * shares[j][k + 1]
    out = np.zeros(len(rows))
    for j in range(M):
        left = 1 / M
        for k in range(filled[j]):
            out[places[j, k]] += shares[j][k] / (M * s)
            left -= shares[j][k] / (M * s)
        out[places[j, filled[j]]] += max(left, 0)
    return out / out.sum()


def _index(rows: np.ndarray) -> Any:
    import faiss

    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(WIDTH), WIDTH, int(np.sqrt(len(rows))) // 2)
    index.train(rows)
    index.add(rows)
    index.nprobe = 10
    return index


def ours(rows: np.ndarray, targets: np.ndarray, **more: Any) -> np.ndarray:
    from dataflex.components.selectors.tsds import TsdsSelector

    return TsdsSelector(**PARAMETERS, **more).distribution(rows, targets)[0].probabilities


def point(rows: int, targets: int, seed: int, ours_first: bool, read: Callable[[], float]) -> dict[str, Any]:
    data, seconds, results = mixture(rows, targets, seed), {}, {}
    ways = {"index and heap": with_index, "dataflex": ours}
    for name in sorted(ways, key=lambda n: (n == "dataflex") != ours_first):
        begin = read()
        results[name] = ways[name](*data)
        seconds[name] = read() - begin
    exact = ours(*data, exact=True)
    distance = {name: float(np.abs(found - exact).sum() / 2) for name, found in results.items()}
    return {
        "rows": rows, "targets": targets, "reached": int((exact > 0).sum()), "seconds": seconds, "distance": distance,
        "ratio": seconds["index and heap"] / seconds["dataflex"],
    }  # fmt: skip


def million(seed: int) -> str:
    rows, targets = mixture(1_000_000, 500, seed)
    before = _peak()
    begin = time.perf_counter()
    found = ours(rows, targets)
    seconds = time.perf_counter() - begin
    return (
        f"1,000,000 rows, 500 targets, {WIDTH} dimensions: {seconds:.0f} s, {int((found > 0).sum())} rows with a probability;"
        f" peak resident memory {_peak():.1f} GiB, of which {before:.1f} GiB before (embeddings {rows.nbytes / 2**30:.1f} GiB)."
    )


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def compared(sizes: Sequence[tuple[int, int]], seed: int, read: Callable[[], float]) -> str:
    found = []
    for place, (n, m) in enumerate(sizes):
        found.append(point(n, m, seed, bool(place % 2), read))
        print(found[-1], flush=True)
    lines = [
        [
            f"{f['rows']:,} x {f['targets']}", f"{f['reached']:,}", f"{f['seconds']['index and heap']:.2f}",
            f"{f['seconds']['dataflex']:.2f}", f"{f['ratio']:.1f}", f"{f['distance']['index and heap']:.3f}",
            f"{f['distance']['dataflex']:.1e}",
        ]
        for f in found
    ]  # fmt: skip
    header = (
        "rows x targets",
        "reached",
        "index s",
        "dataflex s",
        "ratio",
        "index, from exact",
        "dataflex, from exact",
    )
    ratios = np.array([f["ratio"] for f in found])
    return (
        f"{table(header, lines)}\n\n"
        f"Geometric mean of the ratios {np.exp(np.log(ratios).mean()):.1f}, smallest {ratios.min():.1f}. *Reached*: rows with"
        " a probability above zero. *From exact*: total variation from the result with all pairs compared."
    )


def main() -> None:
    command = Command(
        __file__, __doc__, SIZES, "threads", "processor_time",
        seed={"type": int, "default": 0},
        most={"type": int, "help": "points of at most so many rows"},
        million={"action": "store_true", "help": "1M rows and 500 targets, ours alone"},
    )  # fmt: skip
    given = command.given
    if given.processor_time and given.threads != 1:
        command.parser.error("--processor-time needs --threads 1")
    import faiss
    import torch

    torch.set_num_threads(given.threads)
    faiss.omp_set_num_threads(given.threads)
    ours(*mixture(500, 10, 1))  # imports, and the first call of everything
    with_index(*mixture(500, 10, 1))
    if given.million:
        command.publish("One million rows", million(given.seed), threads=given.threads)
    else:
        read = time.process_time if given.processor_time else time.perf_counter
        sizes = [size for size in SIZES[given.preset] if size[0] <= (given.most or size[0])]
        note = f"; faiss {faiss.__version__}" + (", processor time" if given.processor_time else "")
        title = f"Selection step ({given.preset}{f', up to {given.most:,} rows' if given.most else ''})"
        command.publish(title, compared(sizes, given.seed, read), threads=given.threads, note=note)


if __name__ == "__main__":
    main()
