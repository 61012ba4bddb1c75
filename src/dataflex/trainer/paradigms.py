"""What each of the four paradigms puts together; a run has those that its configuration names."""

from __future__ import annotations

from dataflex.deciding.mixing import Mixing
from dataflex.deciding.ordering import Ordering
from dataflex.deciding.selecting import Selecting
from dataflex.deciding.serving import PlannedServing
from dataflex.trainer.assembly import available_of, mixing_of, ordering_of, selecting_of, weights_of
from dataflex.trainer.hooks import DynamicTrainer
from dataflex.weighting.domain_weights import DomainWeights
from dataflex.weighting.weights import Weights


class SelectTrainer(DynamicTrainer):
    """At each update a selector replaces the pools that rows are drawn from.

    Without a mixer: exactly `budget` = interval x global batch rows of the whole data. With one: `keep_ratio` of each
    domain's rows.
    """

    def make_selecting(self) -> Selecting | None:
        spec = self.config.select
        if spec is None:
            return None
        available = available_of(self.rows, self.target, self.processing_class, by_domain=self.config.mix is not None)
        return selecting_of(
            spec, available, self.signals.measure, self.serving, self.recorder, self.config.signals("select")
        )


class MixTrainer(DynamicTrainer):
    """At each update a mixer sets the proportions of the domains, or what their losses weigh."""

    def make_mixing(self) -> Mixing | None:
        spec, serving = self.config.mix, self.serving
        if spec is None or not isinstance(serving, PlannedServing):
            return None
        pairs = self.stage_name not in ("pt", "sft")
        weights = (
            DomainWeights(self.rows.domains, self.args.device, self.objective, pairs=pairs) if self.per_row else None
        )
        return mixing_of(
            spec, self.rows, self.signals, serving, self.recorder, self.observing, weights,
            self.config.signals("mix"),
        )  # fmt: skip


class WeightTrainer(DynamicTrainer):
    """Rows, or their tokens, weigh in the loss what the weighters say."""

    def make_weights(self) -> Weights | None:
        spec, autocast = self.config.weight, self.accelerator.mixed_precision
        if spec is None:
            return None
        return weights_of(spec, self.rows.domains, self.args, self.model, autocast, packed=self.packed)


class OrderTrainer(DynamicTrainer):
    """The rows of each pool are served by their scores, in the shape of an order."""

    def make_ordering(self) -> Ordering | None:
        spec, serving = self.config.order, self.serving
        if spec is None or not isinstance(serving, PlannedServing):
            return None
        return ordering_of(spec, self.rows, self.order_scores, self.signals, serving, self.recorder, self.mixing)
