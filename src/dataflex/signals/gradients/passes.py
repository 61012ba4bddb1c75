"""Measurements of one batch: norms, inner products with targets, features, and the gradient of a weighted sum.

`BatchGradients` has a model, a loss per row and a choice of parameters. Each method is one forward and one backward
pass over one batch, in evaluation mode. Rows without a finite loss or without trainable tokens give NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch

from dataflex.signals.cross_entropy import forward_inputs, forward_row_losses, output_embedding, row_losses
from dataflex.signals.gradients.attention import attention_in_bf16, multiplies_bf16
from dataflex.signals.gradients.capture import Capture
from dataflex.signals.gradients.directions import Direction
from dataflex.signals.gradients.factors import Factors, dots_and_norms
from dataflex.signals.gradients.projection import Concatenation, Projection
from dataflex.signals.gradients.sites import Sites, find_sites, shape, size

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Float32
    from torch import Tensor

Targets = dict[torch.nn.Parameter, torch.Tensor]
"""By parameter, one vector per target: float32 [targets, numel]."""

MERGE_WEIGHTS = "dataflex_merge_weights"
"""The key of a batch with the weights of rows that are merged: [rows, count]."""

# Bytes of the factors of a whole batch that may be kept until its norms are known.
_KEPT_FACTORS = {"cpu": 1 << 30, "cuda": 1 << 32}

# fp16 gradients below 6e-8 vanish; the backward pass runs on the loss times this, and the result is divided by it.
_HALF_SCALE = 4096.0


class BatchGradients:
    """Gradients of the rows of a batch. The value of a row does not depend on the rest of its batch, up to rounding.

    Args:
        direction: Turns a gradient into the direction that is used; None: the gradient itself.
        half: Whether the pass runs in fp16.
        fast_bf16: Whether gradients in bf16 are multiplied in bf16, where the processor does that faster
            (`attention.multiplies_bf16`), and not in fp32.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        parameters: Literal["linear", "all"] = "linear",
        direction: Direction | None = None,
        half: bool = False,
        fast_bf16: bool = False,
    ) -> None:
        self.model, self.direction = model, direction
        self.sites: Sites = find_sites(model, parameters)
        self.names = {p: n for n, p in self.sites.covered.items()}
        self.sizes = {p: size(p) for p in self.names}
        head = output_embedding(model)
        # Dropping positions before the head would lose track of rows where the head's own gradient is asked for.
        inside = set(head.modules()) if head is not None else set()  # peft may have wrapped it
        self._whole = any(site.module in inside for site in self.sites.sites)
        self._scale = _HALF_SCALE if half else 1.0
        self._fast_bf16 = fast_bf16 and multiplies_bf16()

    # -- one batch ---------------------------------------------------------------------------------------------------

    def norms(self, batch: dict[str, Any]) -> Float32[Tensor, " B"]:
        """|direction_i|."""
        return self.dots(batch, None)[1]

    def dots(
        self, batch: dict[str, Any], targets: Targets | None
    ) -> tuple[Float32[Tensor, "B targets"], Float32[Tensor, " B"]]:
        """<direction_i, M_k> and |direction_i|."""
        rows, device = row_count(batch), batch["labels"].device
        count = len(next(iter(targets.values()))) if targets else 0
        dots = torch.zeros((rows, count), dtype=torch.float32, device=device)
        squares = torch.zeros(rows, dtype=torch.float32, device=device)

        def consume(parameter: torch.nn.Parameter, factors: Factors) -> None:
            target = targets[parameter] if targets else None
            if self.direction is None:
                some_dots, some_squares = dots_and_norms(factors, target)
                dots.add_(some_dots)
                squares.add_(some_squares)
                return
            for chunk, gradients in self._directions(parameter, factors):
                if target is not None:
                    dots[chunk] += gradients @ target.T
                squares[chunk] += torch.linalg.vector_norm(gradients, dim=1).square()

        valid = self._run(batch, consume)
        return torch.where(valid[:, None], dots, torch.nan), torch.where(valid, squares.sqrt(), torch.nan)

    def features(
        self, batch: dict[str, Any], projection: Projection | Concatenation
    ) -> Float32[Tensor, "B projection.dim"]:
        """The projected directions."""
        out = torch.zeros((row_count(batch), projection.dim), dtype=torch.float32, device=batch["labels"].device)

        def consume(parameter: torch.nn.Parameter, factors: Factors) -> None:
            if isinstance(projection, Projection) and projection.takes_factors(factors.shape):
                projection.add_factors(parameter, factors, out)
                return
            for chunk, gradients in self._directions(parameter, factors):
                projection.add_gradients(parameter, gradients, out[chunk])

        valid = self._run(batch, consume)
        return torch.where(valid[:, None], out, torch.nan)

    def add_weighted(
        self,
        batch: dict[str, Any],
        weights: Float[Tensor, " B"],
        totals: dict[torch.nn.Parameter, Float[Tensor, " numel"]],
    ) -> None:
        """totals[p] += sum_i weights_i gradient_i; rows with a weight that is not finite are left out. The gradient
        itself, whatever `direction` says."""

        def consume(parameter: torch.nn.Parameter, factors: Factors) -> None:
            totals[parameter] += factors.total()

        self._run(batch, consume, weights)

    def add_units(
        self,
        batch: dict[str, Any],
        totals: dict[torch.nn.Parameter, Float[Tensor, " numel"]],
        *,
        at_once: bool,
        dummy: bool = False,
    ) -> Bool[Tensor, " B"]:
        """totals[p] += sum_i gradient_i / |gradient_i|, and whether each row was added. The gradient itself, whatever
        `direction` says.

        Args:
            at_once: One forward and backward pass, which keeps all factors until the norms are known; else two.
            dummy: Make the passes, and add nothing.
        """
        squares = torch.zeros(row_count(batch), dtype=torch.float32, device=batch["labels"].device)
        kept: list[tuple[torch.nn.Parameter, Factors]] = []

        def consume(parameter: torch.nn.Parameter, factors: Factors) -> None:
            squares.add_(dots_and_norms(factors, None)[1])
            if at_once:
                kept.append((parameter, factors))

        valid = self._run(batch, consume)
        usable = valid & torch.isfinite(squares) & (squares > 0) & (not dummy)
        weights = torch.where(usable, squares, 1.0).rsqrt()
        if not at_once:
            self.add_weighted(batch, torch.where(usable, weights, torch.nan), totals)
        for parameter, factors in kept if not dummy else ():
            some = factors if bool(usable.all()) else factors.only(usable)
            totals[parameter] += some.scaled(weights).total()
        return usable

    def tokens_at_once(self, device: torch.device) -> int:
        """Tokens of a batch whose factors may all be kept."""
        own, value = _KEPT_FACTORS.get(device.type, _KEPT_FACTORS["cuda"]), 4
        width = sum(sum(shape(p)) if len(shape(p)) > 1 else 0 for p in self.names)
        return own // max(1, value * width)

    # -- how ---------------------------------------------------------------------------------------------------------

    def _directions(
        self, parameter: torch.nn.Parameter, factors: Factors
    ) -> Iterator[tuple[slice, Float32[Tensor, "b numel"]]]:
        turn = None if self.direction is None else self.direction.of(parameter)
        for chunk, gradients in factors.chunks():
            yield chunk, gradients if turn is None else turn(gradients)

    def _run(
        self,
        batch: dict[str, Any],
        consume: Callable[[torch.nn.Parameter, Factors], None],
        weights: Float[Tensor, " B"] | None = None,
    ) -> Bool[Tensor, " B"]:
        """Capture of sum_i weights_i l_i, l_i the token mean of row i; returns which rows count.

        With `MERGE_WEIGHTS` [rows, count] in the batch, each `count` consecutive rows are merged: sum_j merge_weights_j l_j.
        """
        # The factor of each row of the batch.
        batch = dict(batch)
        merge_weights = batch.pop(MERGE_WEIGHTS, None)
        scale = torch.full((len(batch["labels"]),), self._scale, device=batch["labels"].device)
        fold = 1 if merge_weights is None else merge_weights.shape[1]
        if weights is not None:
            scale = scale * weights.to(scale).repeat_interleave(fold)
        if merge_weights is not None:
            scale = scale * merge_weights.to(scale).flatten()
        valid, broken = (torch.zeros(len(scale), dtype=torch.bool, device=scale.device) for _ in range(2))

        def loss() -> torch.Tensor:
            if self._whole:
                sums, counts = row_losses(self.model(**forward_inputs(self.model, batch)).logits, batch["labels"])
            else:
                sums, counts = forward_row_losses(self.model, batch)
            means = sums / counts.clamp(min=1)
            broken.copy_(~torch.isfinite(means.detach()))
            valid.copy_((counts > 0) & ~broken)
            usable = valid & torch.isfinite(scale)
            return (torch.where(usable, means, 0.0) * torch.where(usable, scale, 0.0)).sum()

        def handed_on(parameter: torch.nn.Parameter, factors: Factors) -> None:
            factors = factors if self._scale == 1.0 else factors.scaled(1 / self._scale)
            if factors.device.type == "cpu":
                factors = factors.in_bf16() if self._fast_bf16 else factors.in_fp32()
            if broken.any():  # zero times what is not finite is not finite
                factors = factors.only(~broken)
            with torch.autocast(scale.device.type, enabled=False):  # what is added up is added up in fp32
                consume(parameter, factors.folded(fold))

        # One forward and backward pass; a merged row is spoilt by any of its rows that weighs something.
        rows, length = batch["input_ids"].shape
        with attention_in_bf16() if self._fast_bf16 else nullcontext():
            Capture(self.model, self.sites, handed_on).run(loss, rows, length)
        spoilt = (broken & (scale != 0)).unflatten(0, (-1, fold)).any(dim=1)
        return valid.unflatten(0, (-1, fold)).any(dim=1) & ~spoilt


def row_count(batch: dict[str, Any]) -> int:
    """Rows of a batch; merged rows count once."""
    return len(batch[MERGE_WEIGHTS]) if MERGE_WEIGHTS in batch else len(batch["labels"])
