"""What components ask to have measured, measured once per optimizer step and put back without a trace."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import xxhash

from dataflex.components.requests import (
    DomainGradients,
    Embedding,
    Features,
    Gradient,
    Interaction,
    PolicyAlignment,
    Request,
    RouterLoad,
    TargetAlignment,
    TargetEmbedding,
    name_of,
)
from dataflex.config.schema import DataflexConfig
from dataflex.data.rows import GIVEN_WEIGHTS, SAMPLE_IDS, Rows
from dataflex.errors import DataflexError
from dataflex.notices import Once
from dataflex.plan.permutation import generator
from dataflex.plan.plan import Plan
from dataflex.record.remarks import Remarks
from dataflex.signals.asking.heldout import HELD_OUT_SUMS
from dataflex.signals.asking.policy import policy_rows, remarks_on
from dataflex.signals.batching import Held, Pool, over_pool, token_budget
from dataflex.signals.embeddings import encode_missing, load_encoder, pool_embeddings
from dataflex.signals.gradients.alignment import (
    DEFAULT_DIM,
    EXACT_FEATURES,
    alignment,
    group_products,
    interaction,
    is_exact,
)
from dataflex.signals.gradients.directions import AdamDirection, AuthorsDirection, Direction, optimizer_moments
from dataflex.signals.gradients.passes import BatchGradients
from dataflex.signals.gradients.projection import Concatenation, Projection
from dataflex.signals.isolation import isolated
from dataflex.signals.keeping.passes import KeptPasses
from dataflex.signals.losses import pool_losses
from dataflex.signals.routing import expert_counts

_PURPOSE = 0x7A46E7  # keeps the choice of target rows apart from other random numbers


class Measurements(KeptPasses):
    """Mixin: `signal(request)`. rows: the data of the run. target: the rows selectors aim at, None if there is no target."""

    config: ClassVar[DataflexConfig]
    rows: Rows
    plan: Plan
    target: Rows | None
    remarks: Remarks
    _pending_scalars: dict[str, float]
    _measured: tuple[int, dict[Any, Any]] = (-1, {})
    _once: Once
    _keeps_encoder: ClassVar[bool] = False

    def signal(self, request: Request, ids: np.ndarray | None = None) -> np.ndarray:
        """The value of a signal under the current model for every row, or for the rows `ids`: float [N] or [N, K], equal on
        every rank. NaN where a row has none. That of a TargetEmbedding has a value for each row of the target instead, and those
        of held-out rows one for each of them."""
        if request == "heldout_tokens":
            return self._held_out_tokens()
        if request == "heldout_loss" and self.stage_name in ("pt", "sft"):
            return self._held_out_losses()
        step = self.state.global_step
        if self._measured[0] != step:
            self._measured = (step, {})
        key = (request, None if ids is None else _digest(ids))
        # A text encoder does not change while training, so neither do its vectors: they are made once.
        kept = self._frozen if isinstance(request, Embedding) and request.model is not None else self._measured[1]
        if key not in kept:
            begin = time.perf_counter()
            if isinstance(request, TargetEmbedding):
                rows = self._aimed_at
                kept[key] = self._taken_up(request, self._pool(request, rows, rows.lengths()))
            elif request in ("heldout_loss", HELD_OUT_SUMS):
                kept[key] = self._measure(request, self._pool(request, self._kept_apart, self._kept_apart.lengths()))
            else:
                kept[key] = self._taken_up(request, self._pool(request, self.rows, self._lengths, ids))
            if not self._keeps_encoder:  # it would take memory from training
                load_encoder.cache_clear()
            spent = self._pending_scalars.get("dataflex/scoring/seconds", 0.0)
            self._pending_scalars["dataflex/scoring/seconds"] = spent + time.perf_counter() - begin
        return kept[key]

    def _taken_up(self, request: Request, pool: Pool) -> np.ndarray:
        """Measure what has not been measured before the run was killed."""
        pool = replace(pool, keep=self._keep(request, pool))
        if pool.keep is not None and not pool.keep.missing.any():
            return pool.keep.values()
        return self._measure(request, pool)

    def _forget_measured(self) -> None:
        """Once the parameters change, what was measured is of no use, and it may be large."""
        self._measured = (-1, {})

    def _measure(self, request: Request, pool: Pool) -> np.ndarray:
        if request == HELD_OUT_SUMS:
            return self._measure_held_out(pool)
        if request in ("loss", "heldout_loss"):
            return pool_losses(self.model, pool, self._score)
        if request in ("tokens", "trainable_tokens"):
            counts = self._lengths if request == "tokens" else pool.rows.trainable_tokens()
            return np.where(counts > 0, counts.astype(np.float64), np.nan)[pool.ids]
        if isinstance(request, Embedding) and request.model is not None:
            return self._encoded(request, request.model, pool)
        if isinstance(request, Embedding):
            return pool_embeddings(self.model, pool, layer=request.layer, pooling=request.pooling)
        if isinstance(request, TargetAlignment | PolicyAlignment):
            return self._alignment(request, pool)
        if isinstance(request, Interaction):
            return self._interaction(request, pool)
        if isinstance(request, DomainGradients | RouterLoad):
            return self._by_domain(request, pool)
        if isinstance(request, Features):
            engine = self._gradients(request)
            projection = (
                Projection(engine.names, request.proj_dim, request.seed, formed=engine.direction is not None)
                if request.proj_dim
                else Concatenation(engine.sizes)
            )
            with isolated(self.model):
                return over_pool(pool, lambda batch: engine.features(batch, projection), "gradients")
        raise DataflexError(f"no signal is called {name_of(request)!r}")

    def _alignment(self, request: TargetAlignment | PolicyAlignment, pool: Pool) -> np.ndarray:
        rows, aims = self._gradients(request), BatchGradients(self.model, request.parameters, half=self.args.fp16)
        if isinstance(request, PolicyAlignment):
            subtasks = subtasks_of(self._aimed_at, None)
            target = self._policy_pool(request)
        else:
            subtasks = subtasks_of(self._aimed_at, request.boundaries)
            target = self._target_pool(request)
        exact = is_exact(aims, len(subtasks), request.proj_dim)
        how = "exact" if exact else f"projected to {request.proj_dim or DEFAULT_DIM}"
        count, size = len(subtasks), rows.sites.values if exact else request.proj_dim or DEFAULT_DIM
        held = f"{count} subtask{'s' if count > 1 else ''}, {4 * count * size / 2**20:.1f} MiB of target vectors"
        self._once.say(f"{rows.sites.describe()}; {how}, {held}")
        return alignment(pool, target, subtasks, rows, aims, proj_dim=request.proj_dim, seed=request.seed)

    def _encoded(self, request: Request, model: str, pool: Pool) -> np.ndarray:
        """Vectors of a text encoder."""

        def text(place: int) -> str:
            row = pool.rows[int(pool.ids[place])]
            tokens = row.get("input_ids", row.get("chosen_input_ids"))
            return str(self.processing_class.decode(tokens, skip_special_tokens=True)).strip()

        return encode_missing(model, pool.keep or Held(len(pool)), text, self.args.device)

    def _interaction(self, request: Interaction, pool: Pool) -> np.ndarray:
        rows, aims = self._gradients(request), BatchGradients(self.model, request.parameters, half=self.args.fp16)
        target, step = self._target_pool(request), self.state.global_step
        usable = np.flatnonzero(self._aimed_at.trainable_tokens() > 0)
        if request.target_rows is not None and request.target_rows < len(usable):
            draw = generator(self.plan.seed, _PURPOSE, request.seed, step)
            target = target.subset(np.sort(draw.choice(usable, size=request.target_rows, replace=False)))
        values = (len(pool) + len(target)) * rows.sites.values
        exact = request.proj_dim is None and values <= EXACT_FEATURES
        dim = request.proj_dim or DEFAULT_DIM
        formed = rows.direction is not None
        projection = Concatenation(rows.sizes) if exact else Projection(rows.names, dim, request.seed, formed=formed)
        self._once.say(f"{rows.sites.describe()}; {'exact' if exact else f'projected to {dim}'}")
        return interaction(pool, target, rows, aims, projection)

    def _by_domain(self, request: DomainGradients | RouterLoad, pool: Pool) -> np.ndarray:
        """[domains, ...], from rows of each domain drawn afresh at every step."""
        domains = range(len(self.rows.domains))
        draw = generator(self.plan.seed, _PURPOSE, request.seed, self.state.global_step)
        if isinstance(request, RouterLoad):
            return self._router_load(request, pool, draw)
        count = request.rows
        part, groups = self._drawn(request, pool, domains, count, draw)
        engine = self._gradients(request)
        self._once.say(f"{engine.sites.describe()}; mean gradients of {count} rows of each domain, in two halves")
        products = group_products(part, groups, engine, proj_dim=request.proj_dim, seed=request.seed)
        k = len(domains)
        return products.reshape(k, 2, k, 2)

    def _router_load(self, request: RouterLoad, pool: Pool, draw: np.random.Generator) -> np.ndarray:
        """float [domains, experts], of held-out rows for the domains that `mix.eval_dataset` has some of."""
        domains = range(len(self.rows.domains))
        apart = self._kept_apart if self.config.routes_held_out else None
        having = [d for d in domains if apart is not None and apart.domains.sizes[d]]
        sides = [(pool, [d for d in domains if d not in having])]
        if apart is not None:
            sides.append((self._pool(request, apart, apart.lengths()), having))
        sums: dict[int, np.ndarray] = {}
        for side, own in sides:
            if own:
                part, groups = self._drawn(request, side, own, -(-request.rows // len(domains)), draw)
                counts = expert_counts(self.model, part, request.layer)
                sums |= {d: counts[group].sum(axis=0) for d, group in zip(own, groups, strict=True)}
        return np.stack([sums[d] / sums[d].sum() for d in domains])

    @staticmethod
    def _drawn(
        request: DomainGradients | RouterLoad, pool: Pool, domains: Sequence[int], count: int, draw: np.random.Generator
    ) -> tuple[Pool, list[np.ndarray]]:
        """`count` rows of each of some domains, all where there are fewer, and the places of each domain's among them; of
        DomainGradients, the places of two halves that have no row in common."""
        rows, drawn = pool.rows, list[np.ndarray]()
        parts = 2 if isinstance(request, DomainGradients) else 1
        learned = rows.trainable_tokens() > 0
        for d in domains:
            begin, end = rows.domains.offsets[d : d + 2]
            usable = begin + np.flatnonzero(learned[begin:end])
            if len(usable) < parts:
                least = "no row" if not len(usable) else "only one row"
                raise DataflexError(
                    f"mix: {least} of {rows.domains.names[d]!r} has a token to learn, so {request.name} cannot be measured"
                )
            chosen = draw.choice(usable, size=min(count, len(usable)), replace=False)
            drawn += [np.sort(part) for part in np.array_split(chosen, parts)]
        edges = np.cumsum([0, *map(len, drawn)])
        return pool.subset(np.concatenate(drawn)), [np.arange(a, b) for a, b in pairwise(edges)]

    @property
    def _aimed_at(self) -> Rows:
        if self.target is None:
            raise DataflexError("there is no target to align with")
        return self.target

    def _target_pool(self, request: Request) -> Pool:
        return self._pool(request, self._aimed_at, self._aimed_at.lengths())

    def _policy_pool(self, request: PolicyAlignment) -> Pool:
        """Responses to the target's prompts, drawn once per step."""
        kept, key = self._measured[1], ("responses", request)
        if key not in kept:
            target = self._target_pool(request)
            rows, report = policy_rows(
                request, self._aimed_at, model=self.model, tokenizer=self.processing_class, collate=self._collate_single,
                step=self.state.global_step, budget=target.budget, device=self.args.device,
            )  # fmt: skip
            self._pending_scalars |= report
            assert self.config.select is not None
            self.remarks.add(f"select:{self.config.select.name}", remarks_on(request, report))
            kept[key] = replace(target, rows=rows, lengths=rows.lengths(), collate=rows.collate, workers=0)
        return kept[key]  # type: ignore[no-any-return]

    def _depends_on(self, request: Request, pool: Pool) -> dict[str, Any] | None:
        out = super()._depends_on(request, pool)
        if out is not None and isinstance(request, PolicyAlignment):  # a reward may be anything, so it is asked again
            out["responses"] = self._policy_pool(request).rows.fingerprint()
        return out

    def _gradients(self, request: Gradient) -> BatchGradients:
        direction: Direction | None = None
        if request.gradient_type == "adam":
            step = AdamDirection if request.adam_step == "optimizer" else AuthorsDirection
            direction = step(optimizer_moments(self.optimizer))
        engine = BatchGradients(self.model, request.parameters, direction, half=self.args.fp16)
        if not engine.names:
            raise DataflexError(f"there is no gradient to measure: {engine.sites.describe()}")
        return engine

    def _pool(self, request: Request, rows: Rows, lengths: np.ndarray, ids: np.ndarray | None = None) -> Pool:
        def prepare(batch: Any) -> Any:
            inputs = self._prepare_inputs(batch)
            inputs.pop(GIVEN_WEIGHTS, None)
            if request != "loss":  # whose measure, `_score`, takes them off itself
                inputs.pop(SAMPLE_IDS, None)
            return inputs

        return Pool(
            rows=rows,
            ids=np.arange(len(rows), dtype=np.int64) if ids is None else ids,
            lengths=lengths if ids is None else lengths[ids],
            budget=self.config.scoring_tokens or token_budget(self.args.device, isinstance(request, Gradient)),
            collate=self.data_collator if rows is self.rows else self._collate_single,
            prepare=prepare,
            device=self.args.device,
            workers=self.args.dataloader_num_workers,
        )

    @cached_property
    def _collate_single(self) -> Any:
        """For rows that are never packed: with FlashAttention, LLaMA-Factory's collator of packs takes one row at a time."""
        collator = copy.copy(self.data_collator)
        if getattr(collator.inner, "neat_packing", False):
            collator.inner = copy.copy(collator.inner)
            collator.inner.neat_packing = False
        return collator

    @cached_property
    def _frozen(self) -> dict[Any, np.ndarray]:
        return {}

    @cached_property
    def _lengths(self) -> np.ndarray:
        return self.rows.lengths()


def _digest(ids: np.ndarray) -> bytes:
    return xxhash.xxh3_128_digest(np.ascontiguousarray(ids).data)


def subtasks_of(target: Rows, boundaries: Sequence[int] | None) -> list[np.ndarray]:
    """Places of each subtask's rows in the target: one per data set, or as many as `boundaries` cuts."""
    if boundaries is None:
        offsets = target.domains.offsets
    else:
        offsets = np.concatenate([[0], np.cumsum(boundaries)])
    return [np.arange(a, b, dtype=np.int64) for a, b in pairwise(offsets)]
