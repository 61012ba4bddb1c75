"""Tokens scored per second by the gradients of LESS on models of real shapes, in bf16, and the memory that takes.

Every way sees the same batches in the same random order, for a slice of time each: the signal, exact and projected, with Adam's
directions and with plain gradients; a loop with a backward pass per row, alone and with a dense projection by random signs that
are made a block at a time, as many rows at once as the code of LESS takes; and plain forward and backward passes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import shapes
from measuring import forget_peak, in_use, now
from runner import table
from ways import Way, Ways, random_signs

DIM = 8192
BERGSON_SIDE = 16
TOGETHER = 16  # rows that the loop projects at once
PLAIN = "plain forward and backward"
_BLOCK = 1 << 16  # values whose random signs are there at once
_NAN = float("nan")


@dataclass
class Found:
    """Of one way: tokens per second; GiB at its peak, and of these what was not in use before; by how much its cosines are off
    those of the exact signal; or why it has none of these."""

    rate: float = _NAN
    peak: float = _NAN
    beyond: float = _NAN
    apart: float = _NAN
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


SIZES = {
    "cuda": Sizes(rows=2000, targets=16, shortest=128, longest=2048, budget=8192, rank=128),
    "cpu": Sizes(rows=60, targets=4, shortest=8, longest=60, budget=256, rank=4),
}


class Skipped(Exception):
    """Why a way is left out, in a few words."""


class Bench:
    def __init__(self, shape: shapes.Shape, lora: bool, sizes: Sizes, device: str, with_bergson: bool = False) -> None:
        import torch

        from dataflex.signals.batching import token_batches

        self.with_bergson = with_bergson
        self.torch, self.device = torch, torch.device(device)
        model = shapes.build(shape, device)
        self.model = (shapes.with_lora(model, sizes.rank) if lora else model).eval()
        self.model.config.use_cache = False
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.size = sum(p.numel() for p in trained)
        rows = sizes.shortest, sizes.longest, shape.vocabulary
        self.pool = shapes.random_pool(sizes.rows, *rows, 0, sizes.budget, device)
        target = shapes.random_pool(sizes.targets, *rows, 1, sizes.budget, device)
        batches = token_batches(self.pool.lengths, sizes.budget)
        self.batches = [batches[i] for i in np.random.default_rng(0).permutation(len(batches))]
        optimizer = torch.optim.AdamW(trained, lr=1e-6)
        with torch.enable_grad():
            self.model(**self.batch(self.batches[0])).loss.backward()
        optimizer.step()  # so that there are moments
        optimizer.zero_grad(set_to_none=True)
        self.compared = Ways(self.model, optimizer, target)

    def batch(self, places: np.ndarray) -> Any:
        return self.pool.prepare(self.pool.collate(self.pool.rows.__getitems__(places.tolist())))

    # -- the ways ----------------------------------------------------------------------------------------------------

    def exact(self, kind: str) -> Way:
        from dataflex.signals.gradients.alignment import EXACT_VALUES, is_exact

        if not is_exact(self.compared.engine, 1, None):
            gib, limit = (4 * values / 2**30 for values in (self.compared.engine.sites.values, EXACT_VALUES))
            raise Skipped(f"target vector of {gib:.1f} GiB, a run projects beyond {limit:.0f}")
        return self.compared.signal(kind)

    def projected(self, kind: str) -> Way:
        from dataflex.signals.batching import over_rows
        from dataflex.signals.gradients.projection import Projection

        engine, engines = self.compared.engine, self.compared.engines
        projection = Projection(engine.names, DIM, 0, formed=kind == "adam")
        target = over_rows(self.compared.target, lambda batch: _unit(engine.features(batch, projection)), "target")
        aim = self.torch.as_tensor(target.mean(axis=0), dtype=self.torch.float32, device=self.device)
        return lambda batch, _: _unit(engines[kind].features(batch, projection)) @ aim

    def loop(self, kind: str) -> Way:
        self.exact(kind)
        return self.compared.loop(kind, 1)

    def loop_projected(self, kind: str) -> Way:
        gib = 4 * self.compared.engine.sites.values / 2**30
        if TOGETHER * gib > 16:
            raise Skipped(f"{TOGETHER} gradients of {gib:.1f} GiB")
        projected = self.compared.loop(kind, TOGETHER, self._project)

        def way(batch: Any, rows: Any) -> None:  # the signs are not of unit length, so neither are these cosines
            projected(batch, rows)

        return way

    def bergson(self) -> Way:
        """The projected gradients of every row as bergson collects them, 16 x 16 values of each linear layer."""
        try:
            from bergson import GradientCollector, GradientProcessor, IndexConfig
        except Exception as error:  # what it imports may be missing too
            raise Skipped(f"bergson cannot be imported: {error}") from error

        class Collector(GradientCollector):  # type: ignore[misc]
            def teardown(self) -> None:  # nothing is written
                pass

        collector = Collector(
            model=self.model, data=range(len(self.pool)), cfg=IndexConfig(run_path="none"), skip_index=True,
            processor=GradientProcessor(projection_dim=BERGSON_SIDE),
            target_modules={name.removesuffix(".weight") for name in self.compared.engine.names.values()},
        )  # fmt: skip

        def features(batch: Any) -> Any:
            collector.mod_grads.clear()
            with collector, self.torch.enable_grad():
                self.model(**batch, use_cache=False).loss.backward()
            self.model.zero_grad(set_to_none=True)
            return _unit(self.torch.cat([g.flatten(1).float() for g in collector.mod_grads.values()], dim=1))

        from dataflex.signals.batching import over_rows

        target = over_rows(self.compared.target, features, "target")
        aim = self.torch.as_tensor(target.mean(axis=0), dtype=self.torch.float32, device=self.device)
        return lambda batch, _: features(batch) @ aim

    def _project(self, gradients: Any) -> Any:
        """[n, numel] by a matrix of random signs [numel, DIM] that is never there as a whole."""
        torch = self.torch
        generator = torch.Generator(device=self.device).manual_seed(0)
        out = torch.zeros((len(gradients), DIM), dtype=torch.float32, device=self.device)
        for begin in range(0, gradients.shape[1], _BLOCK):
            part = gradients[:, begin : begin + _BLOCK].to(torch.bfloat16)
            out += (part @ random_signs(part.shape[1], DIM, generator).to(torch.bfloat16)).float()
        return out

    def ways(self) -> Iterator[tuple[str, Callable[[], Way], int]]:
        """Names, what makes a way ready, and how many rows it is given one by one at a time (0: a batch)."""
        yield PLAIN, lambda: self.compared.plain, 0
        for kind in ("sgd", "adam"):
            yield f"{kind}, exact", partial(self.exact, kind), 0
            yield f"{kind}, projected to {DIM}", partial(self.projected, kind), 0
            if kind == "sgd" and self.with_bergson:
                yield f"sgd, bergson, {BERGSON_SIDE} x {BERGSON_SIDE} a layer", self.bergson, 0
            yield f"{kind}, loop", partial(self.loop, kind), 1
            yield f"{kind}, loop, projected to {DIM}", partial(self.loop_projected, kind), TOGETHER

    # -- measuring ---------------------------------------------------------------------------------------------------

    def portions(self, alone: int) -> Iterator[np.ndarray]:
        for places in self.batches:
            for begin in range(0, len(places), alone or len(places)):
                yield places[begin : begin + (alone or len(places))]

    def timed(self, way: Way, alone: int, seconds: float) -> tuple[float, dict[int, float]]:
        """Tokens per second, and the cosines of the rows that there was time for."""
        tokens, spent, found = 0, 0.0, {}
        for turn, places in enumerate(self.portions(alone)):
            batch = self.batch(places) if not alone else None
            rows = [self.batch(places[i : i + 1]) for i in range(len(places))] if alone else []
            begin = now()
            values = way(batch, rows)
            took = now() - begin
            if values is not None:
                found |= dict(zip(places.tolist(), values.float().tolist(), strict=True))
            if turn or alone == TOGETHER:  # the first one sets things up; that of a projection takes long as it is
                tokens, spent = tokens + int(self.pool.lengths[places].sum()), spent + took
            if spent > seconds:
                break
        return tokens / spent if spent else _NAN, found

    def memory(self) -> float:
        """GiB in use; the peak is counted anew from here."""
        if self.device.type != "cuda":
            return forget_peak() / 2**20
        self.torch.cuda.empty_cache()
        self.torch.cuda.reset_peak_memory_stats()
        return self.torch.cuda.memory_allocated() / 2**30

    def peak(self) -> float:
        if self.device.type != "cuda":
            return in_use("VmHWM") / 2**20
        return self.torch.cuda.max_memory_allocated() / 2**30


def measure(
    shape: str, lora: bool, sizes: Sizes, device: str, until: float, seconds: float = 0.0, with_bergson: bool = False
) -> tuple[str, dict[str, Found]]:
    """The name of a model, and what was found of each way. until: the time (time.time) by which it should be done. seconds: from
    when the model is there, if that is later."""
    import torch

    from dataflex.signals.isolation import isolated

    label, large = name_of(shape, lora, sizes), shapes.SHAPES[shape].hidden > shapes.SHAPES["1.5B"].hidden
    if large:  # what a backward pass keeps of more tokens would not fit
        sizes = replace(sizes, budget=sizes.budget // 2)
    if not lora and large:
        why = "the vector of a target and Adam's moments do not fit beside model and gradients"
        return label, {PLAIN: Found(why=why)}
    try:
        bench = Bench(shapes.SHAPES[shape], lora, sizes, device, with_bergson)
    except torch.OutOfMemoryError:
        return label, {PLAIN: Found(why="out of memory")}
    ways, found, cosines, until = list(bench.ways()), {}, {}, max(until, time.time() + seconds)
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

    def part(what: str, cell: Callable[[Found, Found], str]) -> str:
        lines = []
        for way in ways:
            cells = []
            for _, found in models:
                text = cell(found[way], found[PLAIN]) if way in found and not found[way].why else "-"
                cells.append("-" if "nan" in text else text)
            lines.append([way, *cells])
        return table((what, *(model for model, _ in models)), lines)

    parts = [
        part("tokens/s (of plain passes)", lambda one, plain: f"{one.rate:.0f} ({one.rate / plain.rate:.2f})"),
        part("peak GiB (not in use before)", lambda one, _: f"{one.peak:.2f} ({one.beyond:.2f})"),
        part("cosine off the exact signal's by", lambda one, _: f"{one.apart:.1e}"),
    ]
    return "\n\n".join([*parts, *(["Without figures:\n\n" + "\n".join(notes)] if notes else [])])


def _unit(vectors: Any) -> Any:
    return vectors / vectors.norm(dim=1, keepdim=True)


def _apart(name: str, cosines: dict[str, dict[int, float]]) -> float:
    """By how much the cosines of a way are off those of the exact signal, at most, on rows that both have."""
    exact = cosines.get(f"{name.split(',')[0]}, exact", {})
    off = [] if "exact" in name else [abs(value - exact[i]) for i, value in cosines[name].items() if i in exact]
    return max(off, default=_NAN)
