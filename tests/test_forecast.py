"""`plan`: what it foretells is what a run then does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import pytest
import yaml
from commands import command
from harness import train

from dataflex.base.checks.arguments import ImportedKeys, check_arguments, load_checked
from dataflex.cli import main
from dataflex.config.llamafactory import source
from dataflex.config.llamafactory.source import SourceKeys
from dataflex.config.load import load, parse
from dataflex.errors import ConfigError
from dataflex.forecast.advice import advice
from dataflex.forecast.data import Sizes
from dataflex.forecast.run import Forecast
from dataflex.reading.stored import texts_of

Config = dict[str, Any]
SELECT: Config = {"select": {"name": "loss", "warmup": 2, "interval": 3, "focus": "high"}}
BOTH: Config = {
    "select": {"name": "loss", "warmup": 1, "interval": 5, "updates": 2, "focus": "high"},
    "mix": {"name": "odm", "warmup": 2, "interval": 4},
    "weight": {"name": "loss", "warmup": 3, "until": 9},
}


def forecast(config: Config, ranks: int | None = None) -> Forecast:
    return Forecast(parse(dict(config)), config.get("dataflex") or {}, ranks)


def lines(config: Config) -> str:
    return "\n".join(advice(forecast(config)))


def ledger(out: Path) -> list[Config]:
    return [json.loads(line) for line in (out / "dataflex" / "ledger.jsonl").read_text().splitlines()]


def test_defaults_are_what_happens(base: Config, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(yaml.safe_dump({**base, "output_dir": str(tmp_path / "out"), "dataflex": BOTH}))
    ended = command("plan", str(file), "dataflex.mix.alpha=0.7", "dataflex.mix.reward=averaged", COLUMNS="150")
    assert ended.returncode == 0, ended.stderr
    words = dict(re.findall(r"^(dataflex\.\S+) +(.*?) *$", ended.stdout, re.M))
    assert words["dataflex.weight.r_schedule"] == "`r` at every step" and "dataflex.mix.alpha" not in words
    assert words["dataflex.mix.reward_scale"] == "0.1 for `authors`, 15 for the others"
    assert words["dataflex.select.temperature"] == "1.0"
    assert not re.search(r"None|True|False|\(\S+, ", ended.stdout), "values are those of a file"
    told = forecast(yaml.safe_load(file.read_text())).defaults
    assert all(yaml.safe_load(words[name]) == told[name] for name in told if isinstance(told[name], bool | float | int))


@pytest.mark.parametrize("block", [SELECT, BOTH], ids=["select", "all"])
def test_a_run_acts_when_it_is_foretold(base: Config, tmp_path: Path, block: Config) -> None:
    config = {**base, "max_steps": -1, "num_train_epochs": 0.35, "dataflex": block}
    told = forecast({**config, "output_dir": str(tmp_path)})
    train(config, tmp_path).ok  # noqa: B018
    log = [json.loads(line) for line in (tmp_path / "trainer_log.jsonl").read_text().splitlines()]
    assert told.steps == log[-1]["total_steps"] == log[-1]["current_steps"]
    decided = ledger(tmp_path)
    for act in told.timeline:
        steps = [line["step"] for line in decided if line["component"] == f"{act.slot}:{act.name}"]
        if act.slot == "weight":
            assert act.words == f"weighs steps 3 to {min(9, told.steps)}"
        else:
            assert (act.times, list(act.steps)) == (len(steps), steps[:5])
    record = yaml.safe_load((tmp_path / "dataflex" / "config.yaml").read_text())
    assert {found.name: found.rows for found in told.data} == {n: d["rows"] for n, d in record["domains"].items()}
    (measured,) = told.passes
    selections = [line for line in decided if line["component"] == "select:loss"]
    assert (measured.times, measured.rows) == (len(selections), selections[0]["from"]["rows"])
    assert told.tokens is not None and measured.effort == pytest.approx(measured.times * (measured.tokens or 0))


def test_ranks_count(base: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {**base, "gradient_accumulation_steps": 3, "output_dir": "out", "dataflex": SELECT}
    assert forecast(config).global_batch == 12 and forecast(config, 4).global_batch == 48
    monkeypatch.setenv("NPROC_PER_NODE", "2")
    monkeypatch.setenv("NNODES", "3")
    assert forecast(config).ranks == 6
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert forecast(config).ranks == 4


def test_tokens_are_those_of_the_tokenizer(base: Config, ground: Path) -> None:
    from tokenizers import Tokenizer

    count = Tokenizer.from_file(str(ground / "model" / "tokenizer.json"))
    info = json.loads((ground / "data" / "dataset_info.json").read_text())
    for name in ("code", "docs", "arithmetic"):
        rows = [json.loads(line) for line in (ground / "data" / info[name]["file_name"]).read_text().splitlines()]
        found = Sizes({**base, "cutoff_len": 100_000}).of(name)
        whole = Sizes({**base, "cutoff_len": 10}).of(name)
        lengths = [
            [len(count.encode(t, add_special_tokens=False).ids) for t in texts_of(row, info[name])] for row in rows
        ]
        assert found.rows == found.stored == len(rows)
        assert found.tokens == pytest.approx(sum(map(sum, lengths)) / len(rows))
        assert found.learned == pytest.approx(sum(answer for _, answer in lengths) / len(rows))
        assert whole.tokens == pytest.approx(sum(min(10, sum(both)) for both in lengths) / len(rows))
    assert Sizes({**base, "max_samples": 7}).of("code").rows == 7
    assert Sizes(base).of("elsewhere").rows is None


@pytest.mark.parametrize(
    "row, entry, texts",
    [
        ({"instruction": "a", "input": "b", "output": "c"}, {}, ("a\nb", "c")),
        ({"q": "a", "r": "c", "note": "x"}, {"columns": {"prompt": "q", "response": "r"}}, ("a", "c")),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "c"}]},
            {"formatting": "sharegpt"},
            ("a\nc", "b"),
        ),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            {"columns": {"messages": "messages"}, "tags": {"role_tag": "role", "content_tag": "content"}},
            ("a", "b"),
        ),
    ],
)  # fmt: skip
def test_what_is_asked_and_what_is_answered(row: Config, entry: Config, texts: tuple[str, str]) -> None:
    assert texts_of(row, entry) == texts


def test_formats_of_files(base: Config, tmp_path: Path) -> None:
    import pandas as pd

    rows = [{"instruction": f"question {i}", "output": "answer"} for i in range(37)]
    frame = pd.DataFrame(rows)
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, rows)))  # no newline at the end
    frame.to_parquet(tmp_path / "c.parquet")
    frame.to_csv(tmp_path / "d.csv", index=False)
    files = ("a.json", "b.jsonl", "c.parquet", "d.csv")
    (tmp_path / "dataset_info.json").write_text(json.dumps({file[0]: {"file_name": file} for file in files}))
    sizes = Sizes({**base, "dataset_dir": str(tmp_path)})
    assert [sizes.of(file[0]).rows for file in files] == [37] * 4
    assert len({sizes.of(name).tokens for name in "abc"}) == 1


def test_advice(base: Config, ground: Path) -> None:
    config = {**base, "output_dir": "out"}
    mixed = {"mix": {"name": "static", "proportions": {"code": 0.9, "docs": 0.05, "arithmetic": 0.05}}}
    assert "code will be repeated about 9 times" in lines({**config, "max_steps": 150, "dataflex": mixed})
    assert "repeated" not in lines({**config, "max_steps": 12, "dataflex": mixed})
    aimed = {"select": {"name": "rds", "target_dataset": "code_heldout", "interval": 4}}
    assert "max_samples also cuts the target code_heldout, to 4 of 10 rows" in lines(
        {**config, "max_samples": 4, "dataflex": aimed}
    )
    assert "cuts the target" not in lines({**config, "dataflex": aimed})
    doremi = {"mix": {"name": "doremi", "reference_model_path": str(ground / "model")}}
    assert "is the model itself" in lines({**config, "dataflex": doremi})
    late = {"select": {"name": "random", "warmup": 8, "interval": 2}}
    assert "select: random acts for the first time at step 8 of 12" in lines({**config, "dataflex": late})
    never = {"select": {"name": "random", "warmup": 20, "interval": 2}}
    assert "select: random never acts in 12 steps" in lines({**config, "dataflex": never})
    most = {"select": {"name": "random", "interval": 44}}
    assert "each selection takes 176 of 180 rows" in lines({**config, "max_steps": 100, "dataflex": most})
    assert "measuring takes about" in lines({**config, "dataflex": {"select": {"name": "loss", "interval": 1}}})
    assert "nothing is held out" in lines({**config, "dataflex": SELECT})
    held = {**config, "val_size": 0.1, "dataflex": SELECT}
    assert "nothing is held out" not in lines(held) and "the held-out rows are never evaluated" in lines(held)
    for evaluated in ({"do_eval": True}, {"eval_strategy": "steps", "eval_steps": 4}):
        assert "never evaluated" not in lines({**held, **evaluated})
    other = {**config, "eval_dataset": "code_heldout", "do_eval": True}
    assert "code_heldout is the target and is held out too" in lines({**other, "dataflex": aimed})
    assert "held out too" not in lines({**other, "eval_dataset": "docs_heldout", "dataflex": aimed})
    odm = {"mix": {"name": "odm", "warmup": 3, "interval": 3}}
    assert "mix odm learns nothing in this run: with 3 data sets its first 3 decisions" in lines(
        {**config, "dataflex": odm}
    )
    assert "learns nothing" not in lines({**config, "max_steps": 13, "dataflex": odm})
    both = {**odm, "select": {"name": "random", "interval": 4, "keep_ratio": 0.25}}
    assert "select keeps 25 % of the rows of each domain" in lines({**config, "dataflex": both})


def test_the_command(base: Config, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({**base, "output_dir": str(tmp_path / "out"), "dataflex": BOTH}))
    told = command("plan", str(file), "max_steps=20", "--json")
    assert told.returncode == 0, told.stderr
    record = json.loads(told.stdout)
    assert record["steps"] == 20 and [act["slot"] for act in record["timeline"]] == ["select", "mix", "weight"]
    assert record["defaults"]["dataflex.mix.reward"] == "authors" and "dataflex.select.focus" not in record["defaults"]
    shown = command("plan", str(file))
    assert all(
        word in shown.stdout for word in ("What acts when", "What is measured", "before step 1, 6", "tokens a row")
    )
    assert not (tmp_path / "out").exists()
    wrong = {"select": {"name": "loss", "interval": -1}, "mix": {"name": "odm", "unit": "row", "interval": 2}}
    file.write_text(yaml.safe_dump({**base, "output_dir": "out", "dataflex": wrong}))
    refused = command("plan", str(file))
    assert refused.returncode == 2 and refused.stderr.count("dataflex: error: ") == 2, refused.stderr
    assert "dataflex.select.interval" in refused.stderr and "dataflex.mix.unit" in refused.stderr
    assert command("plan", str(file), "--ranks", "0").returncode == 2


def test_no_model_and_no_torch(base: Config, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({**base, "output_dir": str(tmp_path / "out"), "dataflex": BOTH}))
    code = (
        "import sys; from dataflex.cli import main; main(sys.argv[1:]);"
        " sys.exit(any(m in sys.modules for m in ('torch', 'transformers')))"
    )
    found = subprocess.run([sys.executable, "-c", code, "plan", str(file)], capture_output=True, text=True, timeout=120)
    assert found.returncode == 0 and "optimizer steps" in found.stdout, found.stderr


# -- LLaMA-Factory's keys --------------------------------------------------------------------------------------------

MISTAKES: list[tuple[str, Any, str]] = [
    ("learning_rat", 1e-4, "unknown key; did you mean 'learning_rate'?"),
    ("per_device_train_batchsize", 4, "unknown key; did you mean 'per_device_train_batch_size'?"),
    ("lora_rnk", 8, "unknown key; did you mean 'lora_rank'?"),
    ("datset_dir", "data", "unknown key; did you mean 'dataset_dir'?"),
    ("learning_rate", "fast", "must be a number, got 'fast'"),
    ("gradient_accumulation_steps", 2.5, "must be an integer"),
    ("lora_rank", "eight", "must be a number, got 'eight'"),
    ("bf16", "maybe", "must be true or false"),
    ("logging_steps", [1], "must be"),
    ("run_name", {"a": 1}, "must be"),
    ("finetuning_type", "lorra", "is not a choice; did you mean 'lora'?"),
    ("lr_scheduler_type", "cosin", "is not a choice; did you mean 'cosine'?"),
    ("optim", "adamw", "is not a choice"),
    ("save_strategy", "step", "is not a choice; did you mean 'steps'?"),
    ("flash_attn", "f2a", "is not a choice; did you mean 'fa"),
    ("quantization_method", "bnbb", "is not a choice; did you mean 'bnb'?"),
    ("template", "qwenn", "unknown template 'qwenn'; did you mean 'qwen'?"),
    ("report_to", "wandbb", "unknown tracker 'wandbb'; did you mean 'wandb'?"),
    ("log_level", "warn", "is not a choice; did you mean 'warning'?"),
    ("adam_beta2", 1.5, "must be below 1"),
    ("warmup_ratio", -0.1, "must be at least 0"),
    ("cutoff_len", 0, "must be at least 1"),
    ("accelerator_config", {"split_batch": True}, "split_batch: unknown key; did you mean 'split_batches'?"),
    ("dataset", "code,docz", "'docz' is not defined in"),
]


def test_the_source_says_what_the_packages_say() -> None:
    """Every key, type and choice; the classes of choices are others, with the same members."""
    imported, read = ImportedKeys(), SourceKeys()
    assert list(read.types) == list(imported.types) and len(read.types) > 300
    for key, hint in imported.types.items():
        assert described(read.types[key]) == described(hint), key
    for name in ("templates", "log_levels", "trackers", "accelerator"):
        assert list(getattr(read, name)) == list(getattr(imported, name)) or name == "templates"
    assert set(read.templates) == set(imported.templates)


def described(hint: Any) -> Any:
    """A type by the names of its parts."""
    if get_args(hint):
        origin = get_origin(hint)
        return "union" if origin in (Union, UnionType) else origin, [described(part) for part in get_args(hint)]
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint.__name__, [member.value for member in hint]
    return hint.__name__ if isinstance(hint, type) else hint


@pytest.mark.parametrize("key, value, said", MISTAKES, ids=[key for key, _, _ in MISTAKES])
def test_a_mistake_is_named_as_train_names_it(base: Config, tmp_path: Path, key: str, value: Any, said: str) -> None:
    """By the same line, whether the packages are imported or only read."""
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({**base, "output_dir": str(tmp_path / "out"), "dataflex": SELECT, key: value}))
    found = []
    for known in (ImportedKeys(), SourceKeys()):
        with pytest.raises(ConfigError) as error:
            check_arguments(load_checked(load, [str(file)], known=known), known=known)
        found.append(str(error.value).splitlines())
    assert found[0] == found[1] and len(found[0]) == 1
    assert found[0][0].startswith(key) and said in found[0][0]


@pytest.mark.slow
def test_all_mistakes_at_once_with_ours(base: Config, tmp_path: Path) -> None:
    wrong: Config = {key: value for key, value, _ in MISTAKES}
    block = {"select": {"name": "los", "interval": -1}, "mix": {"name": "odm", "unit": "row", "interval": 2}}
    config = {**base, **wrong, "dataflex": block}
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({**config, "output_dir": str(tmp_path / "out")}))
    told, refused = command("plan", str(file)), train(config, tmp_path / "run")
    assert told.returncode == 2 and refused.status == [2]
    lines = [line for line in told.stderr.splitlines() if line.startswith("dataflex: error: ")]
    by_train = [line for line in refused.log.splitlines() if line.startswith("dataflex: error: ")]
    assert lines == by_train and len(lines) > len(MISTAKES)
    for key, _, _ in MISTAKES:
        assert any(line.startswith(f"dataflex: error: {key}") for line in lines), key
    assert any("dataflex.select" in line for line in lines) and any("dataflex.mix.unit" in line for line in lines)


def test_a_source_that_cannot_be_read_is_said(
    base: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rest of the forecast is there, and a mistake of ours is still one line."""
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({**base, "output_dir": str(tmp_path / "out"), "dataflex": SELECT}))
    plain = tmp_path / "plain.yaml"
    plain.write_text(yaml.safe_dump({**base, "output_dir": str(tmp_path / "out")}))
    monkeypatch.setenv("USE_MCA", "1")
    assert main(["plan", str(plain)]) == 0
    assert "LLaMA-Factory's keys are not checked here, but by train: with USE_MCA" in capsys.readouterr().out
    monkeypatch.delenv("USE_MCA")
    monkeypatch.setattr(source, "_KEYS", (("llamafactory.hparams.nowhere", "ModelArguments"),))
    assert main(["plan", str(file)]) == 0
    assert "llamafactory.hparams.nowhere cannot be read" in capsys.readouterr().out.replace("\n", " ")
    assert main(["plan", str(file), "dataflex.select.interval=-1"]) == 2
    assert "dataflex.select.interval" in capsys.readouterr().err


@pytest.mark.slow
def test_prices(base: Config, tmp_path: Path) -> None:
    """Every component is priced, and nothing is left in the folders of the run or of temporary files."""
    block = {**BOTH, "select": {"name": "loss", "interval": 3, "focus": "high"}}
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({**base, "output_dir": str(tmp_path / "out"), "dataflex": block}))
    told = command("plan", str(file), "--measure", "4", "--json")
    assert told.returncode == 0, told.stderr
    prices = json.loads(told.stdout)["prices"]
    assert [price["name"] for price in prices["prices"]] == ["training", "select loss", "mix odm"]
    assert [price["times"] for price in prices["prices"]] == [12, 4, 3]
    assert all(price["seconds"] >= 0 for price in prices["prices"]) and not (tmp_path / "out").exists()
    assert prices["seconds"] == pytest.approx(sum(price["total"] for price in prices["prices"]))
