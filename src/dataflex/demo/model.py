"""A tiny causal language model with its own tokenizer, made on the spot."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

PAD = "<|endoftext|>"
START = "<|im_start|>"
EOS = "<|im_end|>"
MAX_POSITIONS = 1024

_LLAMA_NAMES = {
    "hidden_size": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "intermediate_size": "intermediate_size",
    "attention_dropout": "attention_dropout",
    "positions": "max_position_embeddings",
}
# Our sizes under each family's own names. GPT-2 has no grouped heads, and drops elsewhere unless told not to.
_FAMILIES: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "qwen2": (_LLAMA_NAMES, {}),
    "llama": (_LLAMA_NAMES, {}),
    "gpt2": (
        {
            "hidden_size": "n_embd",
            "layers": "n_layer",
            "heads": "n_head",
            "intermediate_size": "n_inner",
            "attention_dropout": "attn_pdrop",
            "positions": "n_positions",
        },
        {"resid_pdrop": 0.0, "embd_pdrop": 0.0},
    ),
}


def train_tokenizer(texts: Iterable[str], vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    """Byte-level BPE learned from `texts`, lossless on any string; eos `<|im_end|>`, pad `<|endoftext|>`, no bos.

    Texts that run out of merges give fewer than `vocab_size` entries. ValueError if `vocab_size` cannot hold the 256
    bytes and the 3 special tokens.
    """
    special = [PAD, START, EOS]
    if vocab_size < 256 + len(special):
        raise ValueError(f"vocab_size must be at least {256 + len(special)}, not {vocab_size}")
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer=trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def build_model(
    path: str | Path,
    texts: Iterable[str],
    seed: int = 0,
    hidden_size: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    intermediate_size: int = 160,
    vocab_size: int = 1024,
    family: str = "qwen2",
    attention_dropout: float = 0.0,
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Make a random fp32 model and a tokenizer trained on `texts`, save both into the folder `path`, and return them.

    Equal arguments give equal weights and vocabulary; no global generator is read or moved. `family` is `qwen2`,
    `llama` or `gpt2` (which ignores `kv_heads`); ValueError for any other. Sequences are limited to 1024 tokens.
    """
    if family not in _FAMILIES:
        raise ValueError(f"unknown model family {family!r}; choose from {', '.join(_FAMILIES)}")
    tokenizer = train_tokenizer(texts, vocab_size)
    sizes = {
        "hidden_size": hidden_size,
        "layers": layers,
        "heads": heads,
        "kv_heads": kv_heads,
        "intermediate_size": intermediate_size,
        "attention_dropout": attention_dropout,
        "positions": MAX_POSITIONS,
    }
    names, extra = _FAMILIES[family]
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        # At the usual 0.02 a model this narrow rests on a plateau for its first 60 steps, and luck decides when it leaves.
        initializer_range=0.06,
        # LLaMA-Factory's reward-model trainer cannot save weights that share memory.
        tie_word_embeddings=False,
        **{name: sizes[key] for key, name in names.items()},
        **extra,
    )
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would reseed the accelerators as well, which the fork above does not restore.
        torch.random.default_generator.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return model, tokenizer
