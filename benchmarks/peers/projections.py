"""Rank correlation of projected scores with the exact ones, for several shapes of the projection of a layer.

A layer's gradient G becomes R^T G Q, with random signs R [m, r] and Q [n, q]. Blocks of r q values hold the layers, the largest
first, each where the fewest values are so far. bergson's projection is 16 x 16, with a block for each layer.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # there is another gradients.py

import numpy as np  # noqa: E402
from gradients import spearman, tokenized  # noqa: E402
from gradients_ours import Side  # noqa: E402
from measuring import of_lengths  # noqa: E402
from runner import Command, table  # noqa: E402

_SHAPES = ((16, 16), (32, 32), (32, 64), (64, 64), (64, 128))
_LENGTHS = (8192, 53_760)


@dataclass(frozen=True)
class Way:
    """One shape of the projection of a layer, in a vector of some length."""

    length: int
    r: int
    q: int
    blocks: int


class Projected:
    """The features of a batch by many ways and seeds at once, from one backward pass."""

    def __init__(self, engine: Any, seeds: int) -> None:
        self.engine, self.seeds, self._known = engine, seeds, dict[Any, Any]()
        layers = len(engine.names)
        shapes = [(length, r, q, min(layers, length // (r * q))) for length in _LENGTHS for r, q in _SHAPES]
        self.ways = [Way(*shape) for shape in shapes if shape[3]]
        self._blocks = {way.blocks: self._evenly(way.blocks) for way in self.ways}

    def _evenly(self, blocks: int) -> dict[Any, int]:
        values, found = [0] * blocks, {}
        for parameter in sorted(self.engine.names, key=lambda p: -p.numel()):
            found[parameter] = values.index(min(values))
            values[found[parameter]] += parameter.numel()
        return found

    def _signs(self, parameter: Any, side: str, size: int, columns: int, seed: int) -> Any:
        import torch

        key = (parameter, side, columns, seed)
        if key not in self._known:
            text = f"{seed}{self.engine.names[parameter]}{side}{columns}".encode()
            number = int.from_bytes(hashlib.sha256(text).digest()[:7], "little")
            drawn = torch.randint(2, (size, columns), generator=torch.Generator().manual_seed(number), dtype=torch.int8)
            self._known[key] = drawn * 2 - 1
        return self._known[key].float() / columns**0.5

    def features(self, batch: Any, exact: Any = None) -> tuple[dict[tuple[Way, int], Any], Any]:
        """Unit vectors [B, length] by way and seed, and with the exact targets the exact scores [B]."""
        import torch

        from dataflex.signals.gradients.factors import Factors, dots_and_norms

        rows = len(batch["labels"])
        out = {(w, s): torch.zeros(rows, w.blocks * w.r * w.q) for w in self.ways for s in range(self.seeds)}
        dots, squares = torch.zeros(rows), torch.zeros(rows)

        def consume(parameter: Any, factors: Factors) -> None:
            pair = factors.factored()
            assert pair is not None
            (left, right), (m, n) = pair, factors.shape
            if exact is not None:
                some, own = dots_and_norms(factors, exact[parameter])
                dots.add_(some[:, 0])
                squares.add_(own)
            for seed in range(self.seeds):
                lefts = {r: left @ self._signs(parameter, "left", m, r, seed) for r in {r for r, _ in _SHAPES}}
                rights = {q: right @ self._signs(parameter, "right", n, q, seed) for q in {q for _, q in _SHAPES}}
                parts = {(r, q): torch.bmm(lefts[r].transpose(1, 2), rights[q]).flatten(1) for r, q in _SHAPES}
                for way in self.ways:
                    begin = self._blocks[way.blocks][parameter] * way.r * way.q
                    out[way, seed][:, begin : begin + way.r * way.q] += parts[way.r, way.q]

        self.engine._run(batch, consume)
        return {key: v / v.norm(dim=1, keepdim=True) for key, v in out.items()}, dots / squares.sqrt()


def main() -> None:
    command = Command(
        __file__, __doc__, ("cpu",), "data", "work", "rows", "threads", "seeds",
        model={"required": True, "help": "folder of a pretrained model with a chat template"},
        dataset={"default": "gsm8k_train", "help": "data set of the pool (gsm8k_train)"},
        target={"default": "gsm8k_test", "help": "data set of the target, a quarter as many rows (gsm8k_test)"},
    )  # fmt: skip
    given = command.given

    import torch

    from dataflex.signals.batching import batches_of
    from dataflex.signals.gradients.alignment import exact_targets
    from dataflex.signals.gradients.passes import BatchGradients

    torch.set_num_threads(given.threads)
    count = given.rows or 64
    pool = tokenized(given.model, given.data / f"{given.dataset}.jsonl", count)
    target = tokenized(given.model, given.data / f"{given.target}.jsonl", max(1, count // 4))
    given.work.mkdir(parents=True, exist_ok=True)
    (given.work / "rows.json").write_text(json.dumps({"pool": pool, "target": target}), encoding="utf-8")
    side = Side(given.model, given.work)
    engine = BatchGradients(side.model("fp32"))
    ways = Projected(engine, given.seeds)
    aims, rows = side.rows(target), side.rows(pool)
    exact = exact_targets(aims, [np.arange(len(target))], engine)
    means: dict[Any, Any] = {}
    for _, batch in batches_of(aims, "target"):
        for key, vectors in ways.features(batch)[0].items():
            means[key] = means.get(key, 0) + vectors.sum(dim=0) / len(target)
    scores, wanted = {key: np.zeros(len(pool)) for key in means}, np.zeros(len(pool))
    for own, batch in batches_of(rows, "pool"):
        found, wanted[own] = ways.features(batch, exact)
        for key, vectors in found.items():
            scores[key][own] = vectors @ means[key]
        print(f"{np.count_nonzero(wanted)} of {len(pool)} rows", flush=True)
    lines = []
    for way in ways.ways:
        some = [spearman(scores[way, seed], wanted) for seed in range(given.seeds)]
        cells = [f"{np.mean(some):.3f}", f"{min(some):.3f} .. {max(some):.3f}"]
        lines.append([f"{way.r} x {way.q}", f"{way.length:,}", str(way.blocks), *cells])
    about = f"Pool: {of_lengths([len(ids) for ids, _ in pool])}. Target: {of_lengths([len(ids) for ids, _ in target])}."
    header = ["shape", "values", "blocks", "rank corr.", "of the seeds"]
    body = f"{about}\n\n{table(header, lines)}"
    command.publish("Shapes of a projection", body, threads=given.threads, model=Path(given.model).name)


if __name__ == "__main__":
    main()
