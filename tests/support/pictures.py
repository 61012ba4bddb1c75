"""A tiny model that sees, and rows with pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch


def with_pictures(ground: Path) -> dict[str, Any]:
    """A tiny Qwen2-VL, its processor, and two data sets of rows with a picture each."""
    from PIL import Image
    from transformers import (
        AutoTokenizer,
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    marks = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = AutoTokenizer.from_pretrained(ground / "still")
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    start_id, end_id, image_id, video_id = tokenizer.convert_tokens_to_ids(marks)
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 1024, "bos_token_id": None,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
    config = Qwen2VLConfig(
        text_config=text, vision_config=vision, image_token_id=image_id, video_token_id=video_id,
        vision_start_token_id=start_id, vision_end_token_id=end_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Qwen2VLForConditionalGeneration(config).save_pretrained(ground / "seeing")
    pixels = {"min_pixels": 56 * 56, "max_pixels": 56 * 56}
    Qwen2VLProcessor(Qwen2VLImageProcessor(**pixels), tokenizer, Qwen2VLVideoProcessor()).save_pretrained(
        ground / "seeing"
    )
    folder, draw = ground / "pictures", np.random.default_rng(0)
    folder.mkdir()
    info = {}
    for name, count in (("pictures", 24), ("more", 5)):
        rows = []
        for i in range(count):
            Image.fromarray(draw.integers(0, 255, (56, 56, 3), dtype=np.uint8)).save(folder / f"{name}-{i}.png")
            asked = {"role": "user", "content": "<image>Which colour?"}
            answer = {"role": "assistant", "content": "red green " * (1 + i % 4) + "blue"}
            rows.append({"messages": [asked, answer], "images": [str(folder / f"{name}-{i}.png")]})
        (folder / f"{name}.json").write_text(json.dumps(rows))
        tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
        columns = {"messages": "messages", "images": "images"}
        info[name] = {"file_name": f"{name}.json", "formatting": "sharegpt", "columns": columns, "tags": tags}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return {
        "model_name_or_path": str(ground / "seeing"), "dataset_dir": str(folder), "dataset": "pictures",
        "template": "qwen2_vl", "image_max_pixels": 56 * 56, "freeze_vision_tower": False, "cutoff_len": 128,
    }  # fmt: skip
