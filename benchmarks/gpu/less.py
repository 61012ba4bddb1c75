"""Tokens scored per second by the gradients of LESS on models of real shapes, in bf16, and the memory that takes.

Every way sees the same batches in the same random order, for a slice of time each: the signal, exact and projected, with Adam's
directions and with plain gradients; a loop with a backward pass per row, alone and with a dense projection by random signs that
are made a block at a time, as many rows at once as the code of LESS takes; and plain forward and backward passes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import common
import numpy as np
import shapes

DIM = 8192
TOGETHER = 16  # rows that the loop projects at once
PLAIN = "plain forward and backward"
_BLOCK = 1 << 16  # values whose random signs are there at once


@dataclass
class Found:
    """Of one way: tokens per second; GiB at its peak, and of these what was not in use before; by how much its cosines are off
    those of the exact signal; or why it has none of these."""

    rate: float = float("nan")
    peak: float = float("nan")
    beyond: float = float("nan")
    apart: float = float("nan")
    why: str = ""


@dataclass(frozen=True)
class Sizes:
    """rows: of the pool, as many as the time allows are scored. budget: padded tokens of a batch. rank: of LoRA."""

    rows: int
    targets: int
    shortest: int
    longest: int
    budget: int
    rank: int


class Skipped(Exception):
    """Why a way is left out, in a few words."""


class Bench:
    def __init__(self, shape: shapes.Shape, lora: bool, sizes: Sizes, device: str) -> None:
        import torch

        from dataflex.data.rows import RowCollator
        from dataflex.signals.batching import ScoringRows, token_batches
        from dataflex.signals.gradients.directions import AdamDirection, optimizer_moments
        from dataflex.signals.gradients.passes import BatchGradients

        self.torch, self.device = torch, torch.device(device)
        model = shapes.build(shape, device)
        self.model = (shapes.with_lora(model, sizes.rank) if lora else model).eval()
        self.model.config.use_cache = False
        self.size = sum(p.numel() for p in self.model.parameters() if p.requires_grad)

        def prepare(batch: Any) -> Any:
            return {k: v.to(self.device) for k, v in batch.items() if k != "dataflex_sample_ids"}

        def pool(count: int, seed: int) -> ScoringRows:
            rows = shapes.random_rows(count, sizes.shortest, sizes.longest, shape.vocabulary, seed)
            return ScoringRows(
                rows, np.arange(count), rows.lengths(), sizes.budget, RowCollator(shapes.padded), prepare, self.device
            )

        self.pool, self.target = pool(sizes.rows, 0), pool(sizes.targets, 1)
        batches = token_batches(self.pool.lengths, sizes.budget)
        order = np.random.default_rng(0).permutation(len(batches))
        self.batches = [batches[i] for i in order]
        self.engine = BatchGradients(self.model)
        self.parameters = list(self.engine.names)
        optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-6)
        self.plain(self.batch(self.batches[0]), None, keep=True)
        optimizer.step()  # so that there are moments
        optimizer.zero_grad(set_to_none=True)
        self.adam = AdamDirection(optimizer_moments(optimizer))
        self.engines = {"sgd": self.engine, "adam": BatchGradients(self.model, direction=self.adam)}
        self._targets: dict[str, Any] = {}

    def batch(self, places: np.ndarray) -> Any:
        return self.pool.prepare(self.pool.collate(self.pool.rows.__getitems__(places.tolist())))

    # -- the ways: batch, its rows -> cosines, or nothing ------------------------------------------------------------

    def plain(self, batch: Any, _: Any, keep: bool = False) -> None:
        with self.torch.enable_grad():
            self.model(**batch).loss.backward()
        if not keep:
            self.model.zero_grad(set_to_none=True)

    def exact(self, kind: str) -> Callable[[Any, Any], Any]:
        from dataflex.signals.gradients.alignment import EXACT_VALUES, exact_targets, is_exact

        if not is_exact(self.engine, 1, None):
            gib = 4 * self.engine.sites.values / 2**30
            limit = 4 * EXACT_VALUES / 2**30
            raise Skipped(f"target vector of {gib:.1f} GiB, a run projects beyond {limit:.0f}")
        if "exact" not in self._targets:
            self._targets["exact"] = exact_targets(self.target, [np.arange(len(self.target))], self.engine)

        def way(batch: Any, _: Any) -> Any:
            dots, norms = self.engines[kind].dots(batch, self._targets["exact"])
            return dots[:, 0] / norms

        return way

    def projected(self, kind: str) -> Callable[[Any, Any], Any]:
        from dataflex.signals.batching import over_rows
        from dataflex.signals.gradients.projection import Projection

        projection = Projection(self.engine.names, DIM, 0, formed=kind == "adam")
        features = over_rows(self.target, lambda batch: _unit(self.engine.features(batch, projection)), "target")
        aim = self.torch.as_tensor(features.mean(axis=0), dtype=self.torch.float32, device=self.device)

        def way(batch: Any, _: Any) -> Any:
            return _unit(self.engines[kind].features(batch, projection)) @ aim

        return way

    def gradient(self, row: Any, kind: str) -> Any:
        """The flat direction of one row, float32."""
        self.plain(row, None, keep=True)
        flat = []
        for p in self.parameters:
            g = p.grad.flatten().float()
            flat.append(self.adam.of(p)(g[None])[0] if kind == "adam" else g)
        self.model.zero_grad(set_to_none=True)
        return self.torch.cat(flat)

    def loop(self, kind: str) -> Callable[[Any, Any], Any]:
        self.exact(kind)
        aim = self.torch.cat([self._targets["exact"][p][0] for p in self.parameters])

        def way(_: Any, rows: Any) -> Any:
            found = [self.gradient(row, kind) for row in rows]
            return self.torch.stack([(g @ aim) / g.norm() for g in found])

        return way

    def loop_projected(self, kind: str) -> Callable[[Any, Any], Any]:
        if 4 * TOGETHER * self.engine.sites.values > 16 << 30:
            raise Skipped(f"{TOGETHER} gradients of {4 * self.engine.sites.values / 2**30:.1f} GiB")

        def way(_: Any, rows: Any) -> Any:
            self._project(self.torch.stack([self.gradient(row, kind) for row in rows]))

        return way

    def _project(self, gradients: Any) -> Any:
        """[n, numel] by a matrix of random signs [numel, DIM] that is never there as a whole."""
        torch = self.torch
        generator = torch.Generator(device=self.device).manual_seed(0)
        out = torch.zeros((len(gradients), DIM), dtype=torch.float32, device=self.device)
        half = torch.bfloat16
        for begin in range(0, gradients.shape[1], _BLOCK):
            part = gradients[:, begin : begin + _BLOCK].to(half)
            shape = (part.shape[1], DIM)
            signs = torch.randint(2, shape, generator=generator, device=self.device, dtype=torch.int8).to(half)
            out += (part @ signs.mul_(2).sub_(1)).float()
        return out

    # -- measuring ---------------------------------------------------------------------------------------------------

    def ways(self) -> Iterator[tuple[str, Callable[[], Callable[[Any, Any], Any]], int]]:
        """Names, what makes a way ready, and how many rows it is given one by one at a time (0: a batch)."""
        yield PLAIN, lambda: self.plain, 0
        for kind in ("sgd", "adam"):
            yield f"{kind}, exact", lambda k=kind: self.exact(k), 0
            yield f"{kind}, projected to {DIM}", lambda k=kind: self.projected(k), 0
            yield f"{kind}, loop", lambda k=kind: self.loop(k), 1
            yield f"{kind}, loop, projected to {DIM}", lambda k=kind: self.loop_projected(k), TOGETHER

    def now(self) -> float:
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()
        return time.perf_counter()

    def portions(self, alone: int) -> Iterator[np.ndarray]:
        for places in self.batches:
            for begin in range(0, len(places), alone or len(places)):
                yield places[begin : begin + (alone or len(places))]

    def timed(self, way: Callable[[Any, Any], Any], alone: int, seconds: float) -> tuple[float, dict[int, float]]:
        """Tokens per second, and the cosines of the rows that there was time for."""
        tokens, spent, found = 0, 0.0, {}
        for turn, places in enumerate(self.portions(alone)):
            batch = self.batch(places) if not alone else None
            rows = [self.batch(places[i : i + 1]) for i in range(len(places))] if alone else None
            begin = self.now()
            values = way(batch, rows)
            took = self.now() - begin
            if values is not None:
                found |= dict(zip(places.tolist(), values.float().tolist(), strict=True))
            if turn or alone == TOGETHER:  # the first one sets things up; that of a projection takes long as it is
                tokens, spent = tokens + int(self.pool.lengths[places].sum()), spent + took
            if spent > seconds:
                break
        return tokens / spent if spent else float("nan"), found

    def memory(self) -> float:
        """GiB in use; the peak is counted anew from here."""
        if self.device.type != "cuda":
            return common.forget_peak() / 2**20
        self.torch.cuda.empty_cache()
        self.torch.cuda.reset_peak_memory_stats()
        return self.torch.cuda.memory_allocated() / 2**30

    def peak(self) -> float:
        if self.device.type != "cuda":
            return common.in_use("VmHWM") / 2**20
        return self.torch.cuda.max_memory_allocated() / 2**30


def measure(shape: str, lora: bool, sizes: Sizes, device: str, until: float) -> tuple[str, dict[str, Found]]:
    """The name of a model, and what was found of each way. until: the time (time.time) by which it should be done."""
    import torch

    from dataflex.signals.isolation import isolated

    label, large = name_of(shape, lora, sizes), shapes.SHAPES[shape].hidden > shapes.SHAPES["1.5B"].hidden
    if large:  # what a backward pass keeps of more tokens would not fit
        sizes = replace(sizes, budget=sizes.budget // 2)
    if not lora and large:
        return label, {
            PLAIN: Found(why="the vector of a target and Adam's moments do not fit beside model and gradients")
        }
    try:
        bench = Bench(shapes.SHAPES[shape], lora, sizes, device)
    except torch.OutOfMemoryError:
        return label, {PLAIN: Found(why="out of memory")}
    ways, found, cosines = list(bench.ways()), {}, {}
    label += f", {bench.size / 1e6:.{0 if bench.size > 1e7 else 2}f}M"
    with torch.autocast(device, dtype=torch.bfloat16), isolated(bench.model):
        for place, (name, ready, alone) in enumerate(ways):
            left = until - time.time()
            found[name] = one = Found()
            way = None
            try:
                if left < 0 and place:
                    raise Skipped("no time left")
                before = bench.memory()
                way = ready()
                one.rate, cosines[name] = bench.timed(way, alone, max(0.0, left) / (len(ways) - place) / 2)
                one.peak = bench.peak()
                one.beyond, one.apart = one.peak - before, _apart(name, cosines)
            except Skipped as reason:
                one.why = str(reason)
            except torch.OutOfMemoryError:
                one.why = "out of memory"
                bench.model.zero_grad(set_to_none=True)
            print(f"{label}: {name}: {one}", flush=True)
    return label, found


def name_of(shape: str, lora: bool, sizes: Sizes) -> str:
    return f"{shape} {f'LoRA {sizes.rank}' if lora else 'full'}"


def tables(models: list[tuple[str, dict[str, Found]]]) -> str:
    """Ways down, models across; and what there is no figure of."""
    ways = list(dict.fromkeys(way for _, found in models for way in found))
    notes = [f"- {model}: {way}: {one.why}" for model, found in models for way, one in found.items() if one.why]

    def table(what: str, cell: Callable[[Found, Found], str]) -> str:
        lines = []
        for way in ways:
            cells = []
            for _, found in models:
                text = cell(found[way], found[PLAIN]) if way in found and not found[way].why else "-"
                cells.append("-" if "nan" in text else text)
            lines.append([way, *cells])
        return common.table((what, *(model for model, _ in models)), lines)

    parts = [
        table("tokens/s (of plain passes)", lambda one, plain: f"{one.rate:.0f} ({one.rate / plain.rate:.2f})"),
        table("peak GiB (not in use before)", lambda one, _: f"{one.peak:.2f} ({one.beyond:.2f})"),
        table("cosine off the exact signal's by", lambda one, _: f"{one.apart:.1e}"),
    ]
    return "\n\n".join([*parts, *(["Without figures:\n\n" + "\n".join(notes)] if notes else [])])


def _unit(vectors: Any) -> Any:
    return vectors / vectors.norm(dim=1, keepdim=True)


def _apart(name: str, cosines: dict[str, dict[int, float]]) -> float:
    """By how much the cosines of a way are off those of the exact signal, at most, on rows that both have."""
    exact = cosines.get(f"{name.split(',')[0]}, exact", {})
    both = [i for i in cosines[name] if i in exact]
    return (
        max((abs(cosines[name][i] - exact[i]) for i in both), default=float("nan"))
        if "exact" not in name
        else float("nan")
    )


def budget_of(gpu: bool) -> Sizes:
    if gpu:
        return Sizes(rows=2000, targets=16, shortest=128, longest=2048, budget=8192, rank=128)
    return Sizes(rows=60, targets=4, shortest=8, longest=60, budget=256, rank=4)
