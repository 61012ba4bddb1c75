"""One loss per row for each training stage, from the forward pass the stage makes anyway."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from dataflex import events
from dataflex.components.signal_request import SignalRequest
from dataflex.data.micro_batch import MicroBatch, apart
from dataflex.signals.asking.reference_losses import ReferenceLosses
from dataflex.trainer.scoring import reward_losses
from dataflex.trainer.view import StageView
from dataflex.weighting.objectives import Objective
from dataflex.weighting.observing import Observing
from dataflex.weighting.units import Tokens, forward_with_states
from dataflex.weighting.weights import LevelEntries, Weights, times

Reader = Callable[[torch.Tensor], torch.Tensor]


class RowLosses:
    """The training loss as a weighted sum over rows. With all weights one, it is the training stage's own loss.

    Args:
        reference_losses: Losses of reference models, by request.
    """

    def __init__(
        self,
        objective: Objective,
        view: StageView,
        observing: Observing,
        weights: Weights | None,
        reference_losses: Mapping[SignalRequest, ReferenceLosses],
    ) -> None:
        self.objective, self.view, self.observing = objective, view, observing
        self.weights, self.reference_losses = weights, reference_losses
        self._hidden_layers = weights.hidden_layers if weights is not None else frozenset[int]()
        self._reader: Reader | None = (
            None  # while a pass of pairs is made: its method is given the losses, not the batch
        )

    def observe(
        self,
        micro: MicroBatch,
        losses: torch.Tensor,
        counts: torch.Tensor,
        sums: torch.Tensor,
        excess: torch.Tensor | None = None,
        tokens: Tokens | None = None,
    ) -> torch.Tensor | None:
        """Note the losses of the rows; returns their weights, [B] or one per token, [B, T], None for one each.
        losses, counts, sums, excess: [B]."""
        step = self.view.step
        domains = self.observing.see(micro, step + 1, losses, counts, sums, excess)
        weights = None if self.weights is None else self.weights.weigh(micro, losses, counts > 0, tokens, step)
        if micro.domain_factors is not None:
            of_domain = micro.domain_factors[torch.from_numpy(domains).to(micro.domain_factors.device)]
            weights = of_domain if weights is None else times(weights, of_domain)
        self.observing.note(micro, step + 1, losses, weights_of_rows(weights, tokens))
        events.emit(events.TrainedRows(step, micro.ids, losses, counts, weights))
        return weights

    # -- pt, sft -----------------------------------------------------------------------------------------------------

    def of_tokens(self, micro: MicroBatch, model: Any, inputs: Any, num_items: Any) -> tuple[torch.Tensor, Any]:
        """sum_i w_i sum_t v_it loss_it / num_items, scaled as the Trainer scales it; and the outputs of the model."""
        outputs, objective, tokens = self._forward(micro, model, inputs)
        losses, active = tokens.losses, tokens.active
        sums, counts = losses.sum(dim=1), active.sum(dim=1)
        weights = self.observe(micro, sums / counts, counts, sums, excess_of(tokens), tokens)
        if weights is not None:
            objective = without_broken(objective, outputs.logits, sums)
        if weights is None or weights.ndim == 1:
            by_row = objective.sum(dim=1)
            total = by_row.sum() if weights is None else (weights * by_row).sum()
        else:
            total = (weights * objective).sum()
        by, of_global_batch = self.objective.divisor(num_items, counts.sum())
        loss = total / by
        if self.objective.kind == "cross_entropy":
            auxiliary = auxiliary_loss(self.view.unwrapped(model), outputs)
            loss = loss if auxiliary is None else loss + auxiliary
        if self.objective.times_processes(num_items, of_global_batch):
            loss = loss * int(self.view.accelerator.num_processes)
        return loss, outputs

    def _forward(self, micro: MicroBatch, model: Any, inputs: Any) -> tuple[Any, torch.Tensor, Tokens]:
        """The model's outputs, what is minimised on each token ([B, T], with gradients), and the tokens as weighters see them."""
        labels = inputs.pop("labels")
        outputs, hidden = forward_with_states(model, self.view.unwrapped(model), inputs, self._hidden_layers)
        given = None if micro.weights is None else micro.weights.to(labels.device)
        objective, losses, active = self.objective.of_tokens(outputs.logits, labels, inputs)
        reference_losses = self._reference_losses_of(micro, losses, active)
        return outputs, objective, Tokens(losses, active, inputs, hidden, reference_losses, given)

    def _reference_losses_of(
        self, micro: MicroBatch, losses: torch.Tensor, active: torch.Tensor
    ) -> dict[SignalRequest, torch.Tensor]:
        """Losses of reference models on the tokens of this micro-batch, [B, T] each."""
        out: dict[SignalRequest, torch.Tensor] = {}
        for request, stored in self.reference_losses.items():
            out[request] = torch.zeros_like(losses)
            out[request][active] = torch.from_numpy(stored.of(micro.ids.numpy())).to(losses)
        return out

    # -- pairs -------------------------------------------------------------------------------------------------------

    def of_reward_pairs(self, micro: MicroBatch, model: Any, inputs: Any) -> torch.Tensor:
        """rm: the mean over the pairs."""
        losses = reward_losses(inputs, model)
        weights = self.observe(micro, losses.detach(), torch.ones_like(losses, dtype=torch.int64), losses.detach())
        if weights is not None:  # a row that does not count would still make the sum NaN
            losses = torch.where(weights > 0, losses, 0.0)
        return losses.mean() if weights is None else (weights * losses).mean()

    @contextmanager
    def reading(self, reader: Reader) -> Iterator[None]:
        """For the length of a pass of dpo or kto: its losses go through `reader`."""
        self._reader = reader
        try:
            yield
        finally:
            self._reader = None

    def passed(self, losses: torch.Tensor) -> torch.Tensor:
        """Losses of dpo or kto as the trainer of the stage goes on with them; it takes their mean."""
        return losses if self._reader is None else self._reader(losses)

    def reader_of(self, micro: MicroBatch) -> Reader:
        """Observes the losses of a micro-batch and weighs them."""

        def pairs(losses: torch.Tensor) -> torch.Tensor:
            detached = losses.detach().float().clone()  # LLaMA-Factory goes on adding to `losses` in place
            weights = self.observe(micro, detached, torch.ones_like(detached, dtype=torch.int64), detached)
            if weights is None:
                return losses
            return torch.where(weights > 0, weights.to(losses.dtype) * losses, 0.0)  # as in of_reward_pairs

        def answers(losses: torch.Tensor) -> torch.Tensor:
            order, by_row = by_answer(micro, losses)
            weights = self.observe(micro, by_row, torch.ones_like(by_row, dtype=torch.int64), by_row)
            return losses if weights is None else weights[order].to(losses.dtype) * losses

        return pairs if micro.tags is None else answers

    # -- before a step -----------------------------------------------------------------------------------------------

    def survey(self, weights: Weights, model: Any, batches: Sequence[Any]) -> None:
        """Compare weights with the losses of all micro-batches of this step, before its first backward.

        The model is in training mode and the random state is restored, so the losses are those of the step itself.
        """
        self.view.turn_to_training(model)
        with _same_random_state(), torch.no_grad():
            found = []
            for micro, rest in apart(batches):
                inputs = self.view.on_device(rest)
                with self.view.autocast():
                    found.append(self._entries_of(weights, micro, model, inputs))
        weights.compare_with_survey(found)

    def _entries_of(self, weights: Weights, micro: MicroBatch, model: Any, inputs: Any) -> LevelEntries:
        if self.view.stage in ("pt", "sft"):
            _, _, tokens = self._forward(micro, model, inputs)
            return weights.entries_of(micro, tokens.losses.sum(dim=1) / tokens.active.sum(dim=1), tokens)
        if micro.tags is None:
            return weights.entries_of(micro, self.view.score(model, inputs), None)
        found: list[LevelEntries] = []

        def read(losses: torch.Tensor) -> torch.Tensor:
            found.append(weights.entries_of(micro, by_answer(micro, losses)[1], None))
            return losses

        with self.reading(read):
            self.view.pass_of_pairs(model, inputs)
        return found[0]


