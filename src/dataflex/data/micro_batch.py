"""What training knows of a micro-batch beside the model's inputs, as one value that travels with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dataflex.data.rows import GIVEN_WEIGHTS, SAMPLE_IDS

# The key of a batch that holds its MicroBatch on the way through LLaMA-Factory's trainer.
MICRO_BATCH = "dataflex_micro_batch"


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """The rows of one micro-batch of an optimizer step."""

    ids: torch.Tensor
    """Sample ids, int64 [B], on the CPU."""
    weights: torch.Tensor | None = None
    """The data's own weights, float32 [B] or of tokens [B, T]."""
    tags: torch.Tensor | None = None
    """Stage kto: whether an answer is wanted, bool [B]."""
    number: int = 0
    """The index of this micro-batch in its optimizer step."""
    count: int = 1
    """Micro-batches of the optimizer step."""
    domain_factors: torch.Tensor | None = None
    """The factor on the losses of each domain in this step, float32 [k]."""

    @property
    def alone(self) -> bool:
        """Whether it is the whole step of this rank."""
        return self.count == 1


def attach(batches: Sequence[Any], domain_factors: torch.Tensor | None = None) -> None:
    """Replace our own columns in the batches of an optimizer step by a MicroBatch each."""
    for number, batch in enumerate(batches):
        batch[MICRO_BATCH] = MicroBatch(
            batch.pop(SAMPLE_IDS).cpu(),
            batch.pop(GIVEN_WEIGHTS, None),
            batch.get("kto_tags"),
            number,
            len(batches),
            domain_factors,
        )


def apart(batches: Sequence[Any]) -> Iterator[tuple[MicroBatch, Mapping[str, Any]]]:
    """Each MicroBatch of an optimizer step, and the model's inputs without it."""
    for batch in batches:
        yield batch[MICRO_BATCH], {k: v for k, v in batch.items() if k != MICRO_BATCH}
