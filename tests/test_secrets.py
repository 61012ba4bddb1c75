"""Nothing that is written down, or sent to a tracker, holds a secret; what needs one still gets it."""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from harness import Run

from dataflex.errors import ConfigError
from dataflex.masking import INNOCENT, MASK, filled, is_secret, masked, to_environment

Config = dict[str, Any]

# Of all arguments of LLaMA-Factory and transformers, those that are secret.
SECRET = {
    "hf_hub_token", "ms_hub_token", "om_hub_token", "hub_token", "push_to_hub_token", "swanlab_api_key",
    "swanlab_lark_webhook_url", "swanlab_lark_secret", "ray_init_kwargs",
}  # fmt: skip
HOLDS = ("token", "key", "secret", "passw", "pwd", "webhook", "credential")


def arguments() -> Config:
    """Every argument with a value of a type that it may have: text, if that is one."""
    from llamafactory.hparams import RayArguments
    from llamafactory.hparams.parser import _TRAIN_ARGS

    every = [f for kind in (*_TRAIN_ARGS, RayArguments) for f in fields(kind)]
    return {f.name: "value" if "str" in str(f.type) or "Literal" in str(f.type) else 1 for f in every}


def test_every_argument_that_is_secret_is_masked() -> None:
    """And no other: an argument with such a word in its name is in one of the lists, or has no text for its value."""
    given = arguments()
    found = {name for name, value in masked(given).items() if value == MASK}
    assert found == SECRET & set(given) and len(found) >= 8
    unclear = {name for name in given if any(word in name for word in HOLDS)} - found - INNOCENT
    assert unclear == {
        "average_tokens_across_devices", "ignore_pad_token_for_loss", "include_effective_tokens_per_second",
        "max_new_tokens", "tokenized_path", "use_fast_tokenizer",
    }  # fmt: skip
    numbers = {"max_new_tokens": 512, "ignore_pad_token_for_loss": True, "include_effective_tokens_per_second": False}
    assert masked(numbers) == numbers


@pytest.mark.parametrize(
    "key",
    ["api_key", "apikey", "OPENAI_API_KEY", "accessToken", "auth-token", "password", "db_password", "aws_secret_access_key",
     "webhook", "slackWebhook", "credentials", "passphrase", "client_secret", "hf_tokens"],
)  # fmt: skip
def test_keys_that_say_they_are_secret(key: str) -> None:
    assert is_secret(key)
    nested = {"dataflex": {"select": {"name": "mine:Judge", key: "geheim", "servers": [{key: ["geheim", "more"]}]}}}
    assert "geheim" not in json.dumps(masked(nested)) and "mine:Judge" in json.dumps(masked(nested))
    assert masked({key: {"user": "ann", "value": "geheim"}}) == {key: {"user": MASK, "value": MASK}}


@pytest.mark.parametrize(
    "config",
    [
        {"tokenized_path": "saved/rows", "unit": "tokens", "max_new_tokens": 5, "scoring_tokens": 4096, "key_map": 3},
        {"name": "token_length", "tokenizer": "bpe", "monkeys": 2, "keyboard": "yes", "passes": "two", "keep": "all"},
        {"hub_token": None, "api_key": "", "use_auth_token": False, "add_tokens": "<a>,<b>", "eos_token": "</s>"},
        {
            "proportions": {"keyboards": 0.5, "secretaries": 0.5},
            "url": "https://host/path?page=2",
            "repo": "git+ssh://git@host/x",
        },
        {"mail": "someone@example.org"},
    ],
)
def test_what_holds_such_a_word_and_no_secret(config: Config) -> None:
    assert masked(config) == config


@pytest.mark.parametrize(
    "text, shown",
    [
        ("https://ann:geheim@host/data", "https://*****@host/data"),
        ("https://geheim@host", "https://*****@host"),
        ("postgresql+psycopg://u:geheim@h:5/x", "postgresql+psycopg://*****@h:5/x"),
        ("https://host/x?page=2&access_token=geheim&z=1", "https://host/x?page=2&access_token=*****&z=1"),
        ("a: hf_geheimgeheimgeheimgeheim b", "a: ***** b"),
    ],
)
def test_secrets_in_text(text: str, shown: str) -> None:
    assert masked({"dataset_dir": text}) == {"dataset_dir": shown}
    assert masked({"list": [text]}) == {"list": [shown]}


def test_what_is_masked_is_filled_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {
        "hub_token": "geheim: 'x'", "ray_init_kwargs": {"num_cpus": 2, "env": [{"A": "b"}]}, "steps": 3,
        "dataset_dir": "https://u:geheim@host", "dataflex": {"select": {"password": 123456}},
    }  # fmt: skip
    shown = masked(config)
    assert "geheim" not in json.dumps(shown) and "123456" not in json.dumps(shown) and shown["steps"] == 3
    with pytest.raises(ConfigError, match=r"^hub_token: \*\*\*\*\* stands for a secret that is not written down"):
        filled(shown)
    for name, value in to_environment(config).items():
        monkeypatch.setenv(name, value)
    assert filled(shown) == config
    assert to_environment({"steps": 3}) == {}


