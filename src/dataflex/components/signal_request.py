"""The base of all requests for a signal: its facts, and what they are where a request does not say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, ClassVar, Literal

Work = Literal["none", "text encoder", "forward", "forward and backward", "generation"]
"""What measuring a signal takes, the least first; none: it is read from the data, or training has it anyway."""


class SignalRequest:
    """Base of all requests. A class says by its attributes what differs from the values here."""

    name: ClassVar[str]
    """What the value is called. Two requests may share a name where a component asks for one of them only."""
    slots: ClassVar[tuple[str, ...]] = ()
    """Families of components that may ask for it: select, mix, weight, order."""
    per: ClassVar[Literal["row", "target row", "held-out row", "domain", "token"]] = "row"
    """What has a value of its own; `token`: each token or row that is trained on."""
    aim: ClassVar[Literal["target", "held out", "held out if named"] | None] = None
    """Rows that it reads beside those trained on. `held out if named`: for the domains that have some."""
    needs_tokens: ClassVar[bool] = False
    """Only where a row is one sequence of tokens (stages pt and sft)."""
    needs_prompts: ClassVar[bool] = False
    """Only where rows have a prompt (not in stage pt)."""
    needs_experts: ClassVar[bool] = False
    """Only for a mixture-of-experts model."""
    from_losses: ClassVar[bool] = True
    """It needs a loss per row. Settings that hide the losses of rows are then refused."""
    stage_loss: ClassVar[bool] = False
    """It is the stage's own loss of a row by itself, or comes from it."""
    takes_gradients: ClassVar[bool] = False
    """It is made from gradients of rows."""
    streamed: ClassVar[bool] = False
    """It can be had where the training data is a stream."""
    free: ClassVar[bool] = False
    """Training sums it up by itself, so nothing is measured."""
    kept: ClassVar[bool] = False
    """Its values can be kept on disk, row by row."""
    work: ClassVar[Work] = "forward"
    """What measuring it takes, unless `cost` says otherwise."""
    cost: ClassVar[str] = "a forward pass over the data per update"
    """The same in words."""
    file_key: ClassVar[str | None] = None
    """Key of `dataflex.offline` that names a file with its values."""

    def work_for(self, slot: str) -> tuple[Work, str]:
        """What measuring it takes for a component of a family, and that in words."""
        return self.work, self.cost

    def reads(self) -> Literal["model", "model and reference", "encoder"]:
        """The model that its value depends on. The reference is that of dpo, where there is one."""
        return "model"

    def reads_moments(self) -> bool:
        """Whether it reads the moments of the run's optimizer."""
        return False

    def needs_whole_parameters(self) -> bool:
        """Whether it cannot be measured where the parameters are split over ranks."""
        return False

    def hidden_states(self) -> tuple[int, str] | None:
        """(layer, pooling) of the model's hidden states that it is, if it is that."""
        return None

    def other_models(self) -> Mapping[str, str]:
        """Models that it names beside the one trained, by what they are to it: reference, encoder, reward model."""
        return {}

    def own_folder(self) -> str | None:
        """Where the user wants its values kept."""
        return None

    def key(self) -> dict[str, Any]:
        """What tells its values on disk from those of other requests."""
        parameters = asdict(self) if fields(self) else {}  # type: ignore[call-overload, arg-type]
        return {"signal": self.name} | ({"request": {"kind": type(self).__name__, **parameters}} if parameters else {})
