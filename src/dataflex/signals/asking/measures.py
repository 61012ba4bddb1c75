"""How each request is measured: a table from the class of a request to what measures it.

A function takes (context, request, rows) and gives the values of `rows`, equal on every rank. It leaves no trace in the
training run: it runs the model inside `isolated`, and draws from generators of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from dataflex.components.gradient_requests import (
    DomainGradients,
    Features,
    Gradient,
    Interaction,
    PolicyAlignment,
    TargetAlignment,
)
from dataflex.components.requests import (
    Embedding,
    HeldOutLoss,
    HeldOutSums,
    HeldOutTokens,
    LayerEmbedding,
    Loss,
    RouterLoad,
    Tokens,
    TrainableTokens,
)
from dataflex.components.signal_request import SignalRequest
from dataflex.data.rows import Rows
from dataflex.errors import DataflexError
from dataflex.plan.permutation import Purpose, generator
from dataflex.signals.asking.context import MeasureContext
from dataflex.signals.asking.heldout import loss_sums
from dataflex.signals.asking.policy import policy_rows, remarks_on
from dataflex.signals.batching import ScoringRows, over_rows
from dataflex.signals.embeddings import encode_missing, model_embeddings
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
from dataflex.signals.gradients.projection import Concatenation, Projection, has_blocks
from dataflex.signals.isolation import isolated
from dataflex.signals.keeping.memory import MemoryCache
from dataflex.signals.layers import layer_embeddings
from dataflex.signals.routing import expert_counts
from dataflex.signals.stage_loss import stage_losses

Values = Callable[[MeasureContext, Any, ScoringRows], np.ndarray]
Dependence = Callable[[MeasureContext, Any], dict[str, Any]]


@dataclass(frozen=True)
class Measure:
    values: Values
    depends_on: Dependence
    """What the values depend on beside the model, the request and the rows."""


MEASURES: dict[type[SignalRequest], Measure] = {}


def measures(kind: type[SignalRequest], depends_on: Dependence = lambda *_: {}) -> Callable[[Values], Values]:
    """Enters a function into the table."""

    def enter(values: Values) -> Values:
        MEASURES[kind] = Measure(values, depends_on)
        return values

    return enter


def measure_of(request: SignalRequest) -> Measure:
    """What measures a request, or the nearest class it derives from. DataflexError if nothing does."""
    for kind in type(request).__mro__:
        if kind in MEASURES:
            return MEASURES[kind]
    raise DataflexError(f"no signal is called {request.name!r}")


# -- losses and numbers of tokens ------------------------------------------------------------------------------------


@measures(Loss)
def loss(context: MeasureContext, request: Loss, rows: ScoringRows) -> np.ndarray:
    return stage_losses(context.view.model, rows, context.row_loss)


@measures(Tokens)
def tokens(context: MeasureContext, request: Tokens, rows: ScoringRows) -> np.ndarray:
    return _counts(context.lengths)[rows.ids]


@measures(TrainableTokens)
def trainable_tokens(context: MeasureContext, request: TrainableTokens, rows: ScoringRows) -> np.ndarray:
    return _counts(rows.rows.trainable_tokens())[rows.ids]


def _counts(counts: np.ndarray) -> np.ndarray:
    """As values: a row without any has none."""
    return np.where(counts > 0, counts.astype(np.float64), np.nan)


@measures(HeldOutSums)
def held_out_sums(context: MeasureContext, request: SignalRequest, rows: ScoringRows) -> np.ndarray:
    """One pass in a step, whoever asks."""
    return context.once("held-out sums", lambda: loss_sums(context.view.model, rows))


@measures(HeldOutLoss)
def held_out_loss(context: MeasureContext, request: HeldOutLoss, rows: ScoringRows) -> np.ndarray:
    if context.stage not in ("pt", "sft"):
        return stage_losses(context.view.model, rows, context.row_loss)
    sums, counts = _sums_of(context).T
    with np.errstate(invalid="ignore"):
        return np.asarray(sums / counts)


@measures(HeldOutTokens)
def held_out_tokens(context: MeasureContext, request: HeldOutTokens, rows: ScoringRows) -> np.ndarray:
    """1 in stages of pairs, whose loss is not one of tokens."""
    return np.asarray(_sums_of(context)[:, 1]) if context.stage in ("pt", "sft") else np.ones(len(rows))


def _sums_of(context: MeasureContext) -> np.ndarray:
    request = HeldOutSums()
    return held_out_sums(context, request, context.batches(request, context.held_out_rows))


# -- embeddings ------------------------------------------------------------------------------------------------------


@measures(Embedding)
def embedding(context: MeasureContext, request: Embedding, rows: ScoringRows) -> np.ndarray:
    if request.model is None:
        return model_embeddings(context.view.model, rows, layer=request.layer, pooling=request.pooling)

    def text(index: int) -> str:
        row = rows.rows[int(rows.ids[index])]
        ids = row.get("input_ids", row.get("chosen_input_ids"))
        return str(context.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    return encode_missing(request.model, rows.cache or MemoryCache(len(rows)), text, context.view.device)


@measures(LayerEmbedding)
def layer_embedding(context: MeasureContext, request: LayerEmbedding, rows: ScoringRows) -> np.ndarray:
    return layer_embeddings(context.view.model, rows, request.layers)


# -- gradients -------------------------------------------------------------------------------------------------------


def _engine(context: MeasureContext, request: Gradient) -> BatchGradients:
    """For gradients, or Adam's directions, of training rows."""
    direction: Direction | None = None
    if request.reads_moments():
        step = AdamDirection if request.adam_step == "optimizer" else AuthorsDirection
        direction = step(optimizer_moments(context.view.optimizer))
    engine = _plain_engine(context, request, direction)
    if not engine.names:
        raise DataflexError(f"there is no gradient to measure: {engine.sites.describe()}")
    return engine


