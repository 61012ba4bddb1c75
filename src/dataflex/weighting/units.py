"""What weighers look at in a micro-batch: its rows, the original sequences of its packed rows, or its tokens."""

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
class Sample:
    """Rows or tokens: losses float32 [n], ids of their rows int64 [n], and what else was asked for of each, [n, ...]."""

    losses: torch.Tensor
    ids: torch.Tensor
    signals: Mapping[SignalRequest, torch.Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def mapped(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Sample:
        """In an order that all ranks share, since a change may be a collective: that of a set differs between processes."""
        signals = {k: change(self.signals[k]) for k in sorted(self.signals, key=str)}
        return Sample(change(self.losses), change(self.ids), signals)

    def finite(self) -> torch.Tensor:
        """bool [n]: a row, with a loss and everything else."""
        out = torch.isfinite(self.losses) & (self.ids != _NO_ROW)
        for values in self.signals.values():
            out = (
                out & torch.isfinite(values).flatten(1).all(dim=1) if values.ndim > 1 else out & torch.isfinite(values)
            )
        return out

    def valid(self) -> Sample:
        """Those that count."""
        kept = self.finite()
        return self.mapped(lambda v: v[kept])

    def padded(self, length: int) -> Sample:
        """With rows that do not count at the end."""
        missing = length - len(self)
        if missing <= 0:
            return self

        def extended(values: torch.Tensor, fill: float) -> torch.Tensor:
            return torch.cat([values, values.new_full((missing, *values.shape[1:]), fill)])

        signals = {k: extended(v, 0.0) for k, v in self.signals.items()}
        return Sample(extended(self.losses, torch.nan), extended(self.ids, _NO_ROW), signals)

    def gathered(self, equal_counts: bool) -> Sample:
        """Of all ranks; equal_counts: every rank has as many."""
        if equal_counts:
            return self.mapped(gather_rows)
        counts = gather_rows(torch.tensor([len(self)], device=self.losses.device)).tolist()
        return self.mapped(lambda v: gather_ragged(v, counts))


def joined(samples: Sequence[Sample]) -> Sample:
    first = samples[0]
    signals = {k: torch.cat([s.signals[k] for s in samples]) for k in first.signals}
    return Sample(torch.cat([s.losses for s in samples]), torch.cat([s.ids for s in samples]), signals)


@dataclass(frozen=True)
class Tokens:
    """The tokens of a micro-batch. A value stands where its token is predicted from."""

    losses: torch.Tensor
    """Cross entropies, float32 [B, T], zero where nothing is learned."""
    active: torch.Tensor
    """bool [B, T]: whether something is learned."""
    inputs: Mapping[str, Any]
    """Of the model."""
    hidden: Mapping[int, torch.Tensor] = field(default_factory=dict)
    """States asked for, by layer, [B, T, H]."""
    reference: Mapping[SignalRequest, torch.Tensor] = field(default_factory=dict)
    """Losses of reference models, by request, [B, T]."""
    given: torch.Tensor | None = None
    """The data's own weights, [B, T], each where its token stands."""

    def predicted(self, values: torch.Tensor) -> torch.Tensor:
        """Values of tokens, [B, T], moved to where the tokens are predicted from."""
        return F.pad(values[:, 1:], (0, 1))

    def by_token(self, ids: torch.Tensor, requests: frozenset[SignalRequest]) -> Sample:
        """One entry for each token that is learned. ids: int64 [B]."""
        rows = self.active.nonzero()[:, 0]
        signals = {r: self._token_values(r)[self.active] for r in requests}
        return Sample(self.losses[self.active], ids.to(rows.device)[rows], signals)

    def by_row(self, ids: torch.Tensor, losses: torch.Tensor, requests: frozenset[SignalRequest]) -> Sample:
        """One entry for each row. losses: token means, [B]."""
        counts = self.active.sum(dim=1)
        signals: dict[SignalRequest, torch.Tensor] = {}
        for request in requests:
            if (states := request.hidden_states()) is not None:
                weights = pooling_weights(sequences_of(self.inputs).to(self.losses.device), states[1])
                signals[request] = torch.einsum("bt,bth->bh", weights, self.hidden[states[0]].float())
            else:
                signals[request] = (self._token_values(request) * self.active).sum(dim=1) / counts.clamp_min(1)
        return Sample(losses, ids.to(losses.device), signals)

    def by_sequence(self, ids: torch.Tensor, requests: frozenset[SignalRequest]) -> tuple[Sample, torch.Tensor]:
        """One entry for each original sequence with something to learn, and int64 [B, T]: the entry of each token learned."""
        numbers = sequence_numbers(self.inputs)
        width = int(numbers.max()) + 1
        keys = torch.arange(len(numbers), device=numbers.device)[:, None] * width + numbers
        learned, entry = torch.unique(self.predicted(keys)[self.active], return_inverse=True)
        place = torch.zeros_like(keys)
        place[self.active] = entry
        counts = torch.bincount(entry, minlength=len(learned))

        def mean(values: torch.Tensor) -> torch.Tensor:
            total = torch.zeros(len(learned), dtype=torch.float32, device=values.device)
            return total.index_add(0, entry, values[self.active].float()) / counts

        signals: dict[SignalRequest, torch.Tensor] = {}
        for request in requests:
            if (states := request.hidden_states()) is not None:
                signals[request] = self._pooled(*states, keys, learned)
            else:
                signals[request] = mean(self._token_values(request))
        return Sample(mean(self.losses), ids.to(learned.device)[learned // width], signals), place

    def _pooled(self, layer: int, pooling: str, keys: torch.Tensor, learned: torch.Tensor) -> torch.Tensor:
        """[entries, H]: the hidden states of the tokens of each sequence, pooled."""
        if not len(learned):
            return torch.zeros(0, self.hidden[layer].shape[-1], device=keys.device)
        places = torch.searchsorted(learned, keys).clamp_max(len(learned) - 1)
        inside = learned[places] == keys
        # Adds up to 1 / sequences of the row.
        shares = pooling_weights(torch.where(inside, places + 1, 0), pooling)
        hidden = self.hidden[layer]
        out = torch.zeros(len(learned), hidden.shape[-1], dtype=torch.float32, device=hidden.device)
        out.index_add_(0, places[inside], shares[inside][:, None] * hidden[inside].float())
        total = torch.zeros(len(learned), dtype=torch.float32, device=hidden.device)
        return out / total.index_add(0, places[inside], shares[inside])[:, None]

    def _token_values(self, request: SignalRequest) -> torch.Tensor:
        if request in self.reference:
            return self.reference[request]
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
