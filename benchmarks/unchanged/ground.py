"""Data and models of the runs, made without a line of the package: `python ground.py DIR`.

DIR/data        three data sets of 60 rows (code, docs, arithmetic), their held-out rows and texts, pairs, judged answers, chats
DIR/uneven      the same with 60, 24 and 8 rows
DIR/streams     three small data sets stored as a file, as Parquet files and as files of JSON lines
DIR/torch-extensions    what DeepSpeed compiles for processes of the CPU
DIR/model, still, reference, moe    tiny models of one tokenizer: with dropout, without, another one, a mixture of experts
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROWS, HELD = 60, 10
NAMES = ("code", "docs", "arithmetic")
UNEVEN = {"code": 60, "docs": 24, "arithmetic": 8}
STREAMED = {"lists": 13, "notes": 6, "sums": 9}
_ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}
_TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
_WORDS: dict[str, list[str]] = {
    "code": [
        "def",
        "return",
        "self",
        "value",
        "index",
        "for",
        "in",
        "range",
        "if",
        "else",
        "None",
        "list",
        "append",
        "yield",
        "import",
        "class",
    ],
    "docs": [
        "the",
        "run",
        "reads",
        "a",
        "file",
        "of",
        "rows",
        "and",
        "writes",
        "what",
        "each",
        "model",
        "has",
        "seen",
        "while",
        "it",
        "was",
        "trained",
    ],
}

Row = dict[str, Any]


def rows_of(name: str, count: int) -> list[Row]:
    """Instruction, input and output of different lengths; a number `quality` for each row."""
    draw, rows = random.Random(f"unchanged/{name}"), []
    for i in range(count):
        if name == "arithmetic":
            a, b = draw.randrange(1000), draw.randrange(1000)
            asked, given, answer = "Work out the sum.", f"{a} + {b}", f"{a} + {b} = {a + b}"
        else:
            words = draw.choices(_WORDS[name], k=4 + draw.randrange(40))
            asked, given = f"Go on with the {name}.", f"{words[0]} {i}"
            answer = " ".join(words)
        rows.append({"instruction": asked, "input": given, "output": answer, "quality": float(i % 4)})
    return rows


def write_data(folder: Path, sizes: dict[str, int]) -> None:
    folder.mkdir(parents=True)
    info: dict[str, Any] = {}

    def write(name: str, rows: list[Row], **entry: Any) -> None:
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        info[name] = {"file_name": f"{name}.jsonl", **entry}

    for name, size in sizes.items():
        rows = rows_of(name, size + HELD)
        for part, own in ((name, rows[HELD:]), (f"{name}_heldout", rows[:HELD])):
            write(part, own, columns=_ALPACA)
        texts = [{"text": f"{r['instruction']} {r['input']} {r['output']}"} for r in rows]
        for part, own in ((f"{name}_text", texts[HELD:]), (f"{name}_text_heldout", texts[:HELD])):
            write(part, own, columns={"prompt": "text"})
    sums = [(i * 37 % 101, i * 53 % 97) for i in range(ROWS)]
    asked = [f"What is {a} + {b}?" for a, b in sums]
    pairs = [
        {"instruction": q, "chosen": f"{a} + {b} = {a + b}", "rejected": f"{a + b + 1 + b % 3}"}
        for q, (a, b) in zip(asked, sums)
    ]
    write("pairs", pairs, columns={"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}, ranking=True)
    judged = [
        {"instruction": q, "output": f"{a} + {b} = {a + b + i % 2}", "tag": i % 2 == 0}
        for i, (q, (a, b)) in enumerate(zip(asked, sums))
    ]
    write("judged", judged, columns={"prompt": "instruction", "response": "output", "kto_tag": "tag"})
    chats = [
        {
            "messages": [
                {"role": "user", "content": q},
                {"role": "assistant", "content": f"{a} " * (1 + i % 4), "weight": float(i % 3)},
                {"role": "user", "content": "And?"},
                {"role": "assistant", "content": f"{a + b}"},
            ]
        }
        for i, (q, (a, b)) in enumerate(zip(asked, sums))
    ]
    write("chats", chats, formatting="sharegpt", columns={"messages": "messages"}, tags=_TAGS)
    (folder / "dataset_info.json").write_text(json.dumps(info))


def write_streams(folder: Path) -> None:
    from datasets import Dataset

    folder.mkdir(parents=True)
    info: dict[str, Any] = {}
    for name, count in STREAMED.items():
        rows = [
            {"text": " ".join(f"{name} {i} of {j}." for j in range(1 + i * 5 % 7)), "question": f"Row {i}?"}
            for i in range(count)
        ]
        half, place = count // 2, folder / name
        source: dict[str, Any] = {"hf_hub_url": str(place)}
        if name == "lists":
            (folder / "lists.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            source = {"file_name": "lists.jsonl"}
        else:
            place.mkdir()
            for part, piece in enumerate((rows[:half], rows[half:])):
                if name == "notes":
                    Dataset.from_list(piece).to_parquet(place / f"{part}.parquet", batch_size=3)
                else:
                    (place / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in piece))
        info[name] = {**source, "columns": {"prompt": "text"}, "num_samples": 100 * count}
        info[f"{name}_sft"] = {**source, "columns": {"prompt": "question", "response": "text"}}
    (folder / "dataset_info.json").write_text(json.dumps(info))


def tokenizer_of(texts: Iterator[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=512, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def write_models(folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = tokenizer_of(r["output"] + " " + r["instruction"] for name in NAMES for r in rows_of(name, ROWS))
    common: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 1024,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.06,
        "tie_word_embeddings": False,
    }
    small = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
    experts = {**small, "num_local_experts": 4, "num_experts_per_tok": 2, "initializer_range": 0.2}
    kinds: dict[str, tuple[str, int, dict[str, Any]]] = {
        "model": ("qwen2", 0, {**small, "attention_dropout": 0.1}),
        "still": ("qwen2", 0, small),
        "reference": ("qwen2", 1, {"hidden_size": 48, "num_hidden_layers": 1, "intermediate_size": 64}),
        "moe": ("mixtral", 2, {**experts, "attention_dropout": 0.1}),
    }
    for name, (family, seed, sizes) in kinds.items():
        torch.manual_seed(seed)
        config = AutoConfig.for_model(family, **{**common, **sizes})
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def main(folder: Path) -> None:
    import numpy as np

    write_data(folder / "data", dict.fromkeys(NAMES, ROWS))
    write_data(folder / "uneven", UNEVEN)
    write_streams(folder / "streams")
    write_models(folder)
    (folder / "shares.json").write_text(json.dumps({"code": 0.2, "docs": 0.5, "arithmetic": 0.3}))
    np.save(folder / "near.npy", np.append(np.arange(39) * 7 % 180, -1).reshape(5, 8))
    probabilities = np.arange(1.0, 3 * ROWS + 1)
    np.save(folder / "probabilities.npy", probabilities / probabilities.sum())
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    ShareMemCommBuilder().load(verbose=False)  # DeepSpeed compiles it at first use: a minute, into TORCH_EXTENSIONS_DIR
    (folder / "COMPLETE").write_text("")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
