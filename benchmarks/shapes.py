"""Models of the shapes of Qwen2.5 with random weights, and rows of random tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")  # where LESS has its LoRA


@dataclass(frozen=True)
class Shape:
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool


SHAPES = {
    "tiny": Shape(32, 64, 2, 2, 1, 512, True),
    "tiny, untied": Shape(48, 96, 2, 2, 2, 512, False),
    "0.5B": Shape(896, 4864, 24, 14, 2, 151936, True),
    "1.5B": Shape(1536, 8960, 28, 12, 2, 151936, True),
    "7B": Shape(3584, 18944, 28, 28, 4, 152064, False),
}


def build(shape: Shape, device: Any, tokenizer: Any = None) -> Any:
    """A model in bf16, its weights drawn where they stay."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    special = (
        {}
        if tokenizer is None
        else {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("eos", "pad")}
    )
    config = AutoConfig.for_model(
        "qwen2", hidden_size=shape.hidden, intermediate_size=shape.intermediate, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied, max_position_embeddings=4096, bos_token_id=None, **special,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def save(folder: Path, shape: Shape, device: Any, texts: Sequence[str]) -> Any:
    """Model and tokenizer as a run loads them; the tokenizer."""
    from dataflex.demo.model import train_tokenizer

    tokenizer = train_tokenizer(texts, min(4096, shape.vocabulary))
    build(shape, device, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def with_lora(model: Any, rank: int) -> Any:
    """LoRA on the attention, its values in fp32 as LLaMA-Factory trains them."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=4 * rank, target_modules=list(_ATTENTION), task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
            if "lora_B" in name:  # as if some training had been: at zero, half of all gradients are
                parameter.data.normal_(std=0.01)
    return model


def random_pool(count: int, shortest: int, longest: int, vocabulary: int, seed: int, budget: int, device: Any) -> Any:
    """`ScoringRows` with lengths spread evenly on a logarithmic scale, the first third of each not learned, in batches of at
    most `budget` tokens."""
    import torch
    from datasets import Dataset

    from dataflex.data.rows import SAMPLE_IDS, RowCollator, Rows
    from dataflex.signals.batching import ScoringRows

    rng = np.random.default_rng(seed)
    lengths = np.exp(rng.uniform(np.log(shortest), np.log(longest + 1), size=count)).astype(int)
    ids = [rng.integers(3, vocabulary, size=n) for n in lengths]
    labels = [np.where(np.arange(len(row)) < len(row) // 3, -100, row) for row in ids]
    columns = {"input_ids": [row.tolist() for row in ids], "labels": [row.tolist() for row in labels]}
    rows = Rows([Dataset.from_dict(columns)], ["rows"])

    def padded(features: list[dict[str, Any]]) -> dict[str, Any]:
        width = max(len(f["input_ids"]) for f in features)

        def filled(key: str, value: int) -> torch.Tensor:
            return torch.tensor([f[key] + [value] * (width - len(f[key])) for f in features])

        mask = torch.tensor([[1] * len(f["input_ids"]) + [0] * (width - len(f["input_ids"])) for f in features])
        return {"input_ids": filled("input_ids", 0), "attention_mask": mask, "labels": filled("labels", -100)}

    def prepare(batch: Any) -> Any:
        return {k: v.to(device) for k, v in batch.items() if k != SAMPLE_IDS}

    device = torch.device(device)
    return ScoringRows(rows, np.arange(count), rows.lengths(), budget, RowCollator(padded), prepare, device)