def by_answer(micro: MicroBatch, losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """kto: the row of each loss, int64 [B] (wanted answers come first), and the losses by row, float32 [B]. The KL term in them
    is a constant."""
    assert micro.tags is not None
    tags = micro.tags.to(losses.device)
    order = torch.cat([tags.nonzero().flatten(), (~tags).nonzero().flatten()])
    by_row = torch.empty_like(losses).float()
    by_row[order] = losses.detach().float()
    return order, by_row


def weights_of_rows(weights: torch.Tensor | None, tokens: Tokens | None) -> torch.Tensor | None:
    """[B]: of weights of rows themselves, of weights of tokens ([B, T]) the mean over the trained tokens of each row."""
    if weights is None or weights.ndim == 1:
        return weights
    assert tokens is not None
    return torch.where(tokens.active, weights, 0.0).sum(dim=1) / tokens.active.sum(dim=1)


def excess_of(tokens: Tokens) -> torch.Tensor | None:
    """The excess over the mixer's reference model, summed over the tokens of each row, [B]."""
    for request, reference_losses in tokens.reference_losses.items():
        if request.free:
            return (tokens.losses - reference_losses).clamp(min=0).sum(dim=1)
    return None


def without_broken(objective: torch.Tensor, logits: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
    """The objective [B, T] with zeros for rows whose loss is not finite, and no gradient from them into the logits.

    They weigh nothing, but zero times NaN is NaN.
    """
    broken = ~torch.isfinite(sums)
    if not broken.any():
        return objective
    if logits.requires_grad:
        logits.register_hook(lambda grad: torch.where(broken[:, None, None], 0.0, grad))
    return torch.where(broken[:, None], 0.0, objective)


def auxiliary_loss(model: torch.nn.Module, outputs: Any) -> torch.Tensor | None:
    """The load-balancing loss of a mixture-of-experts model, scaled as the model itself adds it to a labelled loss."""
    value = getattr(outputs, "aux_loss", None)
    if value is None or not torch.is_tensor(value):
        return None
    config: Any = model.config
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    return value * getattr(config, "router_aux_loss_coef", 0.0)


@contextmanager
def _same_random_state() -> Iterator[None]:
    """Afterwards torch's generators are as they were before."""
    cpu = torch.random.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    yield
    torch.random.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state_all(cuda)
