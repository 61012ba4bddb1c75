"""What a selector that takes gradients, or aims at a target, is refused for: one line, before a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from harness import train
from selecting import LORA, table

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
        "stage: kto has pairs of answers, and select: less takes rows of one",
    ),
    (
        {**less(), "enable_liger_kernel": True},
        "enable_liger_kernel hides the logits, but select: less needs a loss per row",
    ),
    ({**less(), "use_dft_loss": True}, "use_dft_loss changes the loss, and select: less takes gradients of the cross"),
    (less(proj_dim=0), "dataflex.select.proj_dim must be between 1 and 16777216, got 0"),
    (less(gradient_type="adm"), "dataflex.select.gradient_type: 'adm' is not a choice; did you mean 'adam'?"),
    (less(parameters="every"), "dataflex.select.parameters: 'every' is not a choice"),
    (less(target_dataset=5), "dataflex.select.target_dataset"),
    (
        less(name="icons", task_boundaries=[]),
        "dataflex.select.task_boundaries must be None or a list of numbers, got ()",
    ),
    (less(name="icons", task_boundaries=[3, 0]), "dataflex.select.task_boundaries must be numbers of rows"),
    (less(proj_dim=10**19), "dataflex.select.proj_dim"),
    (
        less(name="cluster_less", clustering_method="kmean"),
        "dataflex.select.clustering_method must be one of kmeans, euclidean_kmeans, spherical_kmeans",
    ),
    (less(name="cluster_less", seed=-1), "dataflex.select.seed must be between 0 and 4294967295, got -1"),
    (less(name="cluster_less", seed=1 << 40), "dataflex.select.seed must be between 0 and 4294967295"),
    (less(target_dataset=""), "dataflex.select.target_dataset names no data set"),
    (less(name="loss", focus_weight=1e-300), "dataflex.select.focus_weight must be between 1e-130 and 1e130"),
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
    first = train(config, tmp_path / "run")
    assert first.status == [0]
    block = {"select": {**block["select"], "target_dataset": "code_heldout"}}
    run = train({**config, "dataflex": block}, tmp_path / "run")
    assert run.status == [2] and "dataflex.select.target_dataset was ['arithmetic_heldout'] there" in run.log


# -- what only the data and the model say ----------------------------------------------------------------------------


@pytest.fixture
def half_masked(base: Config, tmp_path: Path) -> Config:
    """Data sets `half`, of which every odd row is cut before its answer, and `masked`, of which every row is."""
    source = Path(base["dataset_dir"])
    info = json.loads((source / "dataset_info.json").read_text())
    (tmp_path / "data").mkdir()
    out = {name: {**entry, "file_name": str(source / entry["file_name"])} for name, entry in info.items()}
    rows = [json.loads(line) for line in (source / info["arithmetic"]["file_name"]).read_text().splitlines()]
    (asked,) = [k for k in rows[0] if k in ("instruction", "prompt")]
    long = {asked: "word " * 6000, "output": "word " * 40}  # both are cut in proportion, the answer to nothing
    for name, odd in (("half", 1), ("masked", 0)):
        cut = [{**row, **(long if i % 2 or not odd else {})} for i, row in enumerate(rows)]
        (tmp_path / "data" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, cut)))
        out[name] = {**info["arithmetic"], "file_name": f"{name}.jsonl"}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(out))
    return {**base, **LORA, "dataset_dir": str(tmp_path / "data"), "eval_dataset": "arithmetic_heldout"}


@pytest.mark.parametrize(
    "choice",
    [
        {"name": "cluster_less", "num_clusters": 1},
        {"name": "greats", "interval": 1},
        {"name": "rds"},
        {"name": "random"},
    ],
    ids=lambda choice: choice["name"],
)
def test_rows_without_a_token_to_learn_are_never_selected(half_masked: Config, tmp_path: Path, choice: Config) -> None:
    block = {"select": {"warmup": 1, "interval": 4, **choice}}
    run = train({**half_masked, "dataset": "half", "max_steps": 5, "dataflex": block}, tmp_path / "run").ok
    for file in (run.out / "dataflex" / "selections").glob("*.parquet"):
        found = table(run, int(file.stem.removeprefix("step_")))
        assert not (found["sample_id"][found["selected"]] % 2).any()
        assert found["selected"].sum() > 0


def test_target_rows_are_drawn_from_those_with_an_answer(half_masked: Config, tmp_path: Path) -> None:
    select = {"name": "greats", "interval": 1, "target_dataset": "half", "target_rows": 1}
    run = train({**half_masked, "dataset": "code", "max_steps": 8, "dataflex": {"select": select}}, tmp_path / "run")
    assert len(run.ok.history()) == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "masked"}, "dataset: no row of 'masked' has a token to learn within cutoff_len"),
        (
            {"target_dataset": "arithmetic_heldout,masked"},
            "dataflex.select.target_dataset: no row of 'masked' has a token",
        ),
        (
            {"dataset": "code,masked", "mix": {"name": "random", "interval": 2}},
            "dataset: no row of 'masked' has a token",
        ),
        ({"dataset": "half", "interval": 8}, "but the data has 30; use at most 7 steps"),
        ({"name": "cluster_less", "embedding_layer": 99}, "dataflex.select.embedding_layer must be between -3 and 2"),
        (
            {"name": "nice", "reward_model_path": "/nowhere"},
            "dataflex.select.reward_model_path: no such directory: /nowhere",
        ),
        (
            {"dataset": "code", "target_dataset": "twin"},
            "'twin' has the rows of 'code', and what is aimed at must not be trained on",
        ),
        ({"target_dataset": "nothing"}, "dataflex.select.target_dataset: 'nothing' is empty"),
    ],
)
def test_refused_by_data_and_model(half_masked: Config, tmp_path: Path, changes: Config, message: str) -> None:
    """Also status 2, before the model's weights are read."""
    folder = Path(half_masked["dataset_dir"])
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "nothing.jsonl").write_text("")
    info |= {"twin": info["code"], "nothing": {"file_name": "nothing.jsonl"}}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    top = {k: v for k, v in changes.items() if k in ("dataset",)}
    mix = {"mix": changes["mix"]} if "mix" in changes else {}
    select = {"name": "less", "interval": 2, **{k: v for k, v in changes.items() if k not in ("dataset", "mix")}}
    config = {**half_masked, **top, "dataflex": {"select": select, **mix}}
    run = train(config, tmp_path / "run", hooks=["no_model"])
    assert run.status == [2] and message in run.log, run.log[-2000:]


