"""One loss per row for each training stage, from the forward pass the stage makes anyway."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from dataflex.signals.cross_entropy import forward_row_losses, token_losses
from dataflex.trainer.exposure import Exposure
from dataflex.trainer.host import Host
from dataflex.trainer.observations import DomainSums
from dataflex.trainer.reference import ReferenceLosses
from dataflex.trainer.rows import SAMPLE_IDS, Rows


class RowLosses(Host):  # type: ignore[misc]
    """Mixin: the stage's training loss as a weighted sum over rows, equal to the stage's own loss when all weigh one.

    stage_name: pt, sft, rm, dpo or kto. per_row: whether the stage's loss can be had per row; where it cannot, the
    stage's own loss is left as it is and only the rows served are noted.
    """

    stage_name: ClassVar[str]
    per_row: ClassVar[bool]
    rows: Rows
    sums: DomainSums
    exposure: Exposure
    loss_weights: torch.Tensor | None = None  # float32[k]: what the losses of each domain are multiplied by
    reference: ReferenceLosses | None = None
    _micro_ids: torch.Tensor | None

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None, **kwargs: Any
    ) -> Any:
        if not model.training or self._micro_ids is None:
            return super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch, **kwargs
            )
        if not self.per_row or self.stage_name == "dpo":  # dpo: the pairs are seen in compute_preference_loss
            if not self.per_row:
                self._note(None)
            return super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch, **kwargs
            )
        if self.stage_name == "rm":
            return self._pair_loss(model, inputs)
        return self._token_loss(model, inputs, return_outputs, num_items_in_batch)

    def _token_loss(self, model: Any, inputs: Any, return_outputs: bool, num_items: Any) -> Any:
        """sum_i w_i sum_t ce_it / num_items, scaled as the Trainer scales the model's own loss."""
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        losses, active = token_losses(outputs.logits, labels)
        sums, counts = losses.sum(dim=1), active.sum(dim=1)
        weights = self._observe(sums.detach() / counts, counts, sums.detach(), self._excess(losses.detach(), active))
        total = sums.sum() if weights is None else (weights * sums).sum()
        scaled = self.model_accepts_loss_kwargs and num_items is not None
        loss = total / (num_items if scaled else counts.sum())
        auxiliary = auxiliary_loss(self.accelerator.unwrap_model(model), outputs)
        if auxiliary is not None:
            loss = loss + auxiliary
        if scaled and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _pair_loss(self, model: Any, inputs: Any) -> torch.Tensor:
        losses = pair_losses(self, inputs, model)
        weights = self._observe(losses.detach(), torch.ones_like(losses, dtype=torch.int64), losses.detach())
        return losses.mean() if weights is None else (weights * losses).mean()

    def compute_preference_loss(self, *args: Any, **kwargs: Any) -> Any:
        """dpo: LLaMA-Factory takes the mean of the losses returned here, so this is where pairs are seen and weighted."""
        losses, *rewards = super().compute_preference_loss(*args, **kwargs)
        if self.per_row and self.model.training and self._micro_ids is not None and losses.requires_grad:
            detached = losses.detach().float().clone()  # LLaMA-Factory goes on adding to `losses` in place
            weights = self._observe(detached, torch.ones_like(detached, dtype=torch.int64), detached)
            losses = losses if weights is None else weights.to(losses.dtype) * losses
        return (losses, *rewards)

    def _excess(self, losses: torch.Tensor, active: torch.Tensor) -> torch.Tensor | None:
        """Sum over the tokens of each row of what the loss exceeds that of the reference by, [B]. losses, active: [B, T]."""
        if self.reference is None:
            return None
        assert self._micro_ids is not None
        known = torch.zeros_like(losses)
        known[active] = torch.from_numpy(self.reference.of(self._micro_ids.numpy())).to(losses)
        return (losses - known).clamp(min=0).sum(dim=1)

    def _observe(
        self, losses: torch.Tensor, counts: torch.Tensor, sums: torch.Tensor, excess: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        """Note the losses of this micro-batch's rows; returns their weights, None for one each. All inputs are [B]."""
        assert self._micro_ids is not None
        domains = self.rows.domains.of(self._micro_ids.numpy())
        self.sums.add(domains, losses, counts, sums, excess)
        self._note(losses)
        weights = self._weigh(losses, counts > 0)
        if self.loss_weights is None:
            return weights
        of_domain = self.loss_weights[torch.from_numpy(domains).to(self.loss_weights.device)]
        return of_domain if weights is None else weights * of_domain

    def _note(self, losses: torch.Tensor | None) -> None:
        assert self._micro_ids is not None
        self.exposure.note(self.state.global_step + 1, self._micro_ids, losses)

    def _weigh(self, losses: torch.Tensor, trainable: torch.Tensor) -> torch.Tensor | None:
        """Row weights with mean one over the rows that count; None leaves every row at one."""
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


def auxiliary_loss(model: torch.nn.Module, outputs: Any) -> torch.Tensor | None:
    """The load-balancing loss of a mixture-of-experts model, scaled as the model itself adds it to a labelled loss."""
    value = getattr(outputs, "aux_loss", None)
    if value is None or not torch.is_tensor(value):
        return None
    config: Any = model.config
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    return value * getattr(config, "router_aux_loss_coef", 0.0)
