"""What a run of dataflex 1.1.0's flat keys does otherwise than one of the block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Compatibility:
    """epoch_rounding: whether a partial last batch counts as a step of an epoch, and a part of a step as one of the run ("up", as
    the Trainer does), or neither ("down", as dataflex 1.1.0 did for mixtures).

    early_stopping_min_delta: how much better an evaluation must be to count as better.
    held_out_key: how the user wrote `mix.eval_dataset`.
    """

    epoch_rounding: Literal["up", "down"] = "up"
    early_stopping_min_delta: float = 0.0
    held_out_key: str = "dataflex.mix.eval_dataset"


AS_THE_BLOCK = Compatibility()  # differs in nothing
