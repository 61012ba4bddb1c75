"""Wrong configurations and data, each with the words that its one line must hold.

`attempt` runs them all one after the other in one process (hook `attempt_all` of hooks.py), so that each costs what it
takes to be refused, and no imports.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from bad_domains import DOMAINS

Config = dict[str, Any]
SELECT = {"name": "loss", "interval": 4}
ALPACA = {"prompt": "instruction", "response": "output"}
PAIRS = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}
CHAT = {"formatting": "sharegpt", "columns": {"messages": "messages"}}
GOOD = [{"instruction": f"What is {i}?", "output": f"It is {i}."} for i in range(8)]
TALK = [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Hi."}]


@dataclass(frozen=True)
class Case:
    """changes: to a good configuration. words: what the line must hold. data: {name: (entry of dataset_info.json, rows)} of a
    dataset_dir made for it, where rows are a list, or the text or bytes of the file. text: the whole file instead, written as
    `file`. overrides: of the command line. prepare: what else is made in its folder."""

    words: tuple[str, ...]
    changes: Config = field(default_factory=dict)
    data: dict[str, tuple[Any, Any]] | None = None
    text: str | bytes | None = None
    file: str = "config.yaml"
    overrides: tuple[str, ...] = ()
    command: str = "train"
    prepare: Callable[[Path], None] | None = None


def block(**slots: Any) -> Config:
    return {"dataflex": slots}


def key(name: str, value: Any, *words: str, **more: Any) -> Case:
    """One key of LLaMA-Factory's beside a selector."""
    return Case((name, *words), {name: value, **block(select=SELECT), **more})


def slot(words: Sequence[str], **slots: Any) -> Case:
    return Case(tuple(words), block(**slots))


def rows(words: Sequence[str], given: Any, entry: Any = None, *, suffix: str = "jsonl", **changes: Any) -> Case:
    """A data set of its own called `own`, beside a selector unless `changes` say otherwise."""
    entry = {"file_name": f"own.{suffix}", "columns": ALPACA} if entry is None else entry
    if isinstance(entry, dict) and "file_name" not in entry and "hf_hub_url" not in entry:
        entry = {"file_name": f"own.{suffix}", **entry}
    return Case(tuple(words), {"dataset": "own", **(changes or block(select=SELECT))}, data={"own": (entry, given)})


WEIGHT = block(weight={"name": "loss"})
DPO = {"stage": "dpo", **block(mix={"name": "static"})}
PAIR = {"columns": PAIRS, "ranking": True}
CHAT_PAIR = {
    "formatting": "sharegpt", "ranking": True, "columns": {"messages": "messages", "chosen": "good", "rejected": "bad"},
}  # fmt: skip


def pairs(bad_row: int, **changes: Any) -> list[Config]:
    asked, said = TALK[:1], TALK[1]
    made: list[Config] = [{"messages": asked, "good": said, "bad": {"from": "gpt", "value": "No."}} for _ in range(6)]
    made[bad_row] = {**made[bad_row], **changes}
    return made


BROKEN_LINE = "\n".join([*map(json.dumps, GOOD[:3]), '{"instruction": "x", "output": ', *map(json.dumps, GOOD[3:])])
OTHER_COLUMNS = [{"question": "x", "answer": "y"}] * 4

