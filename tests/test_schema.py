"""`dataflex-cli schema`: every example validates, what the command would refuse as a key or a type does not."""

from __future__ import annotations

import json
from functools import cache
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from dataflex.base.commands.schema import schema
from dataflex.cli.parsing import parser_of
from dataflex.cli.tree import COMMANDS
from dataflex.components import registry
from dataflex.components.registry import FAMILIES, names
from dataflex.config.json_schema import Command
from dataflex.config.schema import SLOT_KEYS, own_keys

ROOT = Path(__file__).parents[1]
FILES = [path for folder in ("demo", "real") for path in sorted((ROOT / "examples" / folder).glob("*.yaml"))]
EXAMPLES = [path for path in FILES if path.stem != "compare"]  # which is a grid, and no file of these commands


def main(arguments: list[str]) -> int:
    command = COMMANDS["schema"]
    return command.load().run(parser_of(command), arguments)


@cache
def validator(command: Command = "train") -> Draft202012Validator:
    found = schema(command)
    Draft202012Validator.check_schema(found)
    return Draft202012Validator(found)


def command_of(raw: dict[str, Any]) -> Command:
    block = raw.get("dataflex") or {}
    if "evaluate" in raw:
        return "evaluate"
    return "select" if "offline" in block else "doremi" if "doremi" in block else "train"


def good(**changes: Any) -> dict[str, Any]:
    raw = yaml.safe_load((ROOT / "examples" / "demo" / "all_three.yaml").read_text())
    return {**raw, **changes}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_example_validates(path: Path) -> None:
    raw = yaml.safe_load(path.read_text())
    assert [error.message[:300] for error in validator(command_of(raw)).iter_errors(raw)] == []


def test_there_is_an_example_of_each_command() -> None:
    assert {command_of(yaml.safe_load(path.read_text())) for path in EXAMPLES} == {
        "train",
        "select",
        "doremi",
        "evaluate",
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rat": 1e-4},
        {"per_device_train_batch_size": "two"},
        {"per_device_train_batch_size": 0},
        {"do_train": 3},
        {"lr_scheduler_type": "cosin"},
        {"dataset": {"a": 1}},
        {"dataflex": {"selct": "loss"}},
        {"dataflex": {"select": "los"}},
        {"dataflex": {"select": {"interval": 5}}},
        {"dataflex": {"select": {"name": "loss", "intervall": 5}}},
        {"dataflex": {"select": {"name": "loss", "interval": 0}}},
        {"dataflex": {"select": {"name": "loss", "interval": 5, "gamma": 2.0}}},
        {"dataflex": {"select": {"name": "loss", "interval": 5, "temperature": "hot"}}},
        {"dataflex": {"mix": {"name": "odm", "interval": 5, "unit": "rows"}}},
        {"dataflex": {"mix": {"name": "odm", "interval": 5, "proportions": True}}},
        {"dataflex": {"weight": []}},
        {"dataflex": {"weight": [{"name": "loss"}, {"name": "focal", "gama": 1.0}]}},
        {"dataflex": {"total_steps": 0}},
        {"dataflex": 5},
    ],
    ids=lambda changes: json.dumps(changes)[:80],
)
def test_a_misspelt_key_and_a_wrong_type_do_not_validate(changes: dict[str, Any]) -> None:
    assert validator().is_valid(good())
    assert not validator().is_valid(good(**changes))


@pytest.mark.parametrize(
    ("block", "valid"),
    [
        ({"heldout": "a"}, True),
        ({"choice": ["a", {"dataset": "b", "options": "letters"}], "limit": None}, True),
        ({"generate": {"dataset": "a", "match": "number"}, "heldout": None}, True),
        ({"choice": [{"dataset": "b", "options": "leters"}]}, False),
        ({"choice": [{"options": "letters"}]}, False),
        ({"heldot": ["a"], "heldout": ["a"]}, False),
        ({"generate": [{"dataset": "a", "max_new_tokens": 0}]}, False),
        ({"limit": 5}, False),
        ({}, False),
    ],
    ids=lambda given: json.dumps(given)[:80],
)
def test_the_block_of_evaluate(block: Any, valid: bool) -> None:
    assert validator("evaluate").is_valid({"output_dir": "x", "evaluate": block}) == valid
    assert validator("evaluate").is_valid({"output_dir": "x", "dataflex": {"evaluate": block, "mix": "odm"}}) == valid
    assert validator().is_valid(good(dataflex={"weight": "loss", "evaluate": block})) == valid


