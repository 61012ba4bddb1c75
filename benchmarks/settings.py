"""Sizes, and what a run needs, made on the spot: a model with its tokenizer, rows, and the keys of a configuration."""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SFT = {"prompt": "instruction", "query": "input", "response": "output"}
# The model of the benchmarks that train many models from scratch on a CPU.
SMALL = {"hidden_size": 128, "layers": 3, "heads": 4, "kv_heads": 2, "intermediate_size": 344, "vocab_size": 2048}


@dataclass(frozen=True)
class Preset:
    """model: arguments of `dataflex.demo.model.build_model`. vocabulary: entries of the embedding, those without a token
    included. rows: rows of an optimizer step. cutoff: tokens of a row. pairs: steps compared. pool: rows scored."""

    model: dict[str, Any]
    vocabulary: int
    rows: int
    cutoff: int
    pairs: int
    pool: int
    gpu: bool = False


PRESETS = {
    "tiny": Preset(
        model={"hidden_size": 32, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate_size": 64, "vocab_size": 512},
        vocabulary=512, rows=4, cutoff=64, pairs=20, pool=120,
    ),
    "demo": Preset(  # the model of `dataflex-cli demo`
        model={"vocab_size": 1024}, vocabulary=1024, rows=8, cutoff=256, pairs=60, pool=1000,
    ),
    "cpu": Preset(
        model={"hidden_size": 256, "layers": 4, "heads": 4, "kv_heads": 2, "intermediate_size": 704, "vocab_size": 4096},
        vocabulary=4096, rows=8, cutoff=256, pairs=60, pool=1000,
    ),
    "gpu": Preset(  # the shape of Qwen2.5-0.5B
        model={"hidden_size": 896, "layers": 24, "heads": 14, "kv_heads": 2, "intermediate_size": 4864, "vocab_size": 4096},
        vocabulary=151936, rows=8, cutoff=1024, pairs=200, pool=4000, gpu=True,
    ),
}  # fmt: skip


def settle_environment(work: Path, preset: Preset, threads: int) -> None:
    """Call before torch is imported: offline, caches below `work`, `threads` threads, and the device of the preset."""
    os.environ.update(
        OMP_NUM_THREADS=str(threads),
        TOKENIZERS_PARALLELISM="false",
        HF_HUB_OFFLINE="1",
        HF_DATASETS_CACHE=str(work / "cache"),
        LLAMAFACTORY_VERBOSITY="WARNING",
        PYTORCH_NVML_BASED_CUDA_CHECK="1",  # looking for a GPU must not make a process unfit to be forked
    )
    if not preset.gpu:
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"


# -- data and models ---------------------------------------------------------------------------------------------------


def demonstration(
    work: Path, preset: Preset, rows: int = 200, heldout: int = 1, model: str | None = None
) -> tuple[list[str], list[str], Any]:
    """The demonstration's data sets in `work`/demo, at least `rows` rows in each, and a model of the preset in `work`/model:
    their names, their texts and the tokenizer. model: the folder of a finished model to have there instead."""
    from dataflex.demo.data import DOMAINS, build_domains, training_texts

    sizes = build_domains(work / "demo", rows_per_domain=max(200, rows), heldout=heldout)
    texts = list(training_texts(work / "demo"))
    if model is None:
        tokenizer = make_model(work / "model", preset, texts)
    else:
        from transformers import AutoTokenizer

        (work / "model").symlink_to(Path(model).resolve(), target_is_directory=True)
        tokenizer = AutoTokenizer.from_pretrained(model)
    return [name for name in DOMAINS if name in sizes], texts, tokenizer


def make_model(folder: Path, preset: Preset, texts: Sequence[str]) -> Any:
    """Save a random model of the preset's shape into `folder`, with a tokenizer learned from `texts`; the tokenizer."""
    from transformers.utils import logging

    from dataflex.demo.model import build_model

    logging.disable_progress_bar()
    model, tokenizer = build_model(folder, texts, **preset.model)
    if preset.vocabulary > model.config.vocab_size:
        model.resize_token_embeddings(preset.vocabulary, mean_resizing=False)
        model.save_pretrained(folder)
    return tokenizer


def read_rows(file: Path) -> list[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def write_sets(folder: Path, sets: Mapping[str, Iterable[Mapping[str, Any]]], columns: Mapping[str, str]) -> None:
    """A `dataset_dir` of these data sets."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in sets.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    info = {name: {"file_name": f"{name}.jsonl", "columns": columns} for name in sets}
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")


def write_equal_rows(folder: Path, tokenizer: Any, texts: Sequence[str], domains: int, rows: int, tokens: int) -> None:
    """A `dataset_dir` of data sets d0, d1, ...: `rows` sft rows in all, each a little longer than `tokens` tokens."""
    ids = [i for text in texts for i in tokenizer(text)["input_ids"]]
    window = tokens + tokens // 2  # decoding and encoding again may merge some
    while len(ids) < 2 * window:
        ids = ids + ids
    rng = random.Random(0)

    def row() -> dict[str, str]:
        start = rng.randrange(len(ids) - window)
        return {"instruction": "Go on.", "output": tokenizer.decode(ids[start : start + window])}

    sets = {f"d{d}": [row() for _ in range(-(-rows // domains))] for d in range(domains)}
    write_sets(folder, sets, {"prompt": "instruction", "response": "output"})


# -- runs --------------------------------------------------------------------------------------------------------------


def run_keys(work: Path, preset: Preset, out: str) -> dict[str, Any]:
    """The LLaMA-Factory keys of every run: full sft of the model in `work`/model."""
    return {
        "model_name_or_path": str(work / "model"),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "full",
        "dataset_dir": str(work / "data"),
        "template": "qwen",
        "cutoff_len": preset.cutoff,
        "per_device_train_batch_size": preset.rows,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-4,
        "output_dir": str(work / "runs" / out),
        "overwrite_output_dir": True,
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "seed": 0,
        "disable_tqdm": True,
        "log_level": "warning",
        **({"bf16": True} if preset.gpu else {"use_cpu": True, "bf16": False, "dataloader_pin_memory": False}),
    }


def train(keys: Mapping[str, Any]) -> None:
    """Through our command, or LLaMA-Factory's own where there is no block."""
    if "dataflex" in keys:
        from dataflex.base.commands.train import train
        from dataflex.config import parse

        train(parse(dict(keys)))
    else:
        from llamafactory.train.tuner import run_exp

        run_exp(args=dict(keys))


def train_timed(keys: Mapping[str, Any], gpu: bool) -> tuple[Path, float, list[dict[str, Any]]]:
    """Output directory; seconds of the training, evaluation included (processor time on a CPU); what was logged."""
    clock = time.perf_counter if gpu else time.process_time
    begin = clock()
    train(keys)
    spent, out = clock() - begin, Path(keys["output_dir"])
    return out, spent, json.loads((out / "trainer_state.json").read_text())["log_history"]


@contextlib.contextmanager
def printing_to(log: Path) -> Any:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        yield
