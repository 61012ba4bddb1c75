"""ADAPT: rows near the target pull harder (the weighter `adapt` of dataflex 1.1.0, here with mean one and one forward pass)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from dataflex.components.contexts import State, WeightContext
from dataflex.components.contracts import Weighter
from dataflex.components.requests import Embedding, Request, TargetEmbedding
from dataflex.components.tools.embeddings import unit_vectors

if TYPE_CHECKING:
    from jaxtyping import Float, Float32
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class AdaptWeighter(Weighter):
    """Rows that resemble the target pull harder.

    w_i is proportional to sigmoid(s_i / tau), s_i = mean over the anchors a of cos(phi_i, phi_a). phi are hidden states of
    the current model. Anchors are the rows of the target, embedded again every `refresh_interval` steps. Cosines are linear
    in the unit vector of an anchor, so only the mean of these vectors is kept.

    Departures:

    Compared with the weighter of dataflex 1.1.0, since there is no paper. What is different:

    - 1.1.0 added up w_i l_i, which grows with the batch, and the gradient with it; here weights have mean one.
    - It made a second forward pass for each micro-batch; here embeddings of the rows come from the pass that trains.
    - It embedded all of the target on every rank with dropout on, again for each micro-batch of the step; here that is done
      in evaluation mode, once per refresh, dealt to the ranks.
    - Packed rows, several data sets as the target, `embedding_layer` and `pooling` are new.
    """

    tau: float = 1.0
    """Temperature: smaller values set rows further apart."""
    refresh_interval: int = 50
    """Optimizer steps between two embeddings of the target."""
    clip: float | None = None
    """A weight above so many times the mean of the comparison batch is cut to that, before weights are normalised; null:
    no weight is cut."""
    embedding_layer: int = -1
    """Layer after which hidden states are taken; -1: the last; 0: the input embedding."""
    pooling: Literal["mean", "weighted_mean", "last"] = "weighted_mean"
    """How hidden states are averaged over the tokens of a row; `weighted_mean`: token i weighs i; `last`: the last token
    alone."""

    retired: ClassVar[Mapping[str, str]] = {
        "anchor_batch_size": "scoring batches are made by tokens (dataflex.scoring_tokens)",
        "eps": "a row without an embedding has no weight, and nothing else is divided by zero",
    }

    def check(self) -> None:
        self.require("tau", self.tau > 0, "positive")
        self.require("refresh_interval", self.refresh_interval >= 1, "at least 1")
        self.require("clip", self.clip is None or self.clip > 1, "above 1")

    def needs(self) -> frozenset[Request]:
        layer, pooling = self.embedding_layer, self.pooling
        return frozenset({Embedding(layer=layer, pooling=pooling), TargetEmbedding(layer=layer, pooling=pooling)})

    def target_interval(self) -> int:
        return self.refresh_interval

    def aim(self, state: State, target: Float32[np.ndarray, "targets dims"]) -> State:
        anchors = unit_vectors(target)
        return {"anchor": anchors.mean(axis=0)}

    def weights(
        self, state: State, losses: Float32[Tensor, " losses"], context: WeightContext
    ) -> Float32[Tensor, " losses"]:
        import torch

        anchor = torch.as_tensor(state["anchor"], dtype=torch.float32, device=losses.device)
        found = self._near(context.signals["embedding"], anchor)
        if self.clip is not None:
            found = found.clamp_max(self.clip * self._near(context.reference_signals["embedding"], anchor).mean())
        return found

    def _near(
        self, embeddings: Float[Tensor, "losses dims"], anchor: Float[Tensor, " dims"]
    ) -> Float[Tensor, " losses"]:
        from torch.nn.functional import normalize

        return (normalize(embeddings, dim=1) @ anchor / self.tau).sigmoid()
