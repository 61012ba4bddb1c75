"""What the selectors that compare gradients have in common."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from dataflex.components.contracts import Selector
from dataflex.components.requests import Request, TargetAlignment

if TYPE_CHECKING:
    from jaxtyping import Float, Int

# Adam's step says little while the averages behind it hold few gradients; beta1 = 0.9 remembers about ten.
_WARMUP = 10


@dataclass(frozen=True, kw_only=True)
class GradientSelector(Selector, ABC):
    """Base of the selectors that compare gradients of rows with those of a target (see `gradient_requests.Gradient`)."""

    gradient_type: Literal["adam", "sgd"] = "adam"
    """Direction of the rows: the step that Adam would take on a row, or its gradient."""
    adam_step: Literal["optimizer", "authors"] = "optimizer"
    """Which step `adam` is: that of the run's own optimizer, or that of the program of LESS's authors."""
    proj_dim: int | None = None
    """Project gradients to so many values; null: exact where that fits, else 8192 values."""
    seed: int = 0
    """Of the projection."""
    parameters: Literal["linear", "all"] = "linear"
    """Whose gradients: those of the linear layers but the output embedding, or of all parameters."""

    gradient_precision: Literal["run", "fp32"] = "run"
    """In a bf16 run on a CPU with AMX or avx512_bf16: `run` multiplies gradients in bf16. No effect elsewhere."""

    retired: ClassVar[Mapping[str, str]] = {
        "cache_dir": "nothing is cached: a score depends on the model it was made with",
        "save_interval": "rows are reduced to their scores as they are measured",
    }

    def check(self) -> None:
        self.require_proj_dim()
        self.require(
            "adam_step",
            self.gradient_type == "adam" or self.adam_step == "optimizer",
            "left out with gradient_type: sgd",
        )

    def request(self) -> Request:
        """What is measured of a row: how far its gradient agrees with those of each subtask of the target."""
        return TargetAlignment(**self.taken)

    def needs(self) -> frozenset[Request]:
        return frozenset({self.request()})

    def default_warmup(self) -> int:
        return _WARMUP if self.gradient_type == "adam" else 0

    @property
    def taken(self) -> dict[str, Any]:
        """How gradients are taken: the fields of a Gradient."""
        names = ("gradient_type", "adam_step", "proj_dim", "seed", "parameters", "gradient_precision")
        return {name: getattr(self, name) for name in names}


def best_datasets(influence: Float[np.ndarray, "rows datasets"], chosen: Int[np.ndarray, " chosen"]) -> dict[str, Any]:
    """Fields of a Selection where the score of a row is its largest influence on a data set of the target: which one that is.

    With a single data set there is nothing to tell.
    """
    if influence.shape[1] == 1:
        return {}
    best = influence.argmax(axis=1)
    return {"chosen_for": best[chosen], "score_from": best, "for_datasets": True}