def _plain_engine(context: MeasureContext, request: Gradient, direction: Direction | None = None) -> BatchGradients:
    """For plain gradients, of target rows; or for `direction`."""
    fast = request.gradient_precision == "run"
    return BatchGradients(
        context.view.model, request.parameters, direction, half=context.view.args.fp16, fast_bf16=fast
    )


def _projection_key(_: MeasureContext, request: Gradient) -> dict[str, Any]:
    """Earlier versions had no blocks, so what they have kept of a long projection is not continued."""
    return {"projection": "blocks"} if has_blocks(request.proj_dim or 0) else {}


@measures(TargetAlignment, depends_on=_projection_key)
def target_alignment(context: MeasureContext, request: TargetAlignment, rows: ScoringRows) -> np.ndarray:
    def target() -> ScoringRows:
        return context.batches(request, context.target_rows)

    return _alignment(context, request, rows, target, subtasks_of(context.target_rows, request.boundaries))


def responses(context: MeasureContext, request: PolicyAlignment) -> ScoringRows:
    """Responses to the target's prompts, drawn once per step."""

    def draw() -> ScoringRows:
        target = context.batches(request, context.target_rows)
        rows, report = policy_rows(
            request, context.target_rows, model=context.view.model, tokenizer=context.tokenizer,
            collate=context.collate_single, step=context.view.step, batch_tokens=target.batch_tokens, device=context.view.device,
        )  # fmt: skip
        context.scalars.update(report)
        context.remark(remarks_on(request, report))
        return replace(target, rows=rows, lengths=rows.lengths(), collate=rows.collate, workers=0)

    return context.once(("responses", request), draw)


def _responses_key(context: MeasureContext, request: PolicyAlignment) -> dict[str, Any]:
    """A reward may be anything, so it is asked again."""
    return {"responses": responses(context, request).rows.fingerprint(), **_projection_key(context, request)}


@measures(PolicyAlignment, depends_on=_responses_key)
def policy_alignment(context: MeasureContext, request: PolicyAlignment, rows: ScoringRows) -> np.ndarray:
    subtasks = subtasks_of(context.target_rows, None)
    return _alignment(context, request, rows, lambda: responses(context, request), subtasks)


def _alignment(
    context: MeasureContext,
    request: Gradient,
    rows: ScoringRows,
    target: Callable[[], ScoringRows],
    subtasks: Sequence[np.ndarray],
) -> np.ndarray:
    """float64 [rows, subtasks]."""
    engine, target_engine = _engine(context, request), _plain_engine(context, request)
    target_rows = target()
    exact = is_exact(target_engine, len(subtasks), request.proj_dim)
    how = "exact" if exact else f"projected to {request.proj_dim or DEFAULT_DIM}"
    count, size = len(subtasks), engine.sites.values if exact else request.proj_dim or DEFAULT_DIM
    held = f"{count} subtask{'s' if count > 1 else ''}, {4 * count * size / 2**20:.1f} MiB of target vectors"
    context.describe(f"{engine.sites.describe()}; {how}, {held}")
    return alignment(rows, target_rows, subtasks, engine, target_engine, proj_dim=request.proj_dim, seed=request.seed)


def subtasks_of(target: Rows, boundaries: Sequence[int] | None) -> list[np.ndarray]:
    """Indices of each subtask's rows in the target: one per data set, or as many as `boundaries` cuts."""
    offsets = target.domains.offsets if boundaries is None else np.concatenate([[0], np.cumsum(boundaries)])
    return [np.arange(a, b, dtype=np.int64) for a, b in pairwise(offsets)]


