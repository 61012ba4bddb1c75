"""The `layer_embedding` signal: outputs of attention in several layers, pooled over pictures and over text apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dataflex.errors import DataflexError
from dataflex.signals.batching import ScoringRows, over_rows
from dataflex.signals.cross_entropy import forward_inputs, output_embedding
from dataflex.signals.embeddings import sequences_of
from dataflex.signals.isolation import isolated

if TYPE_CHECKING:
    from jaxtyping import Bool, Float32
    from torch import Tensor

_VISUAL = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
"""Names in a configuration of the token that stands for a piece of a picture or a video."""


def layer_embeddings(
    model: torch.nn.Module, rows: ScoringRows, layers: Sequence[int] | None
) -> Float32[np.ndarray, "rows 2 values"]:
    """Of each row its pictures and its text, `layers` x hidden values each; equal on every rank, NaN where not finite."""
    with isolated(model):
        attention = attention_of(model, layers)
        return over_rows(rows, lambda b: row_states(model, b, attention), "layer embeddings", torch.float32)


def row_states(
    model: torch.nn.Module, batch: Mapping[str, Any], attention: Sequence[torch.nn.Module]
) -> Float32[Tensor, "B 2 values"]:
    """tanh(mean output) over the tokens of a kind, of length one in each layer; zeros where a row has none of the kind."""
    present = sequences_of(batch) > 0
    visual = torch.isin(batch["input_ids"], torch.tensor(visual_tokens(model), device=present.device)) & present
    found = []
    with _outputs(model, attention) as outputs:
        model(**forward_inputs(model, batch))
    for module in attention:
        states = outputs[module].float()
        found.append(torch.stack([_pooled(states, kind) for kind in (visual, present & ~visual)], dim=1))
    return torch.cat(found, dim=2)


def _pooled(states: Float32[Tensor, "B T hidden"], tokens: Bool[Tensor, "B T"]) -> Float32[Tensor, "B hidden"]:
    weights = tokens.to(states) / tokens.sum(dim=1, keepdim=True).clamp(min=1)
    mean = torch.einsum("bt,bth->bh", weights, torch.where(tokens[..., None], states, 0.0))
    return torch.nn.functional.normalize(torch.tanh(mean), dim=1)


@contextmanager
def _outputs(
    model: torch.nn.Module, modules: Sequence[torch.nn.Module]
) -> Iterator[dict[torch.nn.Module, torch.Tensor]]:
    """What modules return in the forward passes inside; of the logits only those of one token are made."""
    found: dict[torch.nn.Module, torch.Tensor] = {}

    def keep(module: torch.nn.Module, _: Any, output: Any) -> None:
        found[module] = output[0] if isinstance(output, tuple) else output

    hooks = [module.register_forward_hook(keep) for module in modules]
    head = output_embedding(model)
    if head is not None:
        hooks.append(head.register_forward_pre_hook(lambda _, args: (args[0][:, :1],)))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def attention_of(model: Any, layers: Sequence[int] | None) -> list[torch.nn.Module]:
    """The attention of some layers of the language model, in order. DataflexError if there is no such layer."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    blocks = getattr(decoder, "layers", None)
    if blocks is None:
        raise DataflexError(f"coincide: the layers of {type(model).__name__} cannot be found")
    found = []
    for layer in evenly(len(blocks)) if layers is None else layers:
        if not 1 <= layer <= len(blocks):
            raise DataflexError(f"embedding_layers: there is no layer {layer}; the model has {len(blocks)}, from 1 on")
        attention = getattr(blocks[layer - 1], "self_attn", None)
        if attention is None:
            raise DataflexError(
                f"embedding_layers: layer {layer} has no attention of the kind that is read; leave it out"
            )
        found.append(attention)
    return found


def evenly(layers: int) -> list[int]:
    """Five layers, from 1 on, that cut a model of so many into six parts: 4, 8, 12, 16, 20 of 24. Fewer of a short one."""
    return sorted({max(1, round(k * layers / 6)) for k in range(1, 6)})


def visual_tokens(model: Any) -> list[int]:
    """Ids of the tokens that stand for pieces of pictures or videos; none for a model of text alone."""
    found = (getattr(model.config, name, None) for name in _VISUAL)
    return sorted({value for value in found if value is not None})
