"""One loss per row for each training stage, from the forward pass the stage makes anyway."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from dataflex.components.requests import SignalRequest
from dataflex.config.schema import DataflexConfig
from dataflex.data.rows import SAMPLE_IDS, Rows
from dataflex.distributed.host import Host
from dataflex.record.exposure import Exposure
from dataflex.signals.asking.reference_losses import ReferenceLosses
from dataflex.signals.cross_entropy import forward_row_losses
from dataflex.weighting.broken_losses import BrokenLosses
from dataflex.weighting.objectives import divisor, kind_of, times_processes, token_objective
from dataflex.weighting.observations import DomainSums
from dataflex.weighting.units import Tokens, forward_with_states


class RowLosses(Host):  # type: ignore[misc]
    """Mixin: the stage's training loss as a weighted sum over rows, equal to the stage's own loss when all weigh one.

    stage_name: pt, sft, rm, dpo or kto. per_row: whether the stage's loss can be had per row; where it cannot, the
    stage's own loss is left as it is and only the rows served are noted. references: by the model that they come from.
    """

    config: ClassVar[DataflexConfig]
    stage_name: ClassVar[str]
    per_row: ClassVar[bool]
    rows: Rows
    sums: DomainSums
    broken: BrokenLosses
    exposure: Exposure
    domain_factors: torch.Tensor | None = None  # float32[k]: on the losses of each domain in this step
    references: Mapping[str, ReferenceLosses]
    hidden_layers: frozenset[int] = frozenset()  # whose states a weighter reads
    _micro_ids: torch.Tensor | None
    _micro_given: torch.Tensor | None = None
    _micro_tags: torch.Tensor | None = None  # kto: bool [B], whether an answer is wanted

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None, **kwargs: Any
    ) -> Any:
        if not model.training or self._micro_ids is None:
            return super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch, **kwargs
            )
        if not self.per_row or self.stage_name in ("dpo", "kto"):  # seen in compute_preference_loss and kto_loss
            if not self.per_row:
                self._note(None)
            self._micro_tags = inputs.get("kto_tags")
            return super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch, **kwargs
            )
        if self.stage_name == "rm":
            return self._pair_loss(model, inputs)
        return self._token_loss(model, inputs, return_outputs, num_items_in_batch)

    def _token_loss(self, model: Any, inputs: Any, return_outputs: bool, num_items: Any) -> Any:
        """sum_i w_i sum_t v_it loss_it / num_items, scaled as the Trainer scales the stage's own loss."""
        kind = self._objective_kind
        outputs, objective, tokens = self._forward_tokens(model, inputs)
        losses, active = tokens.losses, tokens.active
        sums, counts = losses.sum(dim=1), active.sum(dim=1)
        weights = self._observe(sums / counts, counts, sums, self._excess(tokens), tokens)
        if weights is not None:
            objective = without_broken(objective, outputs.logits, sums)
        if weights is None or weights.ndim == 1:
            by_row = objective.sum(dim=1)
            total = by_row.sum() if weights is None else (weights * by_row).sum()
        else:
            total = (weights * objective).sum()
        by, shared = divisor(self, kind, num_items, counts.sum())
        loss = total / by
        auxiliary = auxiliary_loss(self.accelerator.unwrap_model(model), outputs) if kind == "cross_entropy" else None
        if auxiliary is not None:
            loss = loss + auxiliary
        if times_processes(self, kind, num_items, shared):
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    @cached_property
    def _objective_kind(self) -> str:
        return kind_of(self)

    def _forward_tokens(self, model: Any, inputs: Any) -> tuple[Any, torch.Tensor, Tokens]:
        """The model's outputs, what is minimised on each token ([B, T], with gradients), and the tokens as weighers see them."""
        labels = inputs.pop("labels")
        unwrapped = self.accelerator.unwrap_model(model)
        outputs, hidden = forward_with_states(model, unwrapped, inputs, self.hidden_layers)
        given = None if self._micro_given is None else self._micro_given.to(labels.device)
        objective, losses, active = token_objective(self, self._objective_kind, outputs.logits, labels, inputs)
        return (
            outputs,
            objective,
            Tokens(losses, active, inputs, hidden, self._known(losses, active), given),
        )

    def _pair_loss(self, model: Any, inputs: Any) -> torch.Tensor:
        losses = pair_losses(self, inputs, model)
        weights = self._observe(losses.detach(), torch.ones_like(losses, dtype=torch.int64), losses.detach())
        if weights is not None:  # a row that does not count would still make the sum NaN
            losses = torch.where(weights > 0, losses, 0.0)
        return losses.mean() if weights is None else (weights * losses).mean()

    def compute_preference_loss(self, *args: Any, **kwargs: Any) -> Any:
        """dpo: LLaMA-Factory takes the mean of the losses returned here, so this is where pairs are seen and weighted."""
        losses, *rewards = super().compute_preference_loss(*args, **kwargs)
        if self.per_row and self.model.training and self._micro_ids is not None and losses.requires_grad:
            detached = losses.detach().float().clone()  # LLaMA-Factory goes on adding to `losses` in place
            weights = self._observe(detached, torch.ones_like(detached, dtype=torch.int64), detached)
            if weights is not None:  # as in _pair_loss
                losses = torch.where(weights > 0, weights.to(losses.dtype) * losses, 0.0)
        return (losses, *rewards)

    def kto_loss(self, *args: Any, **kwargs: Any) -> Any:
        """kto: one loss per answer, wanted ones first; LLaMA-Factory takes their mean. The KL term in them is a constant."""
        losses, *rest = super().kto_loss(*args, **kwargs)
        tags = self._micro_tags
        if self.per_row and self.model.training and self._micro_ids is not None and tags is not None:
            order = torch.cat([tags.nonzero().flatten(), (~tags).nonzero().flatten()])  # row of each loss
            by_row = torch.empty_like(losses).float()
            by_row[order] = losses.detach().float()
            weights = self._observe(by_row, torch.ones_like(by_row, dtype=torch.int64), by_row)
            losses = losses if weights is None else weights[order].to(losses.dtype) * losses
        return (losses, *rest)

    def _known(self, losses: torch.Tensor, active: torch.Tensor) -> dict[SignalRequest, torch.Tensor]:
        """The losses of the references on the tokens of this micro-batch, [B, T] each."""
        out: dict[SignalRequest, torch.Tensor] = {}
        for request, model in self._reference_requests.items():
            assert self._micro_ids is not None
            known = torch.zeros_like(losses)
            known[active] = torch.from_numpy(self.references[model].of(self._micro_ids.numpy())).to(losses)
            out[request] = known
        return out

    @cached_property
    def _reference_requests(self) -> dict[SignalRequest, str]:
        """And the model that each is about."""
        asked = {r: r.other_models() for slot in self.config.components for r in self.config.requests(slot)}
        return {r: models["reference"] for r, models in asked.items() if "reference" in models}

    def _excess(self, tokens: Tokens) -> torch.Tensor | None:
        """Sum over the tokens of each row of what the loss exceeds that of the mixer's reference by, [B]."""
        for request, known in tokens.known.items():
            if request.free:
                return (tokens.losses - known).clamp(min=0).sum(dim=1)
        return None

    def _observe(
        self,
        losses: torch.Tensor,
        counts: torch.Tensor,
        sums: torch.Tensor,
        excess: torch.Tensor | None = None,
        tokens: Tokens | None = None,
    ) -> torch.Tensor | None:
        """Note the losses of this micro-batch's rows; returns their weights, [B] or one per token, [B, T], None for one each.
        losses, counts, sums, excess: [B]."""
        assert self._micro_ids is not None
        domains = self.rows.domains.of(self._micro_ids.numpy())
        self.sums.add(domains, losses, counts, sums, excess)
        self.broken.see(losses, counts > 0)
        self._note(losses)
        weights = self._weigh(losses, counts > 0, tokens)
        if self.domain_factors is None:
            return weights
        of_domain = self.domain_factors[torch.from_numpy(domains).to(self.domain_factors.device)]
        if weights is None:
            return of_domain
        return weights * (of_domain if weights.ndim == 1 else of_domain[:, None])

    def _note(self, losses: torch.Tensor | None) -> None:
        assert self._micro_ids is not None
        self.exposure.note(self.state.global_step + 1, self._micro_ids, losses)

    def _weigh(self, losses: torch.Tensor, trainable: torch.Tensor, tokens: Tokens | None) -> torch.Tensor | None:
        """Weights [B], or of tokens [B, T], with mean one over those that count; None leaves everything at one."""
        return None

    def _score(self, model: Any, batch: Any) -> torch.Tensor:
        batch.pop(SAMPLE_IDS, None)
        return score_rows(self, self.stage_name, model, batch)


