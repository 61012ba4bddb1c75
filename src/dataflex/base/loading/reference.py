"""The losses of a reference model on the training rows, measured before the model that is trained is loaded."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch

from dataflex.base.checks.reference_model import fingerprint
from dataflex.base.loading_arguments import Loading
from dataflex.config.refusals import loaded as refused
from dataflex.data.rows import Rows, without_ours
from dataflex.distributed.collectives import decide
from dataflex.errors import ConfigError
from dataflex.signals.asking.reference_losses import ReferenceLosses, reference_losses
from dataflex.signals.batching import ScoringRows, default_batch_tokens
from dataflex.signals.isolation import loaded_whole


def load_reference(
    path: str, rows: Rows, loading: Loading, *, key: str, folder: Path, batch_tokens: int | None
) -> ReferenceLosses:
    """Token losses of the model at `path`, which `key` names, on `rows`; what `folder` holds of the same model and rows is not
    measured again."""
    model_args, training_args = loading.model_args, loading.training_args
    tokens = _trainable(rows, loading.stage, loading.tokenizer)
    made_from = {
        "signal": "reference token losses",
        "model": fingerprint(path, key),
        "data": decide(rows.fingerprints),
        "dtype": str(model_args.compute_dtype),
        "stage": loading.stage,
    }

    def load() -> tuple[torch.nn.Module, ScoringRows]:
        model = _load(path, key, loading)
        lengths = rows.lengths()
        return model, ScoringRows(
            rows=rows,
            ids=np.arange(len(rows), dtype=np.int64),
            lengths=lengths,
            batch_tokens=batch_tokens or default_batch_tokens(training_args.device),
            collate=_collator(model, loading),
            prepare=lambda batch: {k: v.to(training_args.device) for k, v in batch.items() if torch.is_tensor(v)},
            device=training_args.device,
            workers=training_args.dataloader_num_workers,
        )

    found = reference_losses(load, tokens, folder, made_from)
    gc.collect()  # the reference must be gone before the model is loaded
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found


def _trainable(rows: Rows, stage: str, tokenizer: Any) -> np.ndarray:
    """Trainable tokens of each row, int64[N]. In pre-training, the collator takes a padding token inside a row for padding."""
    if stage != "pt" or tokenizer.pad_token_id is None:
        return rows.trainable_tokens()
    found = []
    for part in rows.parts:
        ids = part.with_format("arrow")[:]["input_ids"]
        lengths = pc.list_value_length(ids).to_numpy().astype(np.int64)
        counted = pc.list_flatten(ids).to_numpy() != tokenizer.pad_token_id
        starts = np.cumsum(lengths) - lengths
        counted[starts[lengths > 0]] = False
        found.append(np.bincount(np.repeat(np.arange(len(lengths)), lengths)[counted], minlength=len(lengths)))
    return np.concatenate(found).astype(np.int64)


def _load(path: str, key: str, loading: Loading) -> torch.nn.Module:
    """A causal language model, whole on this device, or one with a LoRA adapter on top of the model that this names."""
    from transformers import AutoModelForCausalLM

    model_args, tokenizer = loading.model_args, loading.tokenizer
    options = {
        "dtype": model_args.compute_dtype or torch.float32,
        "trust_remote_code": model_args.trust_remote_code,
        "cache_dir": model_args.cache_dir,
        "revision": model_args.model_revision,
        "token": model_args.hf_hub_token,
    }
    try:
        with loaded_whole():
            if (Path(path) / "adapter_config.json").is_file():
                from peft import AutoPeftModelForCausalLM

                model = AutoPeftModelForCausalLM.from_pretrained(path, **options)
            else:
                model = AutoModelForCausalLM.from_pretrained(path, **options)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key}: {path!r} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    entries = model.get_input_embeddings().num_embeddings
    if entries < len(tokenizer):
        raise refused.FEWER_TOKENS.error(key=key, path=path, entries=entries, tokens=len(tokenizer))
    return model.to(loading.training_args.device).eval()


def _collator(model: Any, loading: Loading) -> Any:
    """LLaMA-Factory's collator of the stage, without what is ours of rows."""
    if loading.stage == "pt":
        from transformers import DataCollatorForLanguageModeling

        inner: Any = DataCollatorForLanguageModeling(tokenizer=loading.tokenizer, mlm=False)
    else:
        from llamafactory.data import SFTDataCollatorWith4DAttentionMask

        inner = SFTDataCollatorWith4DAttentionMask(
            template=loading.template,
            model=model,
            pad_to_multiple_of=8,
            block_diag_attn=loading.model_args.block_diag_attn,
            neat_packing=loading.data_args.neat_packing,
            attn_implementation=getattr(model.config, "_attn_implementation", None),
            compute_dtype=loading.model_args.compute_dtype or torch.float32,
            tokenizer=loading.tokenizer,
            processor=loading.processor,
        )
    return lambda rows: inner([without_ours(row) for row in rows])
