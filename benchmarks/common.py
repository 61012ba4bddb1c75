"""What the benchmarks share: presets, a model with its rows, an interval for a ratio, and RESULTS.md."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import hashlib
import json
import multiprocessing
import os
import platform
import random
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).with_name("RESULTS.md")
_RESAMPLES = 2000


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


def write_equal_rows(folder: Path, tokenizer: Any, texts: Sequence[str], domains: int, rows: int, tokens: int) -> None:
    """A `dataset_dir` of data sets d0, d1, ...: `rows` sft rows in all, each a little longer than `tokens` tokens."""
    ids = [i for text in texts for i in tokenizer(text)["input_ids"]]
    window = tokens + tokens // 2  # decoding and encoding again may merge some
    while len(ids) < 2 * window:
        ids = ids + ids
    rng = random.Random(0)
    folder.mkdir(parents=True)
    info = {}
    for d in range(domains):
        lines = []
        for _ in range(-(-rows // domains)):
            start = rng.randrange(len(ids) - window)
            lines.append(json.dumps({"instruction": "Go on.", "output": tokenizer.decode(ids[start : start + window])}))
        (folder / f"d{d}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        info[f"d{d}"] = {"file_name": f"d{d}.jsonl", "columns": {"prompt": "instruction", "response": "output"}}
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")


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


def train_until(keys: dict[str, Any], done: type[Exception]) -> None:
    """Train from `keys` until a hook raises `done`; what the run prints goes to a log beside its directory."""
    from dataflex.base.commands.train import train
    from dataflex.config import parse

    log = Path(f"{keys['output_dir']}.log")
    log.parent.mkdir(parents=True)
    with (
        log.open("w") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
        contextlib.suppress(done),
    ):
        train(parse(keys))


def in_use(field: str) -> int:
    """VmRSS or VmHWM of this process, in KiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def forget_peak() -> int:
    """From now on VmHWM is the peak since this call; gives VmRSS, in KiB."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return in_use("VmRSS")


def interval(statistic: Callable[[np.ndarray], float], items: int) -> tuple[float, float]:
    """Bootstrap 90% interval: the 5th and 95th percentile of `statistic` (of an index array) over resampled items."""
    rng = np.random.default_rng(0)
    values = [statistic(rng.integers(items, size=items)) for _ in range(_RESAMPLES)]
    low, high = np.percentile(values, [5, 95])
    return float(low), float(high)


def spread(values: Sequence[float], sign: str = "", digits: int = 3) -> str:
    """Mean and standard deviation."""
    mean = f"{np.mean(values):{sign}.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left and the others to the right, readable as it is."""
    widths = [max(len(line[c]) for line in (header, *lines)) for c in range(len(header))]

    def row(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([row(header), rule, *map(row, lines)])


def machine(preset: Preset, threads: int) -> str:
    """One line: date, processor or GPU, threads, versions."""
    import torch

    if preset.gpu and torch.cuda.is_available():
        where = torch.cuda.get_device_name()
    else:
        info = Path("/proc/cpuinfo")
        names = re.findall(r"^model name\s*: (.+)$", info.read_text(), re.M) if info.is_file() else []
        processor = names[0] if names else platform.processor() or platform.machine()
        where = f"{processor}, {threads} of {os.cpu_count()} cores"
    return f"{datetime.date.today()}, {where}, torch {torch.__version__}, Python {platform.python_version()}"


def end_with_parent() -> None:
    """End this process when the one that started it ends; call in a thread."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def begin_run(job: dict[str, Any], result: Path) -> tuple[Path, Preset]:
    """At the start of a run of a grid, in a process of its own, which from now on ends with the one that started it and prints to
    a log beside `result`: an empty folder, and the preset with the sizes of the job."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    scratch = result.with_suffix(".running")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    handle = os.open(result.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    preset = replace(PRESETS["gpu" if job["gpu"] else "cpu"], cutoff=job["cutoff"], rows=job["batch"])
    settle_environment(scratch, preset, job["threads"])
    import torch

    torch.set_num_threads(job["threads"])
    return scratch, preset


def end_run(record: dict[str, Any], result: Path) -> None:
    """Write what came out, last of all, and clean up."""
    part = result.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1), encoding="utf-8")
    part.replace(result)
    shutil.rmtree(result.with_suffix(".running"))
    result.with_suffix(".log").unlink()


def file_of(work: Path, job: dict[str, Any]) -> Path:
    """Where the result of a run of a grid is kept: under everything that decides what it does."""
    digest = hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()[:10]
    return work / f"{job['method'].replace(', ', '-')}.seed{job['seed']}.{digest}.json"


def result_of(
    job: dict[str, Any],
    given: argparse.Namespace,
    run: Callable[[dict[str, Any], Path, Path], None],
    ended: Callable[[dict[str, Any]], str],
) -> dict[str, Any] | None:
    """The result of a run, made now by `run` in a process of its own unless it is there; None, with the end of its log, if it
    failed. given: data, work, report. ended: what to say of a result."""
    file = file_of(given.work, job)
    if not file.is_file():
        if given.report:
            return None
        begin = time.perf_counter()
        process = multiprocessing.get_context("spawn").Process(target=run, args=(job, given.data, file), daemon=True)
        process.start()
        process.join()
        if process.exitcode != 0 or not file.is_file():
            log = file.with_suffix(".log")
            end = log.read_text(errors="replace")[-3000:] if log.is_file() else ""
            print(f"{job['method']}, seed {job['seed']} failed ({log}):\n{end}", file=sys.stderr, flush=True)
            return None
        found = ended(json.loads(file.read_text(encoding="utf-8")))
        print(f"{job['method']}, seed {job['seed']}: {found}, {time.perf_counter() - begin:.0f} s in all", flush=True)
    return json.loads(file.read_text(encoding="utf-8"))


def write_section(name: str, text: str, results: Path = RESULTS) -> None:
    """Put `text` into a results page under the heading `name`, in place of what stood there."""
    title = "# Results\n\nWritten by the scripts beside this file (`--write`); README.md says how to read them.\n"
    content = results.read_text(encoding="utf-8") if results.is_file() else title
    head, *sections = re.split(r"^## ", content, flags=re.M)
    kept = {s.split("\n", 1)[0]: s for s in sections} | {name: f"{name}\n\n{text.strip()}\n"}
    parts = [head.strip(), *(f"## {kept[key].strip()}" for key in sorted(kept))]
    results.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