# What several hours of trying had found to end in a traceback, late, or without a key.
KNOWN: dict[str, Case] = {
    "a number for dataset": key("dataset", 5),
    "a nested list for dataset": key("dataset", [["code"]]),
    "a mapping for dataset": key("dataset", {"code": 1}),
    "batch of nothing": key("per_device_train_batch_size", 0, "at least 1"),
    "accumulation of nothing": key("gradient_accumulation_steps", 0, "at least 1"),
    "batch beyond any memory": key("per_device_train_batch_size", 10**30),
    "accumulation beyond any time": key("gradient_accumulation_steps", 10**30),
    "batch of ten million": key("per_device_train_batch_size", 10**7, "at most"),
    "learning rate NaN": key("learning_rate", float("nan"), "finite"),
    "learning rate below zero": key("learning_rate", -1e-4, "at least 0"),
    "learning rate infinite": key("learning_rate", float("inf"), "finite"),
    "cutoff_len zero": key("cutoff_len", 0, "at least 1"),
    "cutoff_len below zero": key("cutoff_len", -5, "at least 1"),
    "total_steps without end": slot(["dataflex.total_steps"], total_steps=10**21, select=SELECT),
    "max_samples zero": key("max_samples", 0, "at least 1"),
    "workers below zero": key("dataloader_num_workers", -1, "at least 0"),
    "a list for template": key("template", ["qwen"]),
    "no such adapter": key("adapter_name_or_path", "./nowhere", "no such directory", finetuning_type="lora"),
    "null for seed": Case(("seed", "null"), block(select=SELECT), overrides=("seed=",)),
    "a number for output_dir": Case(("output_dir", "got 5"), block(select=SELECT), overrides=("output_dir=5",)),
    "a name of 300 characters": Case(("output_dir",), block(select=SELECT), overrides=("output_dir=" + "x" * 300,)),
    "a model of 300 characters": key("model_name_or_path", "./" + "x" * 300),
    "a file of 300 characters": Case(
        ("x.yaml",), text=b"", file="short.yaml", overrides=("FILE=" + "x" * 300 + ".yaml",)
    ),
    "JSON 2000 deep": Case(("config.json",), text='{"a": ' + "[" * 2000 + "]" * 2000 + "}", file="config.json"),
    "a tracker that is not installed": key("report_to", "clearml", "not installed"),
    "no content in a pair": rows(
        ["dataset", "'own'", "row 3"], pairs(3, bad={"from": "gpt", "value": None}), CHAT_PAIR, **DPO
    ),
    "weight alone, a broken line": rows(["dataset", "'own'", "own.jsonl", "line 4"], BROKEN_LINE, **WEIGHT),
    "weight alone, other columns": rows(["dataset", "'own'", "instruction"], OTHER_COLUMNS, **WEIGHT),
    "val_size in a tiny domain": rows(["val_size", "'own'"], GOOD[:1], val_size=0.1, **block(select=SELECT)),
    "weight alone, val_size in a tiny domain": rows(["val_size"], GOOD[:1], val_size=0.1, **WEIGHT),
    "a module that leaves": Case(
        ("dataflex.select.name", "leaving:Any"),
        block(select={"name": "leaving:Any", "interval": 4}),
        prepare=lambda folder: (folder / "leaving.py").write_text("import sys\nsys.exit(3)\n") and None,
    ),
    "a data set twice beside a selector": key("dataset", "code,code", "'code' is listed twice", "proportions"),
}


def _directory(folder: Path) -> None:
    (folder / "data" / "own.jsonl").unlink()
    (folder / "data" / "own.jsonl").mkdir()


def _dangling(folder: Path) -> None:
    (folder / "data" / "own.jsonl").unlink()
    (folder / "data" / "own.jsonl").symlink_to(folder / "nowhere.jsonl")


def _loop(folder: Path) -> None:
    (folder / "data" / "own.jsonl").unlink()
    (folder / "data" / "own.jsonl").symlink_to(folder / "data" / "own.jsonl")


def _file_for_output(folder: Path) -> None:
    (folder / "taken").write_text("mine")


def _model(folder: Path, **files: str) -> None:
    (folder / "broken").mkdir()
    for name, text in files.items():
        (folder / "broken" / f"{name}.json").write_text(text)


def _module(name: str, text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / f"{name}.py").write_text(text)

    return write


def _config_folder(folder: Path) -> None:
    (folder / "a.yaml").mkdir()


ODM = {"name": "odm", "interval": 2}
COMPONENT = """
from dataclasses import dataclass
from dataflex import Selection, Selector
@dataclass(frozen=True, kw_only=True)
class Own(Selector):
    share: float = 0.5
    {body}
    def select(self, state, signals, context):
        return Selection([], None), state
"""

