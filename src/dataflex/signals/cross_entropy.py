"""Per-row cross entropy, computed once, in fp32, a chunk of rows at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

IGNORE = -100
# Logits upcast at once when no gradient is kept: 2**24 fp32 values are 64 MiB.
_CHUNK_VALUES = 1 << 24
# Models of transformers whose attention is causal throughout, and which make nothing else of the mask.
_CAUSAL = frozenset(
    [
        "llama",
        "qwen2",
        "qwen3",
        "mistral",
        "gemma",
        "gemma2",
        "phi",
        "phi3",
        "gpt2",
        "gpt_neox",
        "olmo",
        "olmo2",
        "granite",
        "cohere",
        "smollm3",
        "starcoder2",
    ]
)


def row_losses(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of the next-token cross entropies of each row, and the number of its trainable tokens: float32 [B], int64 [B].

    The token mean of row i is sums[i] / counts[i]; a row without trainable tokens has sum 0 and count 0.
    """
    losses, active = token_losses(logits, labels)
    return losses.sum(dim=1), active.sum(dim=1)


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Next-token cross entropies float32 [B, T], and whether the next token is trainable, bool [B, T].

    Losses are zero where the next token is not trainable. With gradients, autograd keeps one fp32 [B, T, V] tensor, as
    the model's own loss does. Without gradients, memory is bounded.

    Args:
        logits: [B, T, V], any float type.
        labels: int64 [B, T], IGNORE where a token is not trainable.
    """
    targets = F.pad(labels, (0, 1), value=IGNORE)[:, 1:].to(logits.device)
    rows, length, vocabulary = logits.shape
    flat, flat_targets = logits.reshape(-1, vocabulary), targets.reshape(-1)
    if torch.is_grad_enabled() and logits.requires_grad:
        losses = F.cross_entropy(flat.float(), flat_targets, ignore_index=IGNORE, reduction="none")
    else:
        losses = torch.zeros(flat_targets.shape, dtype=torch.float32, device=logits.device)
        active = torch.nonzero(flat_targets != IGNORE).squeeze(-1)
        for chunk in active.split(max(1, _CHUNK_VALUES // vocabulary)):
            losses[chunk] = F.cross_entropy(flat[chunk].float(), flat_targets[chunk], reduction="none")
    return losses.view(rows, length), targets != IGNORE


def forward_inputs(model: torch.nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a forward pass that only measures: no labels, and no cache of keys and values.

    A mask that hides nothing is left out, so that torch's attention takes its fastest path. Padding on the right comes
    after every token that counts, and a causal model never looks at it.
    """
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    mask = inputs.get("attention_mask")
    if (
        torch.is_tensor(mask)
        and mask.ndim == 2
        and _is_plainly_causal(model)
        and not (mask[:, 1:] > mask[:, :-1]).any()
    ):
        del inputs["attention_mask"]
    if hasattr(getattr(model, "config", None), "use_cache"):
        inputs.setdefault("use_cache", False)
    return inputs


def _is_plainly_causal(model: Any) -> bool:
    """Whether tokens are seen by later tokens only, and the mask says no more than which of them are padding."""
    config = getattr(model, "config", None)
    implementation = getattr(config, "_attn_implementation", None)
    return getattr(config, "model_type", None) in _CAUSAL and implementation in ("sdpa", "eager")


def output_embedding(model: Any) -> torch.nn.Module | None:
    """The layer that turns hidden states into logits, if the model says which."""
    return model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None


def forward_row_losses(model: torch.nn.Module, batch: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """`row_losses` of a forward pass over `batch` (with its labels), with logits only where there is a target."""
    losses, active = forward_token_losses(model, batch)
    sums = torch.zeros(len(active), dtype=torch.float32, device=losses.device)
    return sums.index_add(0, active.nonzero()[:, 0], losses), active.sum(dim=1)


def forward_token_losses(model: torch.nn.Module, batch: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross entropies of the trainable tokens, row after row, float32 [M]; and the indices they are predicted from,
    bool [B, T].

    The hidden states of all other indices are dropped before the output embedding. So prompts and padding cost no
    logits, and B x T x V is never held. A model without an output embedding that is called on [B, T, hidden] gives all
    its logits.
    """
    labels, inputs = batch["labels"], forward_inputs(model, batch)
    targets = F.pad(labels, (0, 1), value=IGNORE)[:, 1:]
    active = targets != IGNORE

    def keep(_: torch.nn.Module, args: tuple[Any, ...]) -> Any:
        if len(args) == 1 and args[0].shape[:-1] == active.shape:
            return (args[0][active].unsqueeze(0),)
        return None

    head = output_embedding(model)
    hook = head.register_forward_pre_hook(keep) if head is not None else None
    try:
        logits = model(**inputs).logits
    finally:
        if hook is not None:
            hook.remove()
    if logits.shape[:-1] == active.shape:  # the last position has no target, so the hook has not acted
        return token_losses(logits, labels)[0][active], active
    flat, wanted = logits.squeeze(0), targets[active]
    chunks = max(1, _CHUNK_VALUES // logits.shape[-1])
    losses = [
        F.cross_entropy(part.float(), target, reduction="none")
        for part, target in zip(flat.split(chunks), wanted.split(chunks))
    ]
    return torch.cat(losses) if losses else flat.new_zeros(0, dtype=torch.float32), active
