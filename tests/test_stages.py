"""Every training stage, packing mode and loss path, through the real command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import assert_refused
from comparing import close
from harness import Result, plain, start, train, train_all

Config = dict[str, Any]

STAGES: dict[str, Config] = {
    "pt": {"stage": "pt", "dataset": "code_text,docs_text"},
    "pt unpacked": {"stage": "pt", "dataset": "code_text,docs_text", "packing": False},
    "sft packed": {"packing": True},
    "sft neat": {"neat_packing": True},
    "sft lora": {"finetuning_type": "lora", "lora_rank": 4, "lora_target": "all"},
    "rm": {"stage": "rm", "dataset": "arithmetic_pairs", "finetuning_type": "lora", "lora_rank": 4},
    "dpo": {"stage": "dpo", "dataset": "arithmetic_pairs", "finetuning_type": "lora", "lora_rank": 4},
    "dpo orpo": {"stage": "dpo", "dataset": "arithmetic_pairs", "pref_loss": "orpo"},
    "kto": {"stage": "kto", "dataset": "arithmetic_kto", "finetuning_type": "lora", "lora_rank": 4},
}


def stage_config(base: Config, ground: Path, name: str) -> Config:
    """6 steps, 2 micro-batches each, no dropout."""
    still = {"model_name_or_path": str(ground / "still"), "gradient_accumulation_steps": 2, "max_steps": 6}
    return {**base, **still, "per_device_train_batch_size": 2, **STAGES[name]}


@pytest.mark.parametrize("name", [n for n in STAGES if n != "kto"])
def test_uniform_weights_are_the_plain_run(base: Config, ground: Path, tmp_path: Path, name: str) -> None:
    """Invariant 2 for every stage that has a loss per row."""
    config = stage_config(base, ground, name)
    weighted = {**config, "dataflex": {"weight": {"name": "loss", "strategy": "uniform"}}}
    close(*train_all(start(weighted, tmp_path / "uniform"), plain(config, tmp_path / "plain")))


ACTING = [(n, "running") for n in STAGES if n != "kto"] + [(n, "global") for n in ("pt", "dpo", "rm")]


@pytest.mark.parametrize(("name", "scope"), ACTING)
def test_all_three_act_and_resume(base: Config, ground: Path, tmp_path: Path, name: str, scope: str) -> None:
    """Selection by loss, a loss-reading mixer and weights in each stage; killed and resumed exactly."""
    block = {
        "select": {"name": "loss", "warmup": 1, "interval": 3},
        "mix": {"name": "odm", "warmup": 2, "interval": 2},
        "weight": {"name": "loss", "strategy": "extremes", "scope": scope},
    }
    config = {**stage_config(base, ground, name), "dataflex": block, "save_strategy": "steps", "save_steps": 3}
    idle = {**config, "dataflex": {"mix": {"name": "static"}}, "save_strategy": "no"}
    whole, killed, static = train_all(
        start(config, tmp_path / "whole", hooks=["record_ids"]),
        start(config, tmp_path / "killed", hooks=["kill_after:4"]),
        start(idle, tmp_path / "idle", hooks=["record_ids"]),
    )
    acted = [r["component"] for r in whole.ok.ledger()]
    assert acted == ["start", "select:loss", "mix:odm", "select:loss", "mix:odm"]
    assert whole.ids() != static.ok.ids()
    assert killed.status == [-9]
    if name == "rm":  # nothing saved is lost, and nothing starts over on top of it
        assert_refused(train(config, tmp_path / "killed"), "output_dir", "cannot resume a reward model")
        assert (killed.out / "checkpoint-3" / "dataflex" / "COMPLETE").is_file()
        return
    resumed = train(config, tmp_path / "killed", hooks=["record_ids"])
    assert resumed.ok.trace() == whole.trace()
    assert resumed.ledger() == whole.ledger()
    assert resumed.ids() == {s: i for s, i in whole.ids().items() if s >= 3}


SCALINGS: dict[str, tuple[Config, list[str]]] = {
    "mean over the micro-batch, as with a processor": ({}, ["no_loss_kwargs"]),
    "tokens of each rank by themselves": ({"average_tokens_across_devices": False}, []),
    "bf16": ({"bf16": True}, []),
    "mixture of experts with its auxiliary loss": ({"moe_aux_loss_coef": 0.1}, []),
    "packed rows of one length, last batch short": ({"per_device_train_batch_size": 7, "max_steps": 20}, []),
}


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("ranks", [1, 2])
def test_uniform_weights_follow_every_scaling(
    base: Config, ground: Path, tmp_path: Path, scaling: str, ranks: int
) -> None:
    """Invariant 2 where LLaMA-Factory divides the loss by something else, or adds to it."""
    changes, hooks = SCALINGS[scaling]
    config = {**stage_config(base, ground, "pt"), "stage": "sft", "dataset": "code,docs", **changes}
    if "moe_aux_loss_coef" in changes:
        config["model_name_or_path"] = str(mixture_of_experts(ground, tmp_path))
    weighted = {**config, "dataflex": {"weight": {"name": "loss", "strategy": "uniform"}}}
    ours, stock = train_all(
        start(weighted, tmp_path / "uniform", ranks=ranks, hooks=hooks),
        plain(config, tmp_path / "plain", ranks=ranks, hooks=hooks),
    )
    close(ours, stock)


def mixture_of_experts(ground: Path, path: Path) -> Path:
    """A tiny Qwen2-MoE model with the tokenizer of the other ones."""
    import torch
    from transformers import AutoTokenizer, Qwen2MoeConfig, Qwen2MoeForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(ground / "still")
    config = Qwen2MoeConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, moe_intermediate_size=32,
        shared_expert_intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        num_experts=4, num_experts_per_tok=2, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Qwen2MoeForCausalLM(config).save_pretrained(path / "moe")
    tokenizer.save_pretrained(path / "moe")
    return path / "moe"


def test_keys_of_other_stages_do_not_switch_weights_off(base: Config, ground: Path, tmp_path: Path) -> None:
    """LLaMA-Factory ignores label smoothing for preference losses; the weights act all the same."""
    config = {**stage_config(base, ground, "dpo"), "label_smoothing_factor": 0.1}
    run = train({**config, "dataflex": {"weight": {"name": "loss", "strategy": "extremes"}}}, tmp_path / "run")
    assert any(values.get("dataflex/weight/max", 1) > 1.01 for values in run.ok.scalars().values())


def test_secrets_are_not_written_down(base: Config, tmp_path: Path) -> None:
    config = {**base, "hf_hub_token": "hf_secret", "max_steps": 1, "dataflex": {"mix": {"name": "static"}}}
    run = train(config, tmp_path / "run")
    written = (run.ok.out / "dataflex" / "config.yaml").read_text()
    assert "hf_hub_token" in written and "hf_secret" not in written


def test_a_loss_per_batch_can_still_be_mixed(base: Config, tmp_path: Path) -> None:
    """A kernel that never shows the logits gives no loss per row: fixed proportions do not need one, and exposure says so."""
    import pyarrow.parquet as pq

    config = {**base, "dataflex": {"mix": {"name": "static"}}}
    run = train(config, tmp_path / "run", hooks=["record_ids", "no_row_losses"])
    exposure = pq.read_table(run.ok.out / "dataflex" / "exposure.parquet").to_pydict()
    assert set(exposure["last_loss"]) == {None}
    assert not any(k.startswith("dataflex/loss/") for k in scalars_of(run))


def test_exposure_is_what_was_served(base: Config, tmp_path: Path) -> None:
    """180 rows, 60 steps of 4 on 2 ranks: counts and last steps of every row, and a loss for each."""
    import pyarrow.parquet as pq

    config = {**base, "per_device_train_batch_size": 2, "max_steps": 60, "dataflex": {"mix": {"name": "static"}}}
    run = train(config, tmp_path / "run", ranks=2, hooks=["record_ids"])
    seen: dict[int, tuple[int, int]] = {}
    for step, ids in run.ok.ids().items():
        for i in ids:
            seen[i] = (seen.get(i, (0, 0))[0] + 1, step + 1)
    table = pq.read_table(run.out / "dataflex" / "exposure.parquet").to_pydict()
    rows = zip(table["times_seen"], table["last_step"], strict=True)
    assert dict(zip(table["sample_id"], rows, strict=True)) == seen
    assert sum(count for count, _ in seen.values()) == 240
    assert table["domain"] == ["code"] * 60 + ["docs"] * 60 + ["arithmetic"] * 60
    assert all(0 < loss < 20 for loss in table["last_loss"])


def test_keep_ratio_with_a_mixer_counts_scored_rows(base: Config, tmp_path: Path) -> None:
    """Each domain keeps half of the rows that have a loss; only those are drawn from then on."""
    block = {"select": {"name": "loss", "warmup": 2, "interval": 20}, "mix": {"name": "static"}}
    run = train({**base, "dataflex": block}, tmp_path / "run", hooks=["record_ids", "nan_rows:0,1,2,3,60"])
    assert run.ok.ledger()[1]["decided"]["rows"] == [28, 30, 30]


def test_kto_is_selected_and_mixed_without_losses(base: Config, ground: Path, tmp_path: Path) -> None:
    block = {"select": {"name": "random", "interval": 3}, "mix": {"name": "random", "interval": 2}}
    run = train({**stage_config(base, ground, "kto"), "dataflex": block}, tmp_path / "run", hooks=["record_ids"])
    assert [r["component"] for r in run.ok.ledger()][1:] == ["select:random", "mix:random"] * 1 + [
        "mix:random",
        "select:random",
        "mix:random",
    ]


def test_held_out_rows_never_train(base: Config, tmp_path: Path) -> None:
    """val_size splits each domain before tokenization; what is evaluated is not in the pool, and all of it is used."""
    config = {
        **base,
        "val_size": 0.2,
        "eval_strategy": "steps",
        "eval_steps": 6,
        "dataflex": {"mix": {"name": "static"}},
    }
    run = train(config, tmp_path / "run", hooks=["dump_rows"])
    rows = json.loads((run.ok.out / "rows.json").read_text())
    trained, held = ({tuple(r) for r in rows[k]} for k in ("train", "eval"))
    assert len(rows["train"]) == 3 * 48 and len(rows["eval"]) == 3 * 12
    assert not trained & held
    assert rows["domains"] == [48, 48, 48]
    assert any("eval_loss" in r for r in json.loads((run.out / "trainer_state.json").read_text())["log_history"])


def test_held_out_rows_by_domain(base: Config, tmp_path: Path) -> None:
    config = {**base, "val_size": 5, "eval_on_each_dataset": True, "eval_strategy": "steps", "eval_steps": 12}
    run = train({**config, "dataflex": {"mix": {"name": "static"}}}, tmp_path / "run")
    logged = json.loads((run.ok.out / "trainer_state.json").read_text())["log_history"]
    assert {k for r in logged for k in r if k.startswith("eval_") and k.endswith("_loss")} == {
        "eval_code_loss",
        "eval_docs_loss",
        "eval_arithmetic_loss",
    }


@pytest.mark.parametrize("packing", ["packing", "neat_packing"])
def test_packs_do_not_cross_domains(base: Config, tmp_path: Path, packing: str) -> None:
    """Each pack is made of rows of its own domain: packing a domain alone gives the same packs."""
    both = {**base, packing: True, "cutoff_len": 256, "dataflex": {"mix": {"name": "static"}}}
    together, code, arithmetic = train_all(
        start({**both, "dataset": "code,arithmetic"}, tmp_path / "both", hooks=["dump_rows"]),
        start({**both, "dataset": "code"}, tmp_path / "code", hooks=["dump_rows"]),
        start({**both, "dataset": "arithmetic"}, tmp_path / "arithmetic", hooks=["dump_rows"]),
    )
    packs = [json.loads((r.ok.out / "rows.json").read_text())["train"] for r in (together, code, arithmetic)]
    assert packs[0] == packs[1] + packs[2]


def test_tokenized_once_and_read_back(base: Config, tmp_path: Path) -> None:
    """tokenized_path: the second run reads the first one's rows, and refuses them under another template."""
    config = {
        **base,
        "tokenized_path": str(tmp_path / "tokens"),
        "val_size": 0.1,
        "dataflex": {"mix": {"name": "odm", "interval": 4}},
    }
    first = train(config, tmp_path / "1", hooks=["record_ids"])
    second = train(config, tmp_path / "2", hooks=["record_ids", "no_tokenization"])
    assert second.ok.ids() == first.ok.ids()
    assert second.trace() == first.trace()
    other = train({**config, "cutoff_len": 32}, tmp_path / "3")
    assert other.status == [2]
    assert "tokenized_path" in other.log and "cutoff_len" in other.log


