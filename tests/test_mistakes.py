"""Every mistake of a file is named at once, and values have the type and the range of their key."""

from __future__ import annotations

import typing
from contextlib import suppress
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import Run, train

from dataflex.compat.flat import FLAT_KEYS
from dataflex.components.registry import resolve
from dataflex.config import parse
from dataflex.config.llamafactory.ranges import RANGES, check_range
from dataflex.config.llamafactory.typed import read_typed
from dataflex.config.load import load, load_offline
from dataflex.config.schema import SLOT_KEYS, own_keys
from dataflex.errors import ConfigError, Mistakes
from dataflex.values import integer, number

Config = dict[str, Any]
LF: Config = {"stage": "sft", "do_train": True}


def lines_of(raw: Config) -> list[str]:
    with pytest.raises(ConfigError) as error:
        parse(raw)
    return str(error.value).splitlines()


# -- gathering -------------------------------------------------------------------------------------------------------


def test_mistakes_are_gathered_once_each_and_one_stays_itself() -> None:
    mistakes = Mistakes()
    mistakes.settle()
    first = ConfigError("a: no")
    mistakes.note(first)
    mistakes.note(ConfigError("a: no"))
    with pytest.raises(ConfigError) as error:
        mistakes.settle()
    assert error.value is first
    mistakes.note(ConfigError("a is no good either"), once=True)
    mistakes.note(ConfigError("b: no\nc: no"))
    mistakes.gather(iter(["d: no", "a: something else"]))
    with mistakes.noting():
        raise ConfigError("e: no")
    with pytest.raises(ConfigError) as error:
        mistakes.settle()
    assert str(error.value).splitlines() == ["a: no", "b: no", "c: no", "d: no", "a: something else", "e: no"]


def test_a_check_that_ends_in_an_error_keeps_what_it_said_before() -> None:
    def check() -> typing.Iterator[str]:
        yield "a: no"
        integer("x", "b")
        yield "c: never said"

    mistakes = Mistakes()
    mistakes.gather(check())
    assert mistakes.keys == {"a", "b"}


def test_every_mistake_of_the_block_is_named() -> None:
    block = {
        "selct": {"name": "loss"},
        "total_steps": 0,
        "select": {"name": "loss", "interval": 0, "warmup": "x", "focus": "mid", "temperature": -1, "focuss": 1},
        "mix": {"name": "odm", "interval": 2, "proportions": [0.5, 0.6, 0.2], "max_repetition": -1},
        "weight": [{"name": "loss", "strategy": "x"}, {"name": "focle"}, {"name": "focal", "ramp": -1}],
        "offline": {"budget": 0, "exampels": 3},
    }
    found = lines_of({**LF, "dataset": "a,b,c", "dataflex": block})
    expected = (
        "dataflex.selct: unknown key", "dataflex.total_steps must be at least 1", "dataflex.select.warmup",
        "dataflex.select.interval must be at least 1", "dataflex.select.focuss", "dataflex.select.focus ",
        "dataflex.select.temperature", "dataflex.mix.proportions must add up to 1", "dataflex.mix.max_repetition",
        "dataflex.weight[0].strategy", "dataflex.weight[1].name", "dataflex.weight[2].ramp",
        "dataflex.offline.exampels", "dataflex.offline.budget",
    )  # fmt: skip
    assert sorted(found) == sorted(found, key=str) and len(found) == len(expected), found
    for start in expected:
        assert sum(line.startswith(start) for line in found) == 1, (start, found)


def test_combinations_are_named_beside_values_and_each_other() -> None:
    raw = {**LF, "save_only_model_": 1, "auto_find_batch_size": True, "parallelism_config": {"a": 1}}
    raw |= {"ignore_data_skip": True, "dataflex": {"select": {"name": "loss", "interval": 4, "temperature": 0}}}
    found = lines_of(raw)
    starts = ("dataflex.select.temperature", "parallelism_config", "ignore_data_skip", "auto_find_batch_size")
    assert len(found) == 4 and all(any(line.startswith(s) for line in found) for s in starts), found


@pytest.mark.parametrize(
    "block, starts",
    [
        ({"select": {"name": "less", "interval": 4, "target_dataset": {"a": 1}}}, ["dataflex.select.target_dataset"]),
        ({"select": {"name": "nothing", "interval": 4}, "weight": {"name": "domain"}}, ["dataflex.select.name"]),
        ({"mix": {"name": "replay"}}, ["dataflex.mix.ledger"]),
    ],
)
def test_what_follows_from_a_mistake_is_no_other_one(block: Config, starts: list[str]) -> None:
    found = lines_of({**LF, "dataset": "b,c", "dataflex": block})
    assert [line.split(":")[0].split(" ")[0] for line in found if line.startswith(starts[0])] == starts, found


def test_a_mistake_of_a_value_that_several_checks_read_is_said_once() -> None:
    raw = {**LF, "max_steps": "x", "dataflex": {"total_steps": 3, "mix": {"name": "static"}}, "streaming": True}
    assert lines_of({**raw, "dataset": "a"}) == ["max_steps must be a number, got 'x'"]


