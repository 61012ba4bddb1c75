"""The model of an evaluation, through LLaMA-Factory's own loader, in the precision that its keys ask for."""

from __future__ import annotations

from typing import Any

import torch

from dataflex.base.loading_arguments import Loading


def load_evaluated(loading: Loading, finetuning_args: Any) -> Any:
    """The model with its adapters merged, in evaluation mode, on the device of this rank.

    LLaMA-Factory loads the weights as they are stored. They become bf16 or fp16 where `bf16` (`pure_bf16`) or `fp16` is set,
    else what `infer_dtype` says; `auto` leaves them as they are. Quantised weights stay as they are.
    """
    from llamafactory.model import load_model

    asked = _asked_precision(loading.model_args)
    model = load_model(loading.tokenizer, loading.model_args, finetuning_args, is_trainable=False)
    if getattr(model, "is_quantized", False):
        return model
    if asked is not None:
        for weight in model.parameters():  # buffers, such as frequencies of positions, stay exact
            if weight.is_floating_point():
                weight.data = weight.data.to(asked)
    return model.to(loading.training_args.device)


def _asked_precision(model_args: Any) -> torch.dtype | None:
    """Before the model is loaded: LLaMA-Factory then fills in what was not asked for."""
    if model_args.compute_dtype is not None:
        return model_args.compute_dtype  # type: ignore[no-any-return]
    return None if model_args.infer_dtype == "auto" else getattr(torch, model_args.infer_dtype)