@pytest.mark.parametrize("checkpointing", [True, False])
def test_dora(half_masked: Config, tmp_path: Path, checkpointing: bool) -> None:
    """peft applies lora_A to an identity matrix besides; scores with and without gradient checkpointing are the same."""
    config = {**half_masked, "use_dora": True, "lora_dropout": 0.0, "disable_gradient_checkpointing": not checkpointing}
    select = {"name": "less", "warmup": 2, "interval": 3}
    run = train({**config, "max_steps": 4, "dataflex": {"select": select}}, tmp_path / "run").ok
    other = train(
        {**config, "disable_gradient_checkpointing": checkpointing, "max_steps": 4, "dataflex": {"select": select}},
        tmp_path / "other",
    ).ok
    assert abs(table(run, 2)["score"] - table(other, 2)["score"]).max() < 1e-5


def test_a_reward_that_fails_is_one_line(half_masked: Config, tmp_path: Path) -> None:
    functions = [
        "def bad(p, r, w):",
        "    raise ValueError('one\\ntwo')",
        "def out(p, r, w):",
        "    raise SystemExit(3)",
    ]
    (tmp_path / "my_reward.py").write_text("\n".join(functions))
    for name, said in (("bad", "failed: ValueError: one two"), ("out", "failed: SystemExit: 3")):
        select = {"name": "nice", "interval": 3, "reward": f"my_reward:{name}", "mc_samples": 1, "max_new_tokens": 3}
        run = train({**half_masked, "dataflex": {"select": select}}, tmp_path / name, hooks=[f"import_from:{tmp_path}"])
        assert run.status != [0] and f"reward: my_reward:{name} {said}" in run.log


def test_more_new_tokens_than_positions(half_masked: Config, tmp_path: Path) -> None:
    select = {"name": "nice", "interval": 3, "mc_samples": 1, "max_new_tokens": 5000}
    run = train({**half_masked, "dataflex": {"select": select}}, tmp_path / "run")
    assert "max_new_tokens: the model has 1024 positions" in run.log and run.status != [0]


def test_another_finetuning_type_does_not_resume(half_masked: Config, tmp_path: Path) -> None:
    config = {
        **half_masked,
        "save_steps": 2,
        "save_strategy": "steps",
        "max_steps": 4,
        "dataflex": {"select": {"name": "random", "interval": 2}},
    }
    first = train({**config, "finetuning_type": "full"}, tmp_path / "run")
    assert first.status == [0]
    again = train(
        {**config, "max_steps": 6, "resume_from_checkpoint": str(tmp_path / "run" / "checkpoint-2")}, tmp_path / "run"
    )
    assert again.status == [2] and "finetuning_type" in again.log