# Of other kinds, thought of since.
OTHERS: dict[str, Case] = {
    # -- the file
    "an empty file": Case(("config.yaml",), text=""),
    "a file of comments": Case(("config.yaml",), text="# nothing\n"),
    "a list at the top": Case(("config.yaml", "keys and values"), text="- a\n- b\n"),
    "text at the top": Case(("config.yaml", "keys and values"), text="just words\n"),
    "a number at the top of JSON": Case(("config.json", "keys and values"), text="5", file="config.json"),
    "a tab for indentation": Case(("config.yaml",), text="a: 1\ndataflex:\n\tselect: loss\n"),
    "a duplicate key": Case(("config.yaml", "seed"), text="seed: 1\nstage: sft\nseed: 2\n"),
    "a duplicate key in JSON": Case(("config.json", "seed"), text='{"seed": 1, "seed": 2}', file="config.json"),
    "an unknown anchor": Case(("config.yaml",), text="a: *nowhere\n"),
    "an object of Python": Case(("config.yaml",), text="a: !!python/object/apply:os.getcwd []\n"),
    "no text at all": Case(("config.yaml",), text=b"\xff\xfe\x00\x01\x02"),
    "latin-1": Case(("config.yaml",), text="run_name: caf\xe9\n".encode("latin-1")),
    "an open brace": Case(("config.yaml",), text="dataflex: {select: {name: loss\n"),
    "JSON cut off": Case(("config.json",), text='{"seed": 1,', file="config.json"),
    "JSON with a comment": Case(("config.json",), text='{"seed": 1} // yes', file="config.json"),
    "two documents": Case(("config.yaml",), text="seed: 1\n---\nseed: 2\n"),
    "a folder for the file": Case(("a.yaml",), text="", overrides=("FILE=a.yaml",), prepare=_config_folder),
    "an override without value": Case(("learning_rate", "key=value"), block(select=SELECT), overrides=("learning_rate",)),
    "an override without key": Case(("=5",), block(select=SELECT), overrides=("=5",)),
    "an override of a whole slot": Case(("dataflex.select",), block(select=SELECT), overrides=("dataflex.select=5",)),
    "an override with an open bracket": Case(("dataset",), block(select=SELECT), overrides=("dataset=[code",)),
    # -- LLaMA-Factory's keys: types
    "a list for a number": key("learning_rate", [1e-4]),
    "a mapping for a number": key("num_train_epochs", {"a": 1}),
    "true for a number": key("per_device_train_batch_size", True),
    "a fraction for rows": key("per_device_train_batch_size", 2.5, "integer"),
    "a date for a number": Case(("max_steps",), block(select=SELECT), overrides=("max_steps=2026-01-01",)),
    "words for a switch": key("bf16", "perhaps"),
    "a list for a switch": key("do_train", [True]),
    "a number for a switch": key("packing", 7),
    "a list for a choice": key("finetuning_type", ["lora"]),
    "a mapping for a choice": key("stage", {"sft": 1}),
    "a list for a path": key("model_name_or_path", ["a", "b"]),
    "a mapping for output_dir": Case(("output_dir",), block(select=SELECT), overrides=("output_dir={a: 1}",)),
    "a list of numbers for dataset": key("dataset", [1, 2]),
    "null in dataset": key("dataset", ["code", None]),
    "an empty name in dataset": key("dataset", "code,,docs"),
    "no name in dataset": key("dataset", ""),
    "an empty list for dataset": key("dataset", []),
    "true for resume": key("resume_from_checkpoint", True, "no complete checkpoint"),
    "an unknown schedule": key("lr_scheduler_type", "cosin", "'cosine'"),
    "an unknown optimizer": key("optim", "adamw_trch", "'adamw_torch'"),
    "an unknown strategy": key("save_strategy", "step", "'steps'"),
    "an unknown tracker": key("report_to", ["wandbb"], "'wandb'"),
    "a number for a tracker": key("report_to", 5),
    "an unknown attention": key("flash_attn", "fa4"),
    "an unknown log level": key("log_level", "loud"),
    "text that is no mapping": key("lr_scheduler_kwargs", "{min_lr: "),
    "a number for a mapping": key("accelerator_config", 3),
    "no such DeepSpeed file": key("deepspeed", "nowhere.json", "no such file"),
    "null for a batch": key("per_device_train_batch_size", None, "null"),
    "a key in unicode": Case(("ｓeed",), {"ｓeed": 1, **block(select=SELECT)}),
    "a template in another script": key("template", "квен"),
    "an invisible character in a key": Case((r"seed\u200b",), {"seed\u200b": 1, **block(select=SELECT)}),
    "a number for a key": Case(("5",), {5: 1, **block(select=SELECT)}),
    # -- LLaMA-Factory's keys: ranges
    "epochs NaN": key("num_train_epochs", float("nan"), "finite", max_steps=-1),
    "epochs below zero": key("num_train_epochs", -1, max_steps=-1),
    "steps without end": key("max_steps", 10**21),
    "warmup below zero": key("warmup_steps", -3),
    "warmup ratio above one": key("warmup_ratio", 1.5),
    "weight decay below zero": key("weight_decay", -0.1),
    "beta of one": key("adam_beta1", 1.0),
    "epsilon below zero": key("adam_epsilon", -1e-8),
    "logging never": key("logging_steps", 0),
    "seed below zero": key("seed", -1),
    "seed beyond 32 bits": key("seed", 2**40),
    "data_seed below zero": key("data_seed", -7),
    "val_size below zero": key("val_size", -0.1),
    "val_size of all": key("val_size", 1.0),
    "val_size NaN": key("val_size", float("nan")),
    "val_size above the data": key("val_size", 10**6),
    "rank of nothing": key("lora_rank", 0, finetuning_type="lora"),
    "dropout above one": key("lora_dropout", 1.5, finetuning_type="lora"),
    "no process for tokenization": key("preprocessing_num_workers", 0),
    "smoothing above one": key("label_smoothing_factor", 2, **block(mix={"name": "static"})),
    "beta of dpo NaN": key("pref_beta", float("nan"), stage="dpo", dataset="arithmetic_pairs"),
    "cutoff_len beyond memory": key("cutoff_len", 10**30),
    "a prefetch of nothing": key("dataloader_prefetch_factor", 0),
    "bits that there are not": key("quantization_bit", 7, finetuning_type="lora"),
    # -- paths
    "a file for output_dir": Case(
        ("output_dir",), block(select=SELECT), overrides=("output_dir=taken",), prepare=_file_for_output
    ),
    "a byte of zero in a path": key("model_name_or_path", "./a\0b"),
    "a model without configuration": Case(
        ("model_name_or_path", "broken"), {"model_name_or_path": "./broken", **block(select=SELECT)}, prepare=_model
    ),
    "a model whose configuration is cut off": Case(
        ("model_name_or_path", "broken"),
        {"model_name_or_path": "./broken", **block(select=SELECT)},
        prepare=lambda folder: _model(folder, config="{"),
    ),
    "a model of an unknown kind": Case(
        ("model_name_or_path", "broken"),
        {"model_name_or_path": "./broken", **block(select=SELECT)},
        prepare=lambda folder: _model(folder, config='{"model_type": "nothing_like_it"}'),
    ),
    "a file for dataset_dir": key("dataset_dir", __file__),
    # -- the block
    "text for the block": Case(("dataflex",), {"dataflex": "select"}),
    "a list for the block": Case(("dataflex",), {"dataflex": [SELECT]}),
    "a list for select": slot(["dataflex.select"], select=[SELECT]),
    "a list for mix": slot(["dataflex.mix"], mix=[ODM]),
    "a number for a name": slot(["dataflex.select.name"], select={"name": 5, "interval": 4}),
    "text for an interval": slot(["dataflex.select.interval"], select={"name": "loss", "interval": "often"}),
    "an interval without end": slot(["dataflex.select.interval"], select={"name": "loss", "interval": 10**25}),
    "a warmup without end": slot(["dataflex.select.warmup"], select={**SELECT, "warmup": 10**25}),
    "true for a warmup": slot(["dataflex.select.warmup"], select={**SELECT, "warmup": True}),
    "NaN for a parameter": slot(["dataflex.select.temperature"], select={**SELECT, "temperature": float("nan")}),
    "text for proportions": slot(["dataflex.mix.proportions"], mix={**ODM, "proportions": "half"}),
    "words in proportions": slot(["dataflex.mix.proportions"], mix={**ODM, "proportions": ["a", "b", "c"]}),
    "proportions below zero": slot(["dataflex.mix.proportions"], mix={**ODM, "proportions": [1.5, -0.5, 0]}),
    "a proportion of a stranger": slot(
        ["dataflex.mix.proportions", "'cod'", "'code'"],
        mix={**ODM, "proportions": {"cod": 0.5, "docs": 0.3, "arithmetic": 0.2}},
    ),
    "proportions of a folder": slot(["dataflex.mix.proportions"], mix={**ODM, "proportions": "/tmp"}),
    "a repetition of nothing": slot(["dataflex.mix.max_repetition"], mix={**ODM, "max_repetition": 0}),
    "a target that is trained on": slot(
        ["dataflex.select.target_dataset", "'code'"], select={"name": "less", "interval": 4, "target_dataset": "code"}
    ),
    "a target that there is not": slot(
        ["dataflex.select.target_dataset", "'cod'"], select={"name": "less", "interval": 4, "target_dataset": "cod"}
    ),
    "a mapping for a target": slot(
        ["dataflex.select.target_dataset"], select={"name": "less", "interval": 4, "target_dataset": {"a": 1}}
    ),
    "a module of wrong syntax": Case(
        ("dataflex.select.name", "crooked:Own"),
        block(select={"name": "crooked:Own", "interval": 4}),
        prepare=_module("crooked", "def f(:\n"),
    ),
    "a component that fails when it is made": Case(
        ("dataflex.select", "failing:Own"),
        block(select={"name": "failing:Own", "interval": 4}),
        prepare=_module("failing", COMPONENT.format(body="def check(self):\n        raise RuntimeError('no')")),
    ),
    "a component with a type that there is not": Case(
        ("dataflex.select", "untyped:Own"),
        block(select={"name": "untyped:Own", "interval": 4, "share": 0.5}),
        prepare=_module("untyped", "from __future__ import annotations\n" + COMPONENT.format(body="more: Nowhere = None")),
    ),
    "a parameter of the wrong type": Case(
        ("dataflex.select.share",),
        block(select={"name": "mistyped:Own", "interval": 4, "share": "much"}),
        prepare=_module("mistyped", COMPONENT.format(body="pass")),
    ),
    # -- data
    "no rows": rows(["dataset", "'own'", "empty"], ""),
    "a broken line": rows(["dataset", "'own'", "own.jsonl", "line 4"], BROKEN_LINE),
    "a line that is a list": rows(["dataset", "'own'"], "[1, 2]\n[3, 4]\n"),
    "no JSON at all": rows(["dataset", "'own'", "line 1"], "hello\nworld\n"),
    "bytes for rows": rows(["dataset", "'own'"], b"\x80\x81\x82\xff" * 40),
    "broken Parquet": rows(["dataset", "'own'"], b"PAR1 nothing PAR1", suffix="parquet"),
    "an unknown suffix": rows(["dataset", "'own'", "own.xyz"], "x", suffix="xyz"),
    "a folder without files": Case(
        ("dataset", "'own'"),
        {"dataset": "own", **block(select=SELECT)},
        data={"own": ({"file_name": "own.jsonl", "columns": ALPACA}, "")},
        prepare=_directory,
    ),
    "a link to nowhere": Case(
        ("dataset", "'own'"),
        {"dataset": "own", **block(select=SELECT)},
        data={"own": ({"file_name": "own.jsonl", "columns": ALPACA}, "")},
        prepare=_dangling,
    ),
    "a link to itself": Case(
        ("dataset", "'own'"),
        {"dataset": "own", **block(select=SELECT)},
        data={"own": ({"file_name": "own.jsonl", "columns": ALPACA}, "")},
        prepare=_loop,
    ),
    "numbers for text": rows(["dataset", "'own'", "row 2"], [*GOOD[:2], {"instruction": 5, "output": "x"}]),
    "all numbers for text": rows(["dataset", "'own'", "row 0"], [{"instruction": 5, "output": "x"}] * 4),
    "no answers": rows(["dataset", "'own'"], [{"instruction": "x", "output": None}] * 4),
    "other columns": rows(["dataset", "'own'", "instruction"], OTHER_COLUMNS),
    "messages that are text": rows(["dataset", "'own'", "row 0"], [{"messages": "hello"}] * 4, CHAT),
    "a row without messages": rows(
        ["dataset", "'own'", "row 2"], [{"messages": TALK}] * 2 + [{"messages": None}] + [{"messages": TALK}], CHAT
    ),
    "messages without content": rows(
        ["dataset", "'own'", "row 1"], [{"messages": TALK}, {"messages": [TALK[0], {"from": "gpt", "value": None}]}], CHAT
    ),
    "other tags in messages": rows(
        ["dataset", "'own'", "row 0"], [{"messages": [{"role": "user", "content": "x"}] * 2}] * 4, CHAT
    ),
    "a null answer in a pair of text": rows(
        ["dataset", "'own'"], [{"instruction": "x", "chosen": None, "rejected": None}] * 4, PAIR, **DPO
    ),
    "pairs for sft": rows(["dataset", "'own'", "ranking"], pairs(0), CHAT_PAIR),
    "weight alone, no rows": rows(["dataset", "'own'", "empty"], "", **WEIGHT),
    "weight alone, messages without content": rows(
        ["dataset", "'own'", "row 1"],
        [{"messages": TALK}, {"messages": [TALK[0], {"from": "gpt", "value": None}]}],
        CHAT,
        **WEIGHT,
    ),
    "an entry that is a list": rows(["'own'", "mapping"], GOOD, ["own.jsonl"]),
    "an entry without a file": Case(
        ("'own'", "file_name"), {"dataset": "own", **block(select=SELECT)}, data={"own": ({"columns": ALPACA}, GOOD)}
    ),
    "a number for a file name": rows(["'own'", "file_name"], GOOD, {"file_name": 5, "columns": ALPACA}),
    "columns that are a list": rows(["'own'", "columns"], GOOD, {"columns": ["instruction", "output"]}),
    "an unknown formatting": rows(["'own'", "formatting", "'alpaca'"], GOOD, {"columns": ALPACA, "formatting": "alpacca"}),
    "a column that is a number": rows(["'own'", "columns"], GOOD, {"columns": {"prompt": 1, "response": "output"}}),
    "text for ranking": rows(["'own'", "ranking"], GOOD, {"columns": ALPACA, "ranking": "yes"}),
    "num_samples of nothing": rows(["'own'", "num_samples"], GOOD, {"columns": ALPACA, "num_samples": 0}),
    "an unknown split": rows(["dataset", "'own'", "split"], GOOD, {"columns": ALPACA, "split": "training"}),
    "dataset_info that is a list": Case(
        ("dataset_dir", "dataset_info.json"),
        {"dataset": "own", **block(select=SELECT)},
        data={"own": ({}, "")},
        prepare=lambda folder: (folder / "data" / "dataset_info.json").write_text("[]") and None,
    ),
    "dataset_info cut off": Case(
        ("dataset_dir", "dataset_info.json"),
        {"dataset": "own", **block(select=SELECT)},
        data={"own": ({}, "")},
        prepare=lambda folder: (folder / "data" / "dataset_info.json").write_text("{") and None,
    ),
    "weight alone, val_size above the data": rows(["val_size"], GOOD, val_size=50, **WEIGHT),
    "an evaluation set of other columns": Case(
        ("eval_dataset", "'held'"),
        {"dataset": "own", "eval_dataset": "held", "eval_strategy": "steps", "eval_steps": 2, **WEIGHT},
        data={
            "own": ({"file_name": "own.jsonl", "columns": ALPACA}, GOOD),
            "held": ({"file_name": "held.jsonl", "columns": ALPACA}, OTHER_COLUMNS),
        },
    ),
    # -- the other commands
    "select without a block": Case(("dataflex.select",), command="select"),
    "select with a number for its budget": Case(
        ("dataflex.offline.budget",), block(select="token_length", offline={"budget": "many"}), command="select"
    ),
    "select with vectors that are none": Case(
        ("dataflex.offline.embeddings",),
        block(select={"name": "near", "target_dataset": "code_heldout"}, offline={"budget": 4, "embeddings": __file__}),
        command="select",
    ),
    "doremi with a list of steps in a number": Case(
        ("dataflex.doremi.steps",), block(mix="doremi", doremi={"steps": 5}), command="doremi"
    ),
    "doremi with a number for a run": Case(
        ("dataflex.doremi.proxy",), block(mix="doremi", doremi={"proxy": 5}), command="doremi"
    ),
    "doremi with a number for its mixer": Case(("dataflex.mix",), block(mix=5, doremi={}), command="doremi"),
}  # fmt: skip