def test_a_selection_names_all_that_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    block = {"select": {"name": "loss", "focus": "x"}, "mix": {"name": "odm"}, "offline": {"budget": 0}}
    file.write_text(yaml.safe_dump({"stage": "kto", "deepspeed": "x.json", "dataflex": block}))
    with pytest.raises(ConfigError) as error:
        load_offline([str(file)])
    starts = (
        "dataflex.mix belongs",
        "stage: kto",
        "deepspeed",
        "output_dir",
        "dataflex.select.focus",
        "dataflex.offline",
    )
    found = str(error.value).splitlines()
    assert all(any(line.startswith(s) for line in found) for s in starts), found


def test_mistakes_in_block_keys_data_and_paths_come_in_one_run(base: Config, tmp_path: Path) -> None:
    """Through the command line: the block is refused before LLaMA-Factory's keys are, and both are named."""
    wrong = {
        "learning_rat": 1e-3, "learning_rate": -1, "bf16": "perhaps", "template": "qwenn", "dataset": "code,dcs,docz",
        "report_to": "clearml", "output_dir": 5, "adapter_name_or_path": "./nowhere", "finetuning_type": "lorra",
        "dataflex": {"select": {"name": "loss", "interval": 0, "focus": "mid"}, "weight": "los"},
    }  # fmt: skip
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({**base, **wrong}))
    run = Run(["train", str(file)], tmp_path / "run", 1, ["no_model"], {}).wait()
    found = [line for line in run.log.splitlines() if line.startswith("dataflex: error: ")]
    assert run.status == [2] and "Traceback" not in run.log, run.log
    starts = (
        "dataflex.select.interval", "dataflex.select.focus", "dataflex.weight.name", "learning_rat: unknown key",
        "learning_rate must be at least 0", "bf16 must be true or false", "template: unknown template 'qwenn'",
        "dataset: 'dcs' is not defined", "dataset: 'docz' is not defined", "report_to: clearml is not installed",
        "output_dir must be text", "adapter_name_or_path: no such directory", "finetuning_type: 'lorra' is not a choice",
    )  # fmt: skip
    assert len(found) == len(starts), found
    for start in starts:
        assert sum(line.startswith(f"dataflex: error: {start}") for line in found) == 1, (start, found)


NASTY: tuple[Any, ...] = (None, True, -1, float("nan"), 10**30, "\0", "é" * 300, [None], [[1]], {1: 2}, "/tmp")


@pytest.mark.parametrize("value", NASTY, ids=lambda value: repr(value)[:20])
def test_no_value_of_the_block_ends_in_anything_but_a_refusal(value: Any) -> None:
    raw = {**LF, "dataset": "a,b,c", "max_steps": 5}
    tables = {
        "select": ("loss", "less", "tsds"),
        "mix": ("odm", "schedule", "file"),
        "weight": ("loss", "domain", "rho1"),
    }
    own = {"select": {"interval": 4, "target_dataset": "t"}, "mix": {"interval": 4}, "weight": {}}
    for slot, names in tables.items():
        for name in names:
            cls = resolve(slot, name, slot)
            for key in {*(f.name for f in fields(cls) if f.init), *own_keys(*SLOT_KEYS[slot]), "name"}:
                part = {"name": name, **own[slot], key: value}
                with suppress(ConfigError):
                    parse({**raw, "dataflex": {slot: part}})
    for key in (*SLOT_KEYS, "offline", "total_steps", "scoring_tokens", "freeze_gate", "evaluate_domains", "doremi"):
        with suppress(ConfigError):
            parse({**raw, "dataflex": {"mix": "static", key: value}})
    for key in (*raw, "eval_dataset", "streaming", "val_size", "packing", "eval_strategy", "buffer_size", "optim"):
        for slots in ({"select": {"name": "less", "interval": 4}}, {"mix": "static"}, {"weight": "loss"}):
            with suppress(ConfigError):
                parse({**raw, key: value, "dataflex": slots})
    for key in FLAT_KEYS:
        with suppress(ConfigError):
            parse({**raw, "train_type": "dynamic_mix", "component_name": "odm", "update_step": 4, key: value})


# -- types and ranges ------------------------------------------------------------------------------------------------


def every_key() -> list[tuple[Field[Any], Any]]:
    """(field, type) of all keys that LLaMA-Factory and transformers have."""
    from llamafactory.hparams import RayArguments
    from llamafactory.hparams.parser import _TRAIN_ARGS

    out = {}
    for kind in (*_TRAIN_ARGS, RayArguments):
        hints = typing.get_type_hints(kind)
        out |= {f.name: (f, hints[f.name]) for f in fields(kind) if f.init}
    return list(out.values())


def test_every_default_is_accepted_and_every_range_is_that_of_a_key() -> None:
    names = set()
    for field, hint in every_key():
        names.add(field.name)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        kept = read_typed(field.name, default, hint)
        assert kept == default or kept == getattr(default, "value", None), field.name
        check_range(field.name, kept)
    assert set(RANGES) <= names


