"""Models and data beside those of the fixture `ground`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

EXPERTS = 4


def build_encoder(folder: Path, model: str) -> Path:
    """A sentence-transformers model on disk: the mean hidden state of a language model."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    inner = Transformer(model)
    modules = [inner, Pooling(inner.get_embedding_dimension())]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder))
    return folder


def load(path: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def renamed(ground: Path, tmp_path: Path, names: dict[str, str]) -> str:
    """A dataset_dir like that of `ground`, with more names for its data sets."""
    info = json.loads((ground / "data" / "dataset_info.json").read_text())
    folder = tmp_path / "data"
    folder.mkdir()
    for file in (ground / "data").glob("*.json*"):
        if file.name != "dataset_info.json":
            (folder / file.name).symlink_to(file)
    (folder / "dataset_info.json").write_text(json.dumps(info | {new: info[old] for new, old in names.items()}))
    return str(folder)
