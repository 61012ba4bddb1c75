"""Log-likelihoods of the labelled tokens of rows, in batches that are shared by the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dataflex.distributed.collectives import gather, rank, ranks
from dataflex.signals.batching import order_of, share
from dataflex.signals.cross_entropy import IGNORE, forward_token_losses
from dataflex.signals.isolation import isolated
from dataflex.signals.passing import in_rounds, passing

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@dataclass(frozen=True)
class LabelledRow:
    """Tokens of a row, and which of them are to be predicted."""

    ids: Sequence[int]
    """Token ids [T]."""
    labels: Sequence[int]
    """The same ids [T], IGNORE where a token is only read."""

    @classmethod
    def of(cls, prompt: Sequence[int], answer: Sequence[int]) -> LabelledRow:
        """A row whose answer is to be predicted from its prompt."""
        return cls([*prompt, *answer], [IGNORE] * len(prompt) + list(answer))

    @property
    def answer_tokens(self) -> int:
        """Predicted tokens. The first token of a row has nothing before it, so it is not among them."""
        return sum(label != IGNORE for label in self.labels[1:])


def batches_of(lengths: Int[np.ndarray, " rows"], most_rows: int) -> list[np.ndarray]:
    """Indices of rows, in batches of `most_rows` of similar length, longest first. Does not depend on the number of ranks."""
    order = order_of(lengths)
    return [order[start : start + most_rows] for start in range(0, len(order), most_rows)]


def log_likelihoods(
    model: Any, rows: Sequence[LabelledRow], *, batch_rows: int, pad: int, device: torch.device, name: str
) -> Float[np.ndarray, " rows"]:
    """log p of the labelled tokens of each row in nats, equal on every rank.

    Logits are computed in the model's precision, and only where a token is predicted. Their softmax is fp32, the sums are
    fp64. So a value depends on the batch of its row only by rounding.

    Args:
        batch_rows: Rows of a batch at most.
        pad: Any token id: what stands there is never looked at.
        name: What is measured, for the progress of the pass.
    """
    if not rows:
        return np.empty(0)
    batches = batches_of(np.array([len(row.ids) for row in rows]), batch_rows)
    mine, _ = share(batches, rank(), ranks())
    found: dict[int, float] = {}
    rounds = in_rounds(batches)
    with isolated(model), passing(name, len(rows)) as under_way:
        for turn, batch in enumerate(mine):
            losses, predicted = forward_token_losses(model, _padded([rows[i] for i in batch], pad, device))
            sums = torch.zeros(len(batch), dtype=torch.float64)
            sums.index_add_(0, predicted.nonzero()[:, 0].cpu(), losses.double().cpu())
            found |= dict(zip(batch.tolist(), (-sums).tolist(), strict=True))
            under_way.advance(rounds[turn])
    found = {row: value for part in gather(found) for row, value in part.items()}
    return np.array([found[row] for row in range(len(rows))])


def _padded(rows: Sequence[LabelledRow], pad: int, device: torch.device) -> dict[str, torch.Tensor]:
    """A batch that is padded on the right: positions then count from the first token of every row."""
    width = max(len(row.ids) for row in rows)

    def filled(values: Sequence[Sequence[int]], with_what: int) -> torch.Tensor:
        return torch.tensor([[*own, *[with_what] * (width - len(own))] for own in values], device=device)

    return {
        "input_ids": filled([row.ids for row in rows], pad),
        "attention_mask": filled([[1] * len(row.ids) for row in rows], 0),
        "labels": filled([row.labels for row in rows], IGNORE),
    }