def test_every_number_is_checked() -> None:
    """Of each key that is a number: no text, no list, no switch, not NaN, and nothing beyond 64 bits."""
    checked = 0
    for field, hint in every_key():
        kinds = [k for k in (typing.get_args(hint) or (hint,)) if k is not type(None)]
        if kinds not in ([int], [float]):
            continue
        for wrong in ("abc", [1], {"a": 1}, True, float("nan"), 10**30, "1e30", *([1.5] if kinds == [int] else [])):
            with pytest.raises(ConfigError, match=f"^{field.name} "):
                check_range(field.name, read_typed(field.name, wrong, hint))
                if field.name == "max_grad_norm" and wrong in (10**30, "1e30"):  # clips nothing
                    raise ConfigError(f"{field.name} is taken")
        checked += 1
    assert checked > 80


@pytest.mark.parametrize(
    "key, given, hint, kept",
    [
        ("learning_rate", "1e-4", float, 1e-4),
        ("max_steps", "12", int, 12),
        ("max_steps", 12.0, int, 12),
        ("data_seed", None, int | None, None),
        ("do_train", "true", bool, True),
        ("do_eval", "false", bool, False),
        ("bf16", 1, bool, True),
        ("dataset", "a,b", str | None, "a,b"),
        ("dataset", ["a", "b"], str | None, ["a", "b"]),
        ("lora_target", ["q_proj", "v_proj"], str, "q_proj,v_proj"),
        ("label_names", "labels, weights", list[str] | None, ["labels", "weights"]),
        ("master_port", 29500, str | None, "29500"),
        ("run_name", 7, str | None, "7"),
        ("resume_from_checkpoint", True, str | None, True),
        ("deepspeed", {"a": 1}, dict | str | None, {"a": 1}),
        ("max_grad_norm", None, float, None),
    ],
)
def test_values_are_read_as_leniently_as_on_a_command_line(key: str, given: Any, hint: Any, kept: Any) -> None:
    found = read_typed(key, given, hint)
    assert found == kept and type(found) is type(kept)


def test_integers_keep_all_their_digits() -> None:
    assert integer(2**53 + 1, "a") == integer(str(2**53 + 1), "a") == 2**53 + 1
    with pytest.raises(ConfigError, match=r"^a is too large"):
        number(10**400, "a")


@pytest.mark.parametrize(
    "key, ends", [("val_size", (0, 0.5, 7)), ("learning_rate", (0, 1)), ("adam_beta1", (0, 0.999))]
)
def test_the_ends_of_a_range_are_in_it(key: str, ends: tuple[float, ...]) -> None:
    for value in ends:
        check_range(key, value)


# -- what is right stays right ---------------------------------------------------------------------------------------


def test_a_data_set_twice_beside_a_weighter_is_read_once_as_in_a_plain_run(base: Config, tmp_path: Path) -> None:
    weight = {"dataflex": {"weight": {"name": "loss"}}, "max_steps": 4}
    twice = train({**base, **weight, "dataset": "code,code"}, tmp_path / "twice")
    assert twice.ok.trace() == train({**base, **weight, "dataset": "code"}, tmp_path / "once").ok.trace()


def test_text_for_switches_and_numbers_trains_as_the_values_do(base: Config, tmp_path: Path) -> None:
    """`do_eval: "false"` is a true value to Python."""
    slots = {"dataflex": {"mix": {"name": "static"}}, "max_steps": 2, "do_eval": False}
    text = {**slots, "max_steps": "2", "per_device_train_batch_size": "4", "learning_rate": "0.001", "do_eval": "false"}
    spelled = train({**base, **text}, tmp_path / "text")
    assert spelled.ok.trace() == train({**base, **slots}, tmp_path / "values").ok.trace()


@pytest.mark.parametrize("text", ["\ufeffstage: sft\r\ndo_train: true\r\n", "stage: sft\r\ndo_train: true\r\n"])
def test_a_file_of_another_system_is_read(tmp_path: Path, text: str) -> None:
    """A byte order mark, and lines that end as on Windows."""
    (tmp_path / "a.yaml").write_text(text, newline="")
    assert load([str(tmp_path / "a.yaml")]).llamafactory == LF


@pytest.mark.parametrize(
    "arguments, start",
    [
        (["--"], "'--' has no key"),
        (["--=5"], "'--=5' has no key"),
        (["--a", "[1"], "--a cannot be read: "),
        (["--a", "1", "--b", "{"], "--b cannot be read: "),
        (["--" + "a." * 2000 + "b", "1"], "--a.a.a"),
        (["\0.yaml"], r"\x00.yaml: "),
        (["x" * 300 + ".json"], "x" * 300 + ".json: File name too long"),
    ],
)
def test_arguments_that_cannot_be_read_are_named(arguments: list[str], start: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(arguments)
    assert str(error.value).startswith(start) and "\n" not in str(error.value)
