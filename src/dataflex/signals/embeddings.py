"""The `embedding` signal: hidden states of the current model, pooled over the tokens of a row, or a text encoder's vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dataflex.distributed.collectives import add_over_ranks, rank, ranks
from dataflex.errors import DataflexError
from dataflex.signals.batching import ScoringRows, over_rows
from dataflex.signals.cross_entropy import forward_inputs, output_embedding
from dataflex.signals.isolation import isolated, loaded_whole
from dataflex.signals.keeping.memory import SignalCache
from dataflex.signals.pace import pieces
from dataflex.signals.passing import passing

if TYPE_CHECKING:
    from jaxtyping import Float32, Int64
    from torch import Tensor

# Texts given to the encoder at once; it forms batches of its own.
_TEXTS = 256
# Of a text, as far as they bound a piece: 16384 texts are one.
_TOKENS = 128


def model_embeddings(
    model: torch.nn.Module, rows: ScoringRows, *, layer: int = -1, pooling: str = "mean"
) -> Float32[np.ndarray, "rows hidden"]:
    """Padding is left out on either side. Equal on every rank, NaN where a row is not finite."""
    with isolated(model):
        return over_rows(rows, lambda b: row_embeddings(model, b, layer, pooling), "embeddings", torch.float32)


def row_embeddings(
    model: torch.nn.Module, batch: Mapping[str, Any], layer: int, pooling: str
) -> Float32[Tensor, "B hidden"]:
    """Hidden states after `layer` at the tokens that the attention mask admits; no logits are made."""
    head = output_embedding(model)
    skip = head.register_forward_pre_hook(lambda _, args: (args[0][:, :1],)) if head is not None else None
    try:
        states = model(**forward_inputs(model, batch), output_hidden_states=True).hidden_states
    finally:
        if skip is not None:
            skip.remove()
    if not -len(states) <= layer < len(states):
        raise DataflexError(
            f"embedding_layer: there is no layer {layer}; the model has {len(states) - 1}, and 0 is its input"
        )
    hidden = states[layer].float()
    weights = pooling_weights(sequences_of(batch).to(hidden.device), pooling)
    return torch.einsum("bt,bth->bh", weights, hidden)


def sequences_of(batch: Mapping[str, Any]) -> Int64[Tensor, "B T"]:
    """The sequence that a token belongs to in its row, from 1 on; 0 for padding.

    A packed row (neat packing) holds several sequences. They show in the mask of LLaMA-Factory's collator: a number or
    a block for each sequence. Without a mask, they show in positions that start again at 0.
    """
    mask, positions = batch.get("attention_mask"), batch.get("position_ids")
    if mask is None:
        if positions is None:
            return torch.ones_like(batch["input_ids"])
        return (positions.reshape(-1, *batch["input_ids"].shape)[0] == 0).long().cumsum(dim=1)
    if mask.ndim == 2:
        return mask.long()
    sees = mask[:, 0] >= 0  # 0 where token i may look at token j, a large negative number elsewhere
    present = torch.diagonal(sees, dim1=-2, dim2=-1)
    follows = torch.nn.functional.pad(torch.diagonal(sees, offset=-1, dim1=-2, dim2=-1), (1, 0), value=False)
    return (present & ~follows).long().cumsum(dim=1) * present


def pooling_weights(sequences: Int64[Tensor, "B T"], pooling: str) -> Float32[Tensor, "B T"]:
    """What each token counts; the weights of a sequence add up to 1 / (sequences of the row)."""
    present = sequences > 0
    starts = present & (sequences != torch.nn.functional.pad(sequences, (1, 0))[:, :-1])
    indices = torch.arange(sequences.shape[1], device=sequences.device).expand_as(sequences)
    if pooling == "last":
        raw = (present & (sequences != torch.nn.functional.pad(sequences, (0, 1))[:, 1:])).float()
    elif pooling == "weighted_mean":
        first = torch.where(starts, indices, 0).cummax(dim=1).values
        raw = (indices - first + 1).float() * present
    else:
        raw = present.float()
    totals = torch.zeros(len(raw), int(sequences.max()) + 1, device=raw.device).scatter_add_(1, sequences, raw)
    count = starts.sum(dim=1, keepdim=True)
    return raw / torch.where(present, totals.gather(1, sequences), 1.0) / count


@lru_cache(maxsize=1)
def load_encoder(name: str, device: torch.device) -> Any:
    """A sentence-transformers model; DataflexError if it cannot be loaded. The last one is kept, until `cache_clear`."""
    from sentence_transformers import SentenceTransformer

    try:
        with loaded_whole():
            return SentenceTransformer(name, device=str(device))
    except (OSError, ValueError) as error:
        raise DataflexError(f"embedding_model: {name!r} cannot be loaded: {' '.join(str(error).split())}") from error


def encode_missing(
    model: str, cache: SignalCache, text: Callable[[int], str], device: torch.device
) -> Float32[np.ndarray, "rows dims"]:
    """Vectors of the text encoder `model` for text(0..N-1), equal on every rank. Texts that `cache` does not have are
    encoded, in pieces."""
    indices = np.flatnonzero(cache.missing)
    size = _TEXTS * ranks()
    with passing("embeddings of texts", len(indices), unit="texts") as under_way:
        for piece in pieces(np.full(-(-len(indices) // size), size * _TOKENS), device):
            found = []
            for number in piece:
                here = indices[number * size : (number + 1) * size].tolist()
                own = partial(_nth, text, here)
                found.append(encoded_texts(load_encoder(model, device), len(here), own, device))
                under_way.advance(len(here))
            cache.put(indices[piece.begin * size : piece.end * size], np.concatenate(found))
    return cache.values()


def _nth(text: Callable[[int], str], indices: list[int], i: int) -> str:
    return text(indices[i])


def encoded_texts(
    encoder: Any, count: int, text: Callable[[int], str], device: torch.device
) -> Float32[np.ndarray, "count dims"]:
    """Vectors of a sentence-transformers model for text(0..count-1), equal on every rank.

    Each rank encodes every so many blocks of texts.
    """
    with isolated(encoder):
        width = len(encoder.encode(" ", convert_to_numpy=True))
        out = torch.zeros((count, width), dtype=torch.float32, device=device)
        for start in range(rank() * _TEXTS, count, ranks() * _TEXTS):
            stop = min(start + _TEXTS, count)
            texts = [text(i) or " " for i in range(start, stop)]  # not every tokenizer makes a token of nothing
            found = encoder.encode(texts, convert_to_tensor=True, show_progress_bar=False)
            out[start:stop] = found.float().to(device)
    add_over_ranks(out)
    return out.cpu().numpy()