def score_rows(trainer: Any, stage: str, model: torch.nn.Module, batch: Any) -> torch.Tensor:
    """float32[B] without gradient: the token-mean cross entropy of each row (pt, sft), or the loss of each pair (rm, dpo).

    A row without trainable tokens is NaN.
    """
    batch = dict(batch)
    if stage == "rm":
        return pair_losses(trainer, batch, model)
    if stage == "dpo":
        policy = trainer.concatenated_forward(model, batch)
        reference = trainer.compute_reference_log_probs(model, batch)
        losses, _, _ = trainer.compute_preference_loss(policy["chosen_logps"], policy["rejected_logps"], *reference)
        if trainer.ftx_gamma > 1e-6:
            losses = losses - trainer.ftx_gamma * policy["chosen_logps_avg"]
        return losses.detach().float()
    sums, counts = forward_row_losses(model, batch)
    return sums / counts  # 0 / 0 is NaN


def pair_losses(trainer: Any, inputs: dict[str, Any], model: torch.nn.Module) -> torch.Tensor:
    """-log sigmoid(chosen - rejected) of each pair, float32[B]: the terms of the reward model's loss."""
    _, _, values = model(**inputs, output_hidden_states=True, return_dict=True, use_cache=False)
    last = inputs["attention_mask"].sum(dim=-1, keepdim=True) - 1
    chosen, rejected = values.gather(-1, last).squeeze(-1).float().chunk(2)
    return -F.logsigmoid(chosen - rejected)


def without_broken(objective: torch.Tensor, logits: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
    """The objective [B, T] with zeros for rows whose loss is not finite, and no gradient from them into the logits: they weigh
    nothing, but zero times NaN is NaN."""
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
