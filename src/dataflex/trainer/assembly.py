"""How the parts of a run are made from its configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from dataflex.components.signal_request import SignalRequest
from dataflex.config.llamafactory.trainer_keys import global_batch
from dataflex.config.schema import DataflexConfig, MixConfig, OrderConfig, SelectConfig, WeightConfig
from dataflex.data.rows import Rows
from dataflex.data.streams import Streams
from dataflex.data.texts import RowTexts
from dataflex.deciding.choosing import Available, Chooser, Group, Measure
from dataflex.deciding.mixing import Mixing, domain_info
from dataflex.deciding.ordering import Ordering
from dataflex.deciding.selecting import Selecting
from dataflex.deciding.serving import Delivery, PlannedServing, RowServing, Serving, StreamServing
from dataflex.distributed import collectives
from dataflex.plan.course import Shape
from dataflex.plan.permutation import Purpose, generator
from dataflex.plan.plan import Domains, Plan
from dataflex.record.ledger import RunFiles
from dataflex.record.reasons import Target
from dataflex.record.recorder import Recorder
from dataflex.signals.asking.ask import Signals
from dataflex.signals.asking.context import MeasureContext
from dataflex.signals.asking.reference_losses import ReferenceLosses
from dataflex.signals.keeping.run import RunCaches
from dataflex.trainer.losses import RowLosses
from dataflex.trainer.view import StageView
from dataflex.weighting.domain_weights import DomainWeights
from dataflex.weighting.observing import Observing
from dataflex.weighting.weights import Weights, rounding_of


def recorder_of(rows: Rows | Streams, output_dir: Any, tokenizer: Any) -> Recorder:
    """Rank 0 writes. Rows of a stream have no texts that could be read again."""
    texts = RowTexts(rows, tokenizer) if isinstance(rows, Rows) else None
    return Recorder(RunFiles(output_dir, rows.domains, writes=collectives.rank() == 0, texts=texts))


def serving_of(
    rows: Rows | Streams,
    config: DataflexConfig,
    args: Any,
    collate: Callable[[list[dict[str, Any]]], Any],
    *,
    shuffle: bool,
) -> Serving:
    """args: TrainingArguments."""
    seed = args.data_seed if args.data_seed is not None else args.seed
    rows_per_step, per_rank = global_batch(config, args), args.train_batch_size * args.gradient_accumulation_steps
    delivery = Delivery(
        collate,
        per_device=args.train_batch_size,
        accumulation=args.gradient_accumulation_steps,
        rank=collectives.rank(),
        ranks=rows_per_step // per_rank,
        workers=args.dataloader_num_workers,
        prefetch=args.dataloader_prefetch_factor,
        pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
    )
    if isinstance(rows, Streams):
        plan = Plan(rows.domains, seed, shuffle=False)  # the n-th draw is the n-th of the stream
        return StreamServing(rows, plan, rows_per_step, delivery, shuffle=shuffle)
    by_tokens = config.mix is not None and config.mix.unit == "tokens"
    shape = None if config.order is None else Shape(config.order.component.ranks, config.order.window)
    plan = Plan(rows.domains, seed, shuffle=shuffle, lengths=rows.lengths() if by_tokens else None, shape=shape)
    return RowServing(rows, plan, rows_per_step, delivery) if config.plans_data else Serving(rows, plan, rows_per_step)


def signals_of(trainer: Any) -> Signals:
    """What measures for a run. trainer: a `DynamicTrainer`."""
    config, recorder = trainer.config, trainer.recorder
    select = f"select:{config.select.name}" if config.select is not None else ""
    context = MeasureContext(
        trainer.view,
        trainer.rows,
        trainer.data_collator,
        trainer.processing_class,
        trainer.score,
        stage=trainer.stage_name,
        seed=trainer.serving.plan.seed,
        target=trainer.target,
        held_out=trainer.held_out,
        held_out_named=config.routes_held_out,
        scoring_tokens=config.scoring_tokens,
        remark=lambda lines: recorder.remarks.add(select, lines),
    )
    return Signals(context, RunCaches(trainer.view, trainer.identity, str(trainer.args.output_dir)))


def ordering_of(
    spec: OrderConfig,
    rows: Rows,
    given: np.ndarray | None,
    signals: Signals,
    serving: PlannedServing,
    recorder: Recorder,
    mixing: Mixing | None,
) -> Ordering:
    """The part that orders rows.

    Args:
        given: Scores that the data gives, float64[N].
    """

    def score() -> np.ndarray:
        if given is not None:
            return given
        found = [signals.measure(request) for request in spec.requests]
        return found[0] if found else np.zeros(len(rows))

    limited = mixing is not None and mixing.spec.limits
    most_rows = (lambda: mixing.limits.most_rows) if mixing is not None and limited else None
    return Ordering(spec, score, serving, recorder, (rows.stored, rows.data_sets), most_rows)


def available_of(rows: Rows, target: Rows | None, tokenizer: Any, *, by_domain: bool) -> Available:
    """What a selector may choose from: all data, or the rows of each domain by themselves."""
    groups = [Group(None, 0, len(rows))]
    if by_domain:
        bounds = pairwise(rows.domains.offsets.tolist())
        groups = [Group(name, a, b) for name, (a, b) in zip(rows.domains.names, bounds, strict=True)]
    aim = None if target is None else Target(target.domains, target.stored, RowTexts(target, tokenizer))
    usable = lambda: rows.trainable_tokens() > 0  # noqa: E731
    tokens = rows.trainable_tokens
    return Available(groups, usable, rows.raw, aim, stored=rows.stored, data_sets=rows.data_sets, tokens=tokens)


def selecting_of(
    spec: SelectConfig, available: Available, measure: Measure, serving: Serving, recorder: Recorder, signals: list[str]
) -> Selecting:
    """signals: names of those that the selector takes."""

    def budget(candidates: int, group: Group) -> int:
        if group.name is not None:
            return int(np.ceil(spec.keep_ratio * candidates))
        return (spec.schedule.interval or 0) * serving.global_batch

    rng = partial(generator, serving.plan.seed, Purpose.SELECTING, spec.component.seed)
    return Selecting(Chooser(spec, available, measure, budget=budget, rng=rng), serving, recorder, signals)


def mixing_of(
    spec: MixConfig,
    rows: Rows | Streams,
    measured: Signals,
    serving: PlannedServing,
    recorder: Recorder,
    observing: Observing,
    weights: DomainWeights | None,
    signals: list[str],
) -> Mixing:
    """The part that asks a mixer.

    Args:
        weights: None where the training stage has no loss per row.
        signals: Names of the mixer's signals.
    """

    def by_domain(request: SignalRequest) -> list[np.ndarray]:
        values = measured.measure(request)
        if request.per == "domain":
            return list(values)
        return [values[a:b] for a, b in pairwise(measured.rows_of(request).domains.offsets)]

    return Mixing(
        spec,
        lambda: domain_info(spec, rows),
        by_domain,
        serving=serving,
        recorder=recorder,
        sums=observing.sums,
        weights=weights,
        signals=signals,
    )


def weights_of(
    spec: WeightConfig, domains: Domains, args: Any, model: torch.nn.Module, autocast: str, *, packed: bool
) -> Weights:
    """The part that asks weighters.

    Args:
        args: TrainingArguments.
        autocast: `bf16`, `fp16`, `no`, ...
    """
    rounding = rounding_of(model, autocast)
    return Weights(spec, domains, args.device, packed=packed, rows=args.train_batch_size, rounding=rounding)


def row_losses(
    config: DataflexConfig,
    objective: Any,
    view: StageView,
    observing: Observing,
    weights: Weights | None,
    references: Mapping[str, ReferenceLosses],
) -> RowLosses:
    """references: losses of reference models, by the model."""
    asked = {r: r.other_models() for slot in config.components for r in config.requests(slot)}
    known = {r: references[models["reference"]] for r, models in asked.items() if "reference" in models}
    return RowLosses(objective, view, observing, weights, known)