def _of_domains(words: list[str], domains: Any, given: Any, more: Config) -> Case:
    slots = {"mix": more.get("mix", "uniform"), "weight": more.get("weight"), "domains": domains}
    other = {name: value for name, value in more.items() if name not in slots}
    return rows(words, given, **other, **block(**{name: value for name, value in slots.items() if value is not None}))


CASES = KNOWN | OTHERS | {name: _of_domains(*given) for name, given in DOMAINS.items()}


def write(case: Case, base: Config, folder: Path) -> list[str]:
    """The arguments of the command, once its files are in `folder`, which is the working directory."""
    folder.mkdir(parents=True)
    config: Config = {**base, "output_dir": str(folder / "out"), **case.changes}
    if case.data is not None:
        (folder / "data").mkdir()
        info = {}
        for name, (entry, given) in case.data.items():
            info[name] = entry
            file = entry.get("file_name") if isinstance(entry, dict) else None
            made = folder / "data" / (file if isinstance(file, str) else f"{name}.jsonl")
            if isinstance(given, list):
                given = "".join(json.dumps(row) + "\n" for row in given)
            made.write_bytes(given if isinstance(given, bytes) else given.encode())
        (folder / "data" / "dataset_info.json").write_text(json.dumps(info))
        config["dataset_dir"] = str(folder / "data")
    text = yaml.safe_dump(config, allow_unicode=True) if case.text is None else case.text
    (folder / case.file).write_bytes(text if isinstance(text, bytes) else text.encode())
    if case.prepare is not None:
        case.prepare(folder)
    file = next((o.removeprefix("FILE=") for o in case.overrides if o.startswith("FILE=")), case.file)
    return [case.command, file, *(o for o in case.overrides if not o.startswith("FILE="))]


def attempt(cases: dict[str, Case], base: Config, ground: Path, names: Sequence[str]) -> dict[str, tuple[Any, str]]:
    """{case: (exit status or the error that got through, what was printed)}, in this process."""
    from dataflex.cli import main

    out: dict[str, tuple[Any, str]] = {}
    for index, name in enumerate(names):
        folder = ground / f"case-{index}"
        arguments = write(cases[name], base, folder)
        os.chdir(folder)
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                status: Any = main(arguments)
            except BaseException as error:
                status = f"{type(error).__name__}: {error}"[:300]
                said.write(traceback.format_exc())
        out[name] = (status, said.getvalue())
    return out


def verdict(case: Case, status: Any, said: str) -> str:
    """`line` for one line that holds the words; else what happened instead."""
    lines = [line for line in said.splitlines() if line.startswith("dataflex: error: ")]
    if "a model was loaded" in said:
        return "late"
    if not isinstance(status, int) or "Traceback" in said:
        return "traceback"
    if status != 2 or len(lines) != 1:
        return f"status {status}, {len(lines)} lines"
    missing = [word for word in case.words if word not in lines[0]]
    return f"without {missing}: {lines[0]}" if missing else "line"