@measures(Interaction)
def interactions(context: MeasureContext, request: Interaction, rows: ScoringRows) -> np.ndarray:
    engine, target_engine = _engine(context, request), _plain_engine(context, request)
    target = context.batches(request, context.target_rows)
    usable = np.flatnonzero(context.target_rows.trainable_tokens() > 0)
    if request.target_rows is not None and request.target_rows < len(usable):
        draw = _draw(context, request.seed)
        target = target.subset(np.sort(draw.choice(usable, size=request.target_rows, replace=False)))
    exact = request.proj_dim is None and (len(rows) + len(target)) * engine.sites.values <= EXACT_FEATURES
    dim = None if exact else request.proj_dim or DEFAULT_DIM
    context.describe(f"{engine.sites.describe()}; {'exact' if dim is None else f'projected to {dim}'}")
    return interaction(rows, target, engine, target_engine, _projection(engine, dim, request.seed))


@measures(Features, depends_on=_projection_key)
def features(context: MeasureContext, request: Features, rows: ScoringRows) -> np.ndarray:
    engine = _engine(context, request)
    projection = _projection(engine, request.proj_dim or None, request.seed)
    with isolated(context.view.model):
        return over_rows(rows, lambda batch: engine.features(batch, projection), "gradients")


def _projection(engine: BatchGradients, dim: int | None, seed: int) -> Projection | Concatenation:
    """To `dim` values; None: none."""
    if dim is None:
        return Concatenation(engine.sizes)
    return Projection(engine.names, dim, seed, formed=engine.direction is not None)


# -- domains ---------------------------------------------------------------------------------------------------------


@measures(DomainGradients)
def domain_gradients(context: MeasureContext, request: DomainGradients, rows: ScoringRows) -> np.ndarray:
    domains = range(len(context.rows.domains))
    part, groups = _drawn(request, rows, domains, request.rows, _draw(context, request.seed), parts=2)
    engine = _engine(context, request)
    context.describe(f"{engine.sites.describe()}; mean gradients of {request.rows} rows of each domain, in two halves")
    products = group_products(part, groups, engine, proj_dim=request.proj_dim, seed=request.seed)
    return products.reshape(len(domains), 2, len(domains), 2)


@measures(RouterLoad)
def router_load(context: MeasureContext, request: RouterLoad, rows: ScoringRows) -> np.ndarray:
    domains, draw = range(len(context.rows.domains)), _draw(context, request.seed)
    apart = context.held_out_rows if context.held_out_named else None
    having = [d for d in domains if apart is not None and apart.domains.sizes[d]]
    sides = [(rows, [d for d in domains if d not in having])]
    if apart is not None:
        sides.append((context.batches(request, apart), having))
    sums: dict[int, np.ndarray] = {}
    for side, own in sides:
        if own:
            part, groups = _drawn(request, side, own, -(-request.rows // len(domains)), draw)
            counts = expert_counts(context.view.model, part, request.layer)
            sums |= {d: counts[group].sum(axis=0) for d, group in zip(own, groups, strict=True)}
    return np.stack([sums[d] / sums[d].sum() for d in domains])


def _draw(context: MeasureContext, seed: int) -> np.random.Generator:
    """Another one at every step."""
    return generator(context.seed, Purpose.MEASURED_ROWS, seed, context.view.step)


def _drawn(
    request: SignalRequest,
    rows: ScoringRows,
    domains: Sequence[int],
    count: int,
    draw: np.random.Generator,
    parts: int = 1,
) -> tuple[ScoringRows, list[np.ndarray]]:
    """`count` rows of each of some domains, or all where there are fewer.

    Also returns the indices of each domain's rows, cut into `parts` without a common row.
    """
    data, drawn = rows.rows, list[np.ndarray]()
    learned = data.trainable_tokens() > 0
    for d in domains:
        begin, end = data.domains.offsets[d : d + 2]
        usable = begin + np.flatnonzero(learned[begin:end])
        if len(usable) < parts:
            least = "no row" if not len(usable) else "only one row"
            raise DataflexError(
                f"mix: {least} of {data.domains.names[d]!r} has a token to learn, so {request.name} cannot be measured"
            )
        chosen = draw.choice(usable, size=min(count, len(usable)), replace=False)
        drawn += [np.sort(part) for part in np.array_split(chosen, parts)]
    edges = np.cumsum([0, *map(len, drawn)])
    return rows.subset(np.concatenate(drawn)), [np.arange(a, b) for a, b in pairwise(edges)]