@pytest.mark.parametrize(
    "block",
    [
        {"select": "loss", "mix": None, "weight": None},
        {"weight": [{"name": "loss", "until": None}, {"name": "focal", "gamma": 1.0}]},
        {"mix": {"name": "odm", "interval": 5, "eval_dataset": "a,b", "max_repetition": {"a": 2, "b": None}}},
        {"mix": {"name": "odm", "interval": 5, "eval_dataset": {"a": "b"}, "proportions": {"a": 1}}},
        {"select": {"name": "hardest:HardestSelector", "interval": 100, "skip": 0.02}},
        {"select": {"name": "custom", "class": "hardest:HardestSelector", "interval": 100}},
        None,
    ],
    ids=lambda block: json.dumps(block)[:80],
)
def test_other_spellings_validate(block: Any) -> None:
    found = [error.message[:300] for error in validator().iter_errors(good(dataflex=block))]
    assert found == []


def test_every_component_has_its_parameters_and_the_keys_of_its_family() -> None:
    properties, every = schema()["properties"]["dataflex"]["anyOf"][0]["properties"], {}
    for slot in FAMILIES:
        family = properties[slot]["anyOf"][0]
        variants = (family["anyOf"][0] if slot == "weight" else family)["oneOf"]
        by_name = {variant["properties"]["name"].get("const"): variant for variant in variants[1:]}
        assert set(names(slot)) <= set(by_name)
        every[slot] = by_name
        assert all(set(own_keys(*SLOT_KEYS[slot])) < set(variant["properties"]) for variant in variants[1:])
    assert every["weight"]["focal"]["properties"]["gamma"] == {"type": "number", "default": 2.0}
    assert every["order"]["stair"]["properties"]["sections"] == {"type": "integer", "default": 2}
    assert {"by", "column", "polarity", "window", "interval"} < set(every["order"]["sorting"]["properties"])


def test_a_plug_in_has_a_variant_and_one_that_does_not_load_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        "steady": "dataflex.components.weighters.focal:FocalWeighter",
        "broken": "dataflex.nowhere:Nothing",
    }
    points = [EntryPoint(name, value, "dataflex.weighters") for name, value in found.items()]
    monkeypatch.setattr(registry, "entry_points", lambda group: [p for p in points if p.group == group])
    plugged = Draft202012Validator(schema())
    for block, valid in (({"name": "steady", "gamma": 1.0}, True), ({"name": "steady", "gamme": 1.0}, False)):
        assert plugged.is_valid(good(dataflex={"weight": block})) == valid
        assert not validator().is_valid(good(dataflex={"weight": block}))
    assert not plugged.is_valid(good(dataflex={"weight": {"name": "broken"}}))


def test_a_selection_needs_a_selector_and_a_number_of_rows() -> None:
    raw = yaml.safe_load((ROOT / "examples" / "real" / "select_offline.yaml").read_text())
    for block in ({"select": "loss", "offline": {}}, {"offline": {"budget": 4}}, {"select": "loss", "mix": "static"}):
        assert not validator("select").is_valid({**raw, "dataflex": block})
    assert validator("select").is_valid({**raw, "dataflex": {"select": "loss", "offline": {"keep_ratio": 0.5}}})


def test_the_command_writes_a_file_or_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--for", "doremi", "--output", str(tmp_path / "doremi.json")]) == 0
    text = (tmp_path / "doremi.json").read_text()
    assert text.splitlines()[1].strip() == '"$schema": "https://json-schema.org/draft/2020-12/schema",'
    assert json.loads(text) == schema("doremi")
    assert main([]) == 0
    assert json.loads(capsys.readouterr().out) == schema()


@pytest.mark.parametrize("arguments", [["--for", "trian"], ["--output"], ["x.json"], ["--out", "x.json"]])
def test_other_arguments_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: dataflex-cli schema" in capsys.readouterr().err
