"""The entries of a micro-batch that are weighed: its rows, the sequences of its packed rows, or its tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from dataflex.components.signal_request import SignalRequest
from dataflex.distributed.collectives import gather_ragged, gather_rows
from dataflex.signals.cross_entropy import output_embedding
from dataflex.signals.embeddings import pooling_weights, sequences_of

_NO_ROW = -1


@dataclass(frozen=True)
class LossEntries:
    """Rows, sequences or tokens that are weighed."""

    losses: torch.Tensor
    """float32 [n]."""
    ids: torch.Tensor
    """The sample id of each entry, int64 [n]; -1 for padding."""
    signals: Mapping[SignalRequest, torch.Tensor] = field(default_factory=dict)
    """Signals of the entries, [n, ...] each."""

    def __len__(self) -> int:
        return len(self.ids)

    def mapped(self, change: Callable[[torch.Tensor], torch.Tensor]) -> LossEntries:
        """The result of `change` on every tensor. All ranks use the same order, since a change may be a collective."""
        signals = {k: change(self.signals[k]) for k in sorted(self.signals, key=str)}
        return LossEntries(change(self.losses), change(self.ids), signals)

    def finite(self) -> torch.Tensor:
        """bool [n]: entries that are no padding, and have a finite loss and finite signals."""
        out = torch.isfinite(self.losses) & (self.ids != _NO_ROW)
        for values in self.signals.values():
            out = (
                out & torch.isfinite(values).flatten(1).all(dim=1) if values.ndim > 1 else out & torch.isfinite(values)
            )
        return out

    def countable(self) -> LossEntries:
        """The entries that count."""
        kept = self.finite()
        return self.mapped(lambda v: v[kept])

    def padded(self, length: int) -> LossEntries:
        """With padding at the end, which does not count."""
        missing = length - len(self)
        if missing <= 0:
            return self

        def extended(values: torch.Tensor, fill: float) -> torch.Tensor:
            return torch.cat([values, values.new_full((missing, *values.shape[1:]), fill)])

        signals = {k: extended(v, 0.0) for k, v in self.signals.items()}
        return LossEntries(extended(self.losses, torch.nan), extended(self.ids, _NO_ROW), signals)

    def gathered(self, equal_counts: bool) -> LossEntries:
        """The entries of all ranks. equal_counts: whether every rank has as many."""
        if equal_counts:
            return self.mapped(gather_rows)
        counts = gather_rows(torch.tensor([len(self)], device=self.losses.device)).tolist()
        return self.mapped(lambda v: gather_ragged(v, counts))


def joined(parts: Sequence[LossEntries]) -> LossEntries:
    first = parts[0]
    signals = {k: torch.cat([s.signals[k] for s in parts]) for k in first.signals}
    return LossEntries(torch.cat([s.losses for s in parts]), torch.cat([s.ids for s in parts]), signals)


@dataclass(frozen=True)
class Tokens:
    """The tokens of a micro-batch. The value of a token is at the index that it is predicted from."""

    losses: torch.Tensor
    """Cross entropies, float32 [B, T]; zero where there is no trainable token."""
    active: torch.Tensor
    """bool [B, T]: whether there is a trainable token."""
    inputs: Mapping[str, Any]
    """Inputs of the model."""
    hidden: Mapping[int, torch.Tensor] = field(default_factory=dict)
    """Hidden states, by layer, [B, T, H]."""
    reference_losses: Mapping[SignalRequest, torch.Tensor] = field(default_factory=dict)
    """Losses of reference models, by request, [B, T]."""
    given: torch.Tensor | None = None
    """The data's own weights, [B, T], at the indices of the tokens themselves."""

    def predicted(self, values: torch.Tensor) -> torch.Tensor:
        """Values of tokens, [B, T], moved to the indices that the tokens are predicted from."""
        return F.pad(values[:, 1:], (0, 1))

    def by_token(self, ids: torch.Tensor, requests: frozenset[SignalRequest]) -> LossEntries:
        """One entry for each trainable token. ids: int64 [B]."""
        rows = self.active.nonzero()[:, 0]
        signals = {r: self._token_values(r)[self.active] for r in requests}
        return LossEntries(self.losses[self.active], ids.to(rows.device)[rows], signals)

    def by_row(self, ids: torch.Tensor, losses: torch.Tensor, requests: frozenset[SignalRequest]) -> LossEntries:
        """One entry for each row. losses: token means, [B]."""
        counts = self.active.sum(dim=1)
        signals: dict[SignalRequest, torch.Tensor] = {}
        for request in requests:
            if (states := request.hidden_states()) is not None:
                weights = pooling_weights(sequences_of(self.inputs).to(self.losses.device), states[1])
                signals[request] = torch.einsum("bt,bth->bh", weights, self.hidden[states[0]].float())
            else:
                signals[request] = (self._token_values(request) * self.active).sum(dim=1) / counts.clamp_min(1)
        return LossEntries(losses, ids.to(losses.device), signals)

    def by_sequence(self, ids: torch.Tensor, requests: frozenset[SignalRequest]) -> tuple[LossEntries, torch.Tensor]:
        """One entry for each sequence with a trainable token; and the entry of each trainable token, int64 [B, T]."""
        numbers = sequence_numbers(self.inputs)
        width = int(numbers.max()) + 1
        keys = torch.arange(len(numbers), device=numbers.device)[:, None] * width + numbers
        learned, entry_of_trainable = torch.unique(self.predicted(keys)[self.active], return_inverse=True)
        entry_of_token = torch.zeros_like(keys)
        entry_of_token[self.active] = entry_of_trainable
        counts = torch.bincount(entry_of_trainable, minlength=len(learned))

        def mean(values: torch.Tensor) -> torch.Tensor:
            total = torch.zeros(len(learned), dtype=torch.float32, device=values.device)
            return total.index_add(0, entry_of_trainable, values[self.active].float()) / counts

        signals: dict[SignalRequest, torch.Tensor] = {}
        for request in requests:
            if (states := request.hidden_states()) is not None:
                signals[request] = self._pooled(*states, keys, learned)
            else:
                signals[request] = mean(self._token_values(request))
        return LossEntries(mean(self.losses), ids.to(learned.device)[learned // width], signals), entry_of_token

    def _pooled(self, layer: int, pooling: str, keys: torch.Tensor, learned: torch.Tensor) -> torch.Tensor:
        """[entries, H]: the hidden states of the tokens of each sequence, pooled."""
        if not len(learned):
            return torch.zeros(0, self.hidden[layer].shape[-1], device=keys.device)
        entry = torch.searchsorted(learned, keys).clamp_max(len(learned) - 1)
        inside = learned[entry] == keys
        # Adds up to 1 / sequences of the row.
        shares = pooling_weights(torch.where(inside, entry + 1, 0), pooling)
        hidden = self.hidden[layer]
        out = torch.zeros(len(learned), hidden.shape[-1], dtype=torch.float32, device=hidden.device)
        out.index_add_(0, entry[inside], shares[inside][:, None] * hidden[inside].float())
        total = torch.zeros(len(learned), dtype=torch.float32, device=hidden.device)
        return out / total.index_add(0, entry[inside], shares[inside])[:, None]

    def _token_values(self, request: SignalRequest) -> torch.Tensor:
        if request in self.reference_losses:
            return self.reference_losses[request]
        assert self.given is not None
        return self.predicted(self.given)


def sequence_numbers(inputs: Mapping[str, Any]) -> torch.Tensor:
    """int64 [B, T]: which original sequence of its packed row a token belongs to. Positions start again at 0 with each, with
    LLaMA-Factory's packing as with its neat packing; they may end before what the collator added."""
    positions, shape = inputs.get("position_ids"), inputs["input_ids"].shape
    if positions is None or positions.ndim != 2:
        return sequences_of(inputs)
    return F.pad((positions == 0).long().cumsum(dim=1), (0, shape[1] - positions.shape[1]))


def forward_with_states(
    call: torch.nn.Module, model: torch.nn.Module, inputs: Mapping[str, Any], layers: frozenset[int]
) -> tuple[Any, dict[int, torch.Tensor]]:
    """The outputs of `call`, and the hidden states after `layers`, [B, T, H] each, from that same forward pass. call: the model
    as it trains, wrapped or not. The last layer (-1) is caught on its way to the output embedding, so that no others are kept."""
    found: dict[int, torch.Tensor] = {}
    head = output_embedding(model) if -1 in layers else None

    def keep(_: torch.nn.Module, args: tuple[Any, ...]) -> None:
        found[-1] = args[0].detach()

    hook = head.register_forward_pre_hook(keep) if head is not None else None
    others = layers if head is None else layers - {-1}
    try:
        outputs = call(**inputs, **({"output_hidden_states": True} if others else {}))
    finally:
        if hook is not None:
            hook.remove()
    return outputs, found | {layer: outputs.hidden_states[layer].detach() for layer in others}
