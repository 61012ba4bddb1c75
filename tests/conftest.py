from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import harness
import pytest
from corpora import corpus, slim  # noqa: F401
from models_and_data import EXPERTS
from ray_cluster import cluster  # noqa: F401

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # what is computed here is small: threads would wait for each other


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `data` (a dataset_dir of the demo's domains) and `model` (tiny, with dropout)."""
    from dataflex.demo.data import build_domains, training_texts
    from dataflex.demo.model import build_model

    path = tmp_path_factory.mktemp("ground")
    build_domains(path / "data", rows_per_domain=60, heldout=10)
    texts = list(training_texts(path / "data"))
    sizes: dict[str, Any] = {"hidden_size": 32, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate_size": 64}
    build_model(path / "model", texts, vocab_size=512, attention_dropout=0.1, **sizes)
    build_model(path / "still", texts, vocab_size=512, attention_dropout=0.0, **sizes)
    harness.warm_up(path / "cache")
    return path


@pytest.fixture
def base(ground: Path) -> dict[str, Any]:
    """A LLaMA-Factory configuration that trains in about a second: sft, full, 12 steps of 4 rows, dropout on."""
    return harness.tiny_run(ground)


@pytest.fixture(scope="session")
def reference(ground: Path) -> Path:
    """Another random model of the same tokenizer."""
    from dataflex.demo.data import training_texts
    from dataflex.demo.model import build_model

    path = ground / "reference"
    texts = list(training_texts(ground / "data"))
    sizes: dict[str, Any] = {"hidden_size": 48, "layers": 1, "heads": 2, "kv_heads": 1, "intermediate_size": 64}
    build_model(path, texts, seed=1, vocab_size=512, **sizes)
    return path


@pytest.fixture(scope="session")
def experts(ground: Path) -> dict[str, Path]:
    """Tiny mixture-of-experts models, by family."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from dataflex.demo.data import training_texts
    from dataflex.demo.model import train_tokenizer

    tokenizer = train_tokenizer(training_texts(ground / "data"), 512)
    sizes: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "num_experts_per_tok": 2, "max_position_embeddings": 256, "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "initializer_range": 0.2,
    }  # fmt: skip
    extra: dict[str, dict[str, Any]] = {
        "mixtral": {"num_local_experts": EXPERTS},
        "qwen2_moe": {
            "num_experts": EXPERTS, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24,
            "decoder_sparse_step": 1,
        },
    }  # fmt: skip
    out = {}
    for family, more in extra.items():
        out[family] = ground / family
        with torch.random.fork_rng():
            torch.manual_seed(0)
            config = AutoConfig.for_model(family, **sizes, **more)
            AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(out[family])
        tokenizer.save_pretrained(out[family])
    return out