def hidden_in(folder: Path) -> list[str]:
    """Files below `folder` that hold the secret. Not training_args.bin, which is the Trainer's own pickle."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name not in ("training_args.bin", "given.yaml"))
    return [str(p.relative_to(folder)) for p in files if b"geheim" in p.read_bytes()]


def secrets(base: Config) -> Config:
    return {
        **base, "swanlab_lark_webhook_url": "https://host/geheim", "swanlab_api_key": "geheim", "hf_hub_token": "geheim",
        "push_to_hub": False, "hub_token": "geheim", "swanlab_lark_secret": "geheim",
    }  # fmt: skip


def test_no_file_of_a_run_holds_a_secret(base: Config, tmp_path: Path) -> None:
    """config.yaml, checkpoints with the identity of the run, the ledger, logs; a component's own key too."""
    block = {"select": {"name": "own_components:Judging", "api_key": "geheim", "interval": 2}}
    config = {**secrets(base), "dataflex": block, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    given = tmp_path / "given.yaml"
    given.write_text(yaml.safe_dump({**config, "output_dir": str(tmp_path / "run")}))
    hooks = ["own_component"]
    run = Run(["train", str(given)], tmp_path / "run", 1, hooks, {}).wait().ok
    assert not hidden_in(tmp_path)
    kept = yaml.safe_load((run.out / "dataflex" / "config.yaml").read_text())
    assert kept["llamafactory"]["swanlab_lark_webhook_url"] == MASK == kept["dataflex"]["select"]["api_key"]
    assert kept["llamafactory"]["learning_rate"] == 1e-3
    given.write_text(given.read_text().replace("api_key: geheim", "api_key: geheim2"))
    arguments = ["train", str(given), f"resume_from_checkpoint={run.out / 'checkpoint-2'}"]
    assert Run(arguments, run.out, 1, hooks, {}).wait().ok  # another key is no other run


def test_no_tracker_is_told_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """By our callback, and by LLaMA-Factory's."""
    from llamafactory.hparams import DataArguments, FinetuningArguments, GeneratingArguments, ModelArguments

    from dataflex.base.commands.callbacks import BlockReporter, reporter_callback

    told: list[Any] = []
    for name in ("wandb", "trackio", "swanlab"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(config=SimpleNamespace(update=told.append)))
    given = (
        ModelArguments(model_name_or_path="m", hf_hub_token="geheim"), DataArguments(dataset_dir="https://u:geheim@h"),
        FinetuningArguments(use_swanlab=True, swanlab_lark_webhook_url="https://h/geheim", swanlab_lark_secret="geheim"),
        GeneratingArguments(),
    )  # fmt: skip
    block = masked({"select": {"name": "mine:Judge", "api_key": "geheim"}})
    state, args = SimpleNamespace(is_world_process_zero=True), SimpleNamespace(report_to=["wandb", "trackio"])
    for callback in (reporter_callback()(*given), BlockReporter(block, True)):
        callback.on_train_begin(args, state, None)
    assert len(told) == 6 and "geheim" not in repr(told)
    assert (
        told[0]["finetuning_args"]["finetuning_type"] == "lora"
        and told[-1]["dataflex"]["select"]["name"] == "mine:Judge"
    )


@pytest.mark.slow
def test_doremi_writes_no_secret_and_its_steps_have_them(base: Config, tmp_path: Path) -> None:
    """The files of its steps are masked, a step gets the values all the same, and a new token is no new configuration."""
    config = {**secrets(base), "output_dir": str(tmp_path / "run"), "dataflex": {"total_steps": 2}}
    del config["max_steps"]
    given = tmp_path / "given.yaml"
    for token in ("geheim", "geheim2"):
        given.write_text(yaml.safe_dump({**config, "hub_token": token}))
        run = Run(["doremi", str(given)], tmp_path / "log", 1, [], {}).wait().ok
        assert not hidden_in(tmp_path)
        assert run.log.count("done before") == (0 if token == "geheim" else 3)
    step = tmp_path / "run" / "final.yaml"
    assert yaml.safe_load(step.read_text())["hub_token"] == MASK
    by_hand = Run(["train", str(step), f"output_dir={tmp_path / 'other'}"], tmp_path / "log", 1, [], {}).wait()
    assert by_hand.status == [2]
    assert "hf_hub_token: ***** stands for a secret that is not written down; give its value" in by_hand.log
    import torch

    kept = torch.load(tmp_path / "run" / "reference" / "training_args.bin", weights_only=False)
    assert kept.hub_token == "geheim"  # the step had it
