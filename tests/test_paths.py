"""`~` in a configuration: the same directory for every reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from checkpoint_files import assert_refused, checkpoint
from harness import Result, Run

from dataflex.base.commands.train import _refuse_to_restart
from dataflex.config import load
from dataflex.errors import ConfigError
from dataflex.values.paths import at_home

Config = dict[str, Any]


def test_a_value_that_begins_with_it_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/h")
    given = {
        "output_dir": "~/x", "dataset_dir": "data", "tokenized_path": "/a/~/b", "resume_from_checkpoint": True,
        "adapter_name_or_path": "~/a,~/b, ~/c", "eval_dataset": ["~/d", "e"], "default_system": "~/hello", "seed": 7,
        "deepspeed": "~/z3.json", "model_name_or_path": "~nobody-of-that-name/m",
        "dataflex": {"select": {"name": "rds", "store": "~/s"}, "offline": {"embeddings": "~"}},
    }  # fmt: skip
    assert at_home(given) == {
        **given, "output_dir": "/h/x", "adapter_name_or_path": "/h/a,/h/b, /h/c", "eval_dataset": ["/h/d", "e"],
        "deepspeed": "/h/z3.json",
        "dataflex": {"select": {"name": "rds", "store": "/h/s"}, "offline": {"embeddings": "/h"}},
    }  # fmt: skip


@pytest.mark.parametrize("how", ["file", "override", "flags"])
def test_however_a_key_is_given(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/h")
    file = tmp_path / "config.yaml"
    file.write_text("stage: sft\n" + ("output_dir: ~/x\n" if how == "file" else ""))
    arguments = {"file": [str(file)], "override": [str(file), "output_dir=~/x"], "flags": ["--output_dir", "~/x"]}
    assert load(arguments[how]).llamafactory["output_dir"] == "/h/x"


def test_in_presets_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/h")
    presets, file = tmp_path / "presets.yaml", tmp_path / "config.yaml"
    presets.write_text(yaml.safe_dump({"mixers": {"file": {"name": "file", "params": {"path": "~/x"}}}}))
    file.write_text(
        yaml.safe_dump(
            {
                "train_type": "dynamic_mix", "component_name": "file", "components_cfg_file": str(presets),
                "update_step": 2, "dataset": "a,b", "do_train": True,
            }
        )
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"dataflex\.mix\.path must be a file, and /h/x does not exist"):
        load([str(file)])


def test_a_reward_model_is_not_started_over_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    checkpoint(tmp_path / "rm", 8)
    keys = load(["--output_dir", "~/rm", "--stage", "rm"]).llamafactory
    with pytest.raises(ConfigError, match=f"output_dir: {tmp_path / 'rm'} holds checkpoints"):
        _refuse_to_restart(keys)


def test_a_run_and_a_selection_at_home(base: Config, tmp_path: Path) -> None:
    """Resumed with `true`, the run finds its checkpoint; held by another run, the directory is refused."""
    block = {"select": {"name": "loss", "warmup": 2, "interval": 4}}
    config = {**base, "output_dir": "~/run", "save_strategy": "steps", "save_steps": 3, "dataflex": block}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    home = {"HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf")}

    def command(*arguments: str, hooks: tuple[str, ...] = ()) -> Result:
        return Run([*arguments], tmp_path / "run", 1, hooks, home).wait()

    assert command("train", str(file), hooks=("kill_after:4",)).status == [-9]
    resumed = command("train", str(file), "resume_from_checkpoint=true", hooks=("record_ids",))
    assert min(resumed.ok.ids()) == 3
    selection = tmp_path / "select.yaml"
    selection.write_text(
        yaml.safe_dump({**base, "output_dir": "~/chosen", "dataflex": {**block, "offline": {"budget": 10}}})
    )
    assert command("select", str(selection)).ok
    assert (tmp_path / "chosen" / "dataset_info.json").is_file()
    assert not (Path.cwd() / "~").exists()
    assert_refused(command("train", str(file), "output_dir=~/none", "resume_from_checkpoint=true"), "no complete")
