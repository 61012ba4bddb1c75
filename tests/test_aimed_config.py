"""What a selector that takes gradients, or aims at a target, is refused for: one line, before a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from harness import train
from test_less import LORA

from dataflex.config import parse
from dataflex.errors import ConfigError

Config = dict[str, Any]
RUN = {"stage": "sft", "do_train": True, "dataset": "code,docs", "eval_dataset": "aim"}


def less(**changes: Any) -> Config:
    return {"dataflex": {"select": {"name": "less", "interval": 4, **changes}}}


REFUSED: list[tuple[Config, str]] = [
    (
        {**less(), "eval_dataset": None},
        "dataflex.select.target_dataset: less needs a target; name data sets here, or set",
    ),
    (
        {**less(target_dataset="aim,docs")},
        "dataflex.select.target_dataset: 'docs' is also in dataset, and less must not",
    ),
    (
        {**less(), "eval_dataset": "docs"},
        "eval_dataset: 'docs' is also in dataset, and less must not train on its target",
    ),
    ({**less(), "eval_dataset": ["aim", "code"]}, "eval_dataset: 'code' is also in dataset"),
    (
        {**less(), "optim": "adafactor"},
        "optim: adafactor keeps no moments that select: less can read; set gradient_type",
    ),
    ({**less(), "optim": "adamw_torch_8bit"}, "optim: adamw_torch_8bit keeps no moments that select: less can read"),
    ({**less(), "use_galore": True}, "use_galore keeps no moments that select: less can read; set gradient_type: sgd"),
    ({**less(), "stage": "dpo"}, "stage: dpo has pairs of answers, and select: less takes rows of one; use pt or sft"),
    (
        {**less(), "stage": "kto"},
        "stage: kto has a KL term that belongs to the batch, but select: less needs a loss per row",
    ),
    (
        {**less(), "enable_liger_kernel": True},
        "enable_liger_kernel hides the logits, but select: less needs a loss per row",
    ),
    ({**less(), "use_dft_loss": True}, "use_dft_loss gives one loss per batch, but select: less needs a loss per row"),
    (less(proj_dim=0), "dataflex.select.proj_dim must be at least 1, got 0"),
    (less(gradient_type="adm"), "dataflex.select.gradient_type: 'adm' is not a choice; did you mean 'adam'?"),
    (less(parameters="every"), "dataflex.select.parameters: 'every' is not a choice"),
    (less(target_dataset=5), "dataflex.select.target_dataset"),
    (
        less(name="icons", task_boundaries=[]),
        "dataflex.select.task_boundaries must be None or a list of numbers, got ()",
    ),
    (less(name="icons", task_boundaries=[3, 0]), "dataflex.select.task_boundaries must be numbers of rows"),
    (less(name="cluster_less", clustering_method="kmean"), "dataflex.select.clustering_method must be one of kmeans,"),
    (
        less(name="cluster_less", embedding_model_name_or_path="x"),
        "dataflex.select.embedding_model_name_or_path must be",
    ),
    (
        less(name="nice", mc_samples=1, baseline="mean"),
        "dataflex.select.mc_samples must be at least 2 with baseline: mean",
    ),
    (
        less(name="nice", generation_temperature=float("inf")),
        "dataflex.select.generation_temperature must be positive and",
    ),
    (less(name="greats", candidates=0.5), "dataflex.select.candidates must be at least 1 and finite, got 0.5"),
    (less(name="greats", step_size=0.0), "dataflex.select.step_size must be positive and finite, got 0.0"),
    (less(name="greats", target_rows=0), "dataflex.select.target_rows must be at least 1, got 0"),
    (less(name="nice", reward="exact"), "dataflex.select.reward must be exact_match or module:function, got 'exact'"),
    (less(name="nice", reward="nowhere:f"), "dataflex.select.reward: cannot import 'nowhere:f'"),
    (less(name="nice", reward="json:dumps", reward_model_path="x"), "dataflex.select.reward must be left out with"),
    (
        {**less(name="nice"), "stage": "pt"},
        "stage: pt has no prompts to respond to, and select: nice needs them; use sft",
    ),
    (
        {"dataflex": {**less(name="greats")["dataflex"], "mix": "static"}},
        "select: greats chooses whole batches and cannot",
    ),
]


@pytest.mark.parametrize(("changes", "start"), REFUSED)
def test_what_a_gradient_selector_cannot_do(changes: Config, start: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse({k: v for k, v in {**RUN, **changes}.items() if v is not None})
    assert str(error.value).startswith(start), str(error.value)


def test_what_it_can_do() -> None:
    for changes in (
        less(gradient_type="sgd") | {"optim": "adafactor"},
        less() | {"optim": "adamw_torch_fused"},
        less() | {"stage": "pt"},
        less(target_dataset=["a", "b"]),
        less() | {"eval_dataset": None, "val_size": 0.1},
        less(name="greats") | {"optim": "sgd"},
    ):
        parse({k: v for k, v in {**RUN, **changes}.items() if v is not None})
    unaimed = parse({**RUN, "dataflex": {"select": {"name": "random", "interval": 4, "target_dataset": "aim"}}})
    assert unaimed.notices == ("dataflex.select.target_dataset has no effect: random aims at no target",)


@pytest.mark.parametrize(
    ("select", "message"),
    [
        (
            {"target_dataset": "arithmetic_heldot"},
            "dataflex.select.target_dataset: 'arithmetic_heldot' is not defined in",
        ),
        (
            {"name": "icons", "task_boundaries": [3, 4]},
            "dataflex.select.task_boundaries add up to 7 rows, but the target has 10",
        ),
        ({"target_dataset": "empty"}, "dataflex.select.target_dataset: 'empty'"),
    ],
)
def test_a_target_that_cannot_be_used(base: Config, ground: Path, tmp_path: Path, select: Config, message: str) -> None:
    data = tmp_path / "data"
    data.mkdir()
    info = json.loads((ground / "data" / "dataset_info.json").read_text())
    for name in ("code", "docs", "arithmetic", "arithmetic_heldout"):
        (data / info[name]["file_name"]).write_text((ground / "data" / info[name]["file_name"]).read_text())
    (data / "empty.jsonl").write_text("")
    info["empty"] = {**info["code"], "file_name": "empty.jsonl"}
    (data / "dataset_info.json").write_text(json.dumps(info))
    block = {"select": {"name": "less", "interval": 4, "target_dataset": "arithmetic_heldout", **select}}
    run = train(
        {**base, **LORA, "dataset_dir": str(data), "dataflex": block}, tmp_path / "run", hooks=["count_forwards"]
    )
    lines = [line for line in run.log.splitlines() if line.startswith("dataflex: error")]
    assert run.status == [2] and len(lines) == 1 and message in lines[0]
    assert "Traceback" not in run.log and "trainable params" not in run.log


def test_another_target_is_not_the_same_run(base: Config, tmp_path: Path) -> None:
    block = {"select": {"name": "less", "interval": 4, "target_dataset": "arithmetic_heldout"}}
    config = {**base, **LORA, "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "dataflex": block}
    train(config, tmp_path / "run").ok  # noqa: B018
    block = {"select": {**block["select"], "target_dataset": "code_heldout"}}
    run = train({**config, "dataflex": block}, tmp_path / "run")
    assert run.status == [2] and "dataflex.select.target_dataset was ['arithmetic_heldout'] there" in run.log