def test_rows_without_trainable_tokens_are_never_selected(base: Config, ground: Path, tmp_path: Path) -> None:
    """A row whose answer is cut away has no loss; it is counted, and its score is empty in the file."""
    import pyarrow.parquet as pq

    data = tmp_path / "data"
    data.mkdir()
    lines = [{"instruction": "add", "input": "", "output": str(i)} for i in range(30)]
    lines += [{"instruction": "long " * 200, "input": "", "output": ""} for _ in range(3)]
    (data / "mixed.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    columns = {"prompt": "instruction", "query": "input", "response": "output"}
    (data / "dataset_info.json").write_text(json.dumps({"mixed": {"file_name": "mixed.jsonl", "columns": columns}}))
    config = {**base, "dataset_dir": str(data), "dataset": "mixed", "max_steps": 8}
    block = {"select": {"name": "loss", "warmup": 1, "interval": 7}}
    run = train(
        {**config, "dataflex": block}, tmp_path / "run", hooks=["mask_rows:30,31,32", "nan_rows:4,5", "record_ids"]
    )
    table = pq.read_table(run.ok.out / "dataflex" / "selections" / "step_1.parquet").to_pydict()
    unscored = [i for i, score in zip(table["sample_id"], table["score"], strict=True) if score is None]
    assert unscored == [4, 5, 30, 31, 32]
    assert not any(table["selected"][i] for i in unscored)
    assert sum(table["selected"]) == 28
    assert run.ledger()[1]["from"]["without_score"] == 5
    assert not {i for step, ids in run.ids().items() if step >= 1 for i in ids} & set(unscored)
    assert run.scalars()[2]["dataflex/selection/without_score"] == 5


def test_a_budget_above_the_scored_rows_is_one_clear_line(base: Config, tmp_path: Path) -> None:
    """44 steps x 4 rows of 180 fit the pool, but not once ten rows have no finite loss."""
    config = {**base, "max_steps": 45, "save_strategy": "steps", "save_steps": 1}
    config["dataflex"] = {"select": {"name": "loss", "warmup": 1, "interval": 44}}
    run = train(config, tmp_path / "run", hooks=["nan_rows:0,1,2,3,4,5,6,7,8,9"])
    assert run.status == [1]
    assert "asked for 176 rows at step 1, but only 170 of the 180 rows have a finite loss" in run.log
    assert "Traceback" not in run.log
    assert (run.out / "checkpoint-1" / "dataflex" / "COMPLETE").is_file()


def scalars_of(run: Result) -> set[str]:
    return {name for values in run.ok.scalars().values() for name in values}


def test_scalars_reach_the_log(base: Config, tmp_path: Path) -> None:
    block = {
        "select": {"name": "loss", "warmup": 2, "interval": 4},
        "mix": {"name": "odm", "warmup": 1, "interval": 3},
        "weight": {"name": "loss"},
    }
    run = train({**base, "dataflex": block}, tmp_path / "run")
    names = scalars_of(run)
    for domain in ("code", "docs", "arithmetic"):
        assert {f"dataflex/{kind}/{domain}" for kind in ("proportion", "realized", "loss")} <= names
    assert {"dataflex/selection/rows", "dataflex/weight/min", "dataflex/weight/effective_share"} <= names
    written = [json.loads(line) for line in (run.out / "trainer_log.jsonl").read_text().splitlines()]
    assert names <= {key for record in written for key in record}
    for values in run.scalars().values():
        assert sum(v for k, v in values.items() if k.startswith("dataflex/realized/")) == pytest.approx(1)
