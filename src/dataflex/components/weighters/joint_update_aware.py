"""Joint update-aware weights: near the target and unlike each other (the weighter of that name of dataflex 1.1.0)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from dataflex.components.contexts import State, WeightContext
from dataflex.components.contracts import Weighter
from dataflex.components.requests import Embedding, Request, TargetEmbedding
from dataflex.components.tools.embeddings import unit_vectors
from dataflex.errors import DataflexError

if TYPE_CHECKING:
    import torch

_MODES = ("full", "align_only", "diverse_only", "uniform")


@dataclass(frozen=True, kw_only=True)
class JointUpdateAwareWeighter(Weighter):
    """Rows near the target that are unlike each other pull harder.

    The weights on the simplex over the rows referred to that maximise

        s.w - beta/2 w^T S w + tau H(w),    s_i = z_i.u,  S_ij = z_i.z_j

    z: embeddings of the rows, of length one if embed_normalize; u: the mean embedding of the target, made every
    target_update_step steps. At the optimum w_i is proportional to exp((s_i - beta z_i.v) / tau) with v = sum_j w_j z_j,
    which is iterated fixed_point_iters times from equal weights, each time going `damping` of the way. A row is weighed by
    that formula with the v found, a row better than all of these as the best of them.

    Departures:

    Compared with the weighter of dataflex 1.1.0, since there is no paper. What is different:

    - Weights of 1.1.0 added up to one over each micro-batch, in which a single row weighed one; here over what they refer to,
      the global batch.
    - Its target was one row unless told otherwise, and each rank embedded it; here it is all rows, dealt to the ranks.
    - It made a second forward pass, with labels, for each micro-batch, and took rows to be padded on the right; here
      embeddings come from the pass that trains, whatever the padding side and the packing.
    """

    beta: float = 0.1
    """Weight of redundancy."""
    tau: float = 0.05
    """Temperature: smaller values set rows further apart."""
    fixed_point_iters: int = 5
    """Iterations."""
    damping: float = 1.0
    """Step of an iteration; less than one where beta / tau is so large that the iteration swings."""
    target_update_step: int = 50
    """Optimizer steps between two embeddings of the target."""
    embed_normalize: bool = True
    """Bring embeddings to length one."""
    pooling: Literal["last_token", "mean_pool"] = "last_token"
    """Hidden state of the last token, or the mean over the tokens of a row."""
    embed_layer: int = -1
    """Layer after which hidden states are taken; -1: the last; 0: the input embedding."""
    objective_mode: str = "full"
    """The whole objective; without S; without s, which needs no target; or equal weights."""

    retired: ClassVar[Mapping[str, str]] = {
        "target_batch_size": "scoring batches are made by tokens (dataflex.scoring_tokens)",
        "target_num_batches": "the target is all rows of target_dataset",
    }

    def check(self) -> None:
        self.require("beta", self.beta >= 0, "at least 0")
        self.require("tau", self.tau > 0, "positive")
        self.require("fixed_point_iters", self.fixed_point_iters >= 1, "at least 1")
        self.require("damping", 0 < self.damping <= 1, "in (0, 1]")
        self.require("target_update_step", self.target_update_step >= 1, "at least 1")
        self.require_choice("objective_mode", _MODES)

    def needs(self) -> frozenset[Request]:
        layer, pooling = self.embed_layer, ("last" if self.pooling == "last_token" else "mean")
        if self.objective_mode == "uniform":
            return frozenset()
        target = {TargetEmbedding(layer=layer, pooling=pooling)} if self._aims else set()  # type: ignore[arg-type]
        return frozenset({Embedding(layer=layer, pooling=pooling), *target})  # type: ignore[arg-type]

    @property
    def _aims(self) -> bool:
        return self.objective_mode in ("full", "align_only")

    def target_interval(self) -> int | None:
        return self.target_update_step if self._aims else None

    def aim(self, state: State, target: np.ndarray) -> State:
        vectors = unit_vectors(target) if self.embed_normalize else target[np.isfinite(target).all(axis=1)]
        if not len(vectors):
            raise DataflexError("weight: no row of the target has an embedding")
        return {"u": vectors.mean(axis=0)}

    def weights(self, state: State, losses: torch.Tensor, context: WeightContext) -> torch.Tensor:
        import torch

        if self.objective_mode == "uniform":
            return torch.ones_like(losses)
        z, others = self._scaled(context.signals["embedding"]), self._scaled(context.reference_signals["embedding"])
        u = (
            torch.as_tensor(state["u"], dtype=z.dtype, device=z.device)
            if self._aims
            else torch.zeros_like(z[0:1].sum(0))
        )
        s, beta = others @ u, (0.0 if self.objective_mode == "align_only" else self.beta)
        w = torch.full_like(s, 1 / len(s))
        for _ in range(self.fixed_point_iters):
            best = torch.softmax((s - beta * (others @ (w @ others))) / self.tau, dim=0)
            w = (1 - self.damping) * w + self.damping * best
        v = w @ others
        highest = ((s - beta * (others @ v)) / self.tau).max()
        # A row later than the reference counts as its best at most, so that one row cannot outweigh all the others.
        return torch.exp(((z @ u - beta * (z @ v)) / self.tau - highest).clamp_max(0.0))

    def _scaled(self, embeddings: torch.Tensor) -> torch.Tensor:
        from torch.nn.functional import normalize

        return normalize(embeddings, dim=1) if self.embed_normalize else embeddings
