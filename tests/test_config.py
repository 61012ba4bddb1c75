"""The `dataflex` block, its flat spelling, presets, overrides, schedules, and the answer to everything that is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import command

from dataflex.compat.behaviour import Compatibility
from dataflex.compat.flat import FLAT_KEYS
from dataflex.components import registry
from dataflex.components.mixers.fixed import StaticMixer
from dataflex.components.mixers.odm import OdmMixer
from dataflex.components.selectors.loss import LossSelector
from dataflex.components.weighters.loss import LossWeighter
from dataflex.config import (
    DataflexConfig,
    MixConfig,
    RunConfig,
    Schedule,
    SelectConfig,
    WeightConfig,
    WeightPart,
    load,
    parse,
)
from dataflex.errors import ConfigError, nearest

LF: dict[str, Any] = {"stage": "sft", "do_train": True}
NAMES = {"select": "loss", "mix": "odm", "weight": "loss"}


def whole(block: Any) -> dict[str, Any]:
    return {**LF, "dataflex": block}


def flat(slot: str, **keys: Any) -> dict[str, Any]:
    """A configuration in the spelling of 1.1.0."""
    step = {} if slot == "weight" else {"update_step": 5}
    return {**LF, "train_type": f"dynamic_{slot}", "component_name": NAMES[slot], **step, **keys}


def nested(slot: str, **keys: Any) -> dict[str, Any]:
    """A configuration with one component in the `dataflex` block."""
    step = {} if slot == "weight" else {"interval": 5}
    return {**LF, "dataflex": {slot: {"name": NAMES[slot], **step, **keys}}}


def config(raw: dict[str, Any]) -> DataflexConfig:
    parsed = parse(raw).dataflex
    assert parsed is not None
    return parsed


def refusal(given: Any, read: Callable[[Any], RunConfig] = parse) -> str:
    with pytest.raises(ConfigError) as error:
        read(given)
    assert error.value.exit_status == 2 and "\n" not in str(error.value)
    return str(error.value)


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


# -- spellings -------------------------------------------------------------------------------------------------------


def test_a_nested_block_becomes_one_typed_object() -> None:
    block = {
        "total_steps": 600,
        "scoring_tokens": 4096,
        "freeze_gate": True,
        "select": {"name": "loss", "warmup": 50, "interval": 100, "updates": 5, "focus": "low", "keep_ratio": 0.25},
        "mix": {"name": "odm", "interval": 10, "proportions": [0.5, 0.3, 0.2], "min_exploration_rate": 0.01},
        "weight": {"name": "loss", "warmup": 3, "scope": "global", "strategy": "extremes", "delta": 2},
    }
    schedule, every_ten = Schedule(warmup=50, interval=100, updates=5), Schedule(warmup=0, interval=10, updates=None)
    select = SelectConfig(name="loss", component=LossSelector(focus="low"), schedule=schedule, keep_ratio=0.25)
    mix = MixConfig(
        name="odm", component=OdmMixer(min_exploration_rate=0.01), schedule=every_ten, proportions=(0.5, 0.3, 0.2)
    )
    weighter = LossWeighter(strategy="extremes", delta=2.0)
    part = WeightPart(name="loss", component=weighter, warmup=3)
    weight = WeightConfig(parts=(part,), scope="global")
    whole = DataflexConfig(
        total_steps=600, scoring_tokens=4096, freeze_gate=True, select=select, mix=mix, weight=weight
    )
    assert parse({**LF, "dataflex": block}) == RunConfig(
        dataflex=whole, llamafactory={**LF, "max_steps": 600}, notices=()
    )


STATIC = {"freeze_gate": True, "mix": {"name": "static", "proportions": [0.75, 0.25]}}
SAME: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (flat("select", warmup_step=9, num_train_epochs=1.5), nested("select", warmup=9)),
    (flat("select", component_name="random", train_step=4), nested("select", name="random")),
    (flat("mix", init_mixture_proportions=[3, 1]), nested("mix", reward="averaged", proportions=[0.75, 0.25])),
    (flat("mix", init_mixture_proportions="[0.5, 1.5]"), nested("mix", reward="averaged", proportions=[0.25, 0.75])),
    (
        flat("mix", mixture_sample_rule="stratified", warmup_step=2),
        nested("mix", reward="averaged", warmup=2, initial="stratified"),
    ),
    (flat("mix", mixture_sample_rule="uniform", update_times=-1), nested("mix", reward="averaged", initial="uniform")),
    (flat("mix", static_mix=True, init_mixture_proportions="0.75,0.25", freeze_gate=True), whole(STATIC)),
    (flat("weight", warmup_step=7), nested("weight", warmup=7)),
    (flat("weight", update_step=3, train_step=9), whole({"weight": "loss"})),
]


@pytest.mark.parametrize("old, new", SAME)
def test_the_flat_spelling_means_the_nested_one(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Except for the total, which the flat spelling implies, and for how 1.1.0 rounded the steps of a mixture's epoch."""
    rounding: Any = "down" if "mix" in new["dataflex"] else "up"
    assert replace(config(old), total_steps=None) == replace(config(new), compat=Compatibility(epoch_rounding=rounding))
    assert set(parse(old).llamafactory) - {"max_steps"} == set(old) & {*LF, "num_train_epochs"}
    stopping = replace(config(old).compat, early_stopping_min_delta=0.5)
    assert config({**old, "early_stopping_min_delta": 0.5}) == replace(config(old), compat=stopping)


@pytest.mark.parametrize("key", [k for k in FLAT_KEYS if k not in ("train_type", "component_name", "update_step")])
def test_an_empty_value_is_no_value(key: str) -> None:
    assert parse(flat("mix", **{key: None})) == parse(flat("mix"))


@pytest.mark.parametrize(
    "given, total",
    [
        (flat("select", train_step=77, update_times=9), 77),
        (flat("select", train_step="77"), 77),
        (flat("select", warmup_step=3, update_times=4, num_train_epochs=2), 46),
        (flat("select", warmup_step=3, update_times=4, num_train_epochs=0.3), 7),
        (flat("select", warmup_step=3, update_times=4), 69),  # LLaMA-Factory's default of three epochs
        (flat("select", warmup_step=3), 24),  # update_times: 1
        (flat("select", update_times=0), None),
        (flat("select", update_times=-1), None),
        (flat("mix", warmup_step=3, update_times=4, num_train_epochs=2), 23),
        (flat("mix", warmup_step=3, update_times=0), 3),
        (flat("mix", warmup_step=3, update_times=-1), None),
        (flat("mix", component_name="static", warmup_step=3, update_times=4), 23),
        (flat("mix", static_mix=True, warmup_step=3, update_times=4), None),
        (flat("mix", static_mix=True, train_step=12), 12),
        (flat("weight", warmup_step=3, update_step=2, update_times=4), None),
        (flat("weight", train_step=5), 5),
    ],
)
def test_totals_follow_the_formulas_of_the_release_before(given: dict[str, Any], total: int | None) -> None:
    parsed = parse(given)
    assert parsed.dataflex is not None and parsed.dataflex.total_steps == total
    assert parsed.llamafactory.get("max_steps") == total


def test_static_runs_leave_everything_to_llamafactory() -> None:
    for raw in ({}, {"train_type": "static"}, {"train_type": "static", "component_name": "loss"}, {"dataflex": {}}):
        run = parse({**LF, **raw})
        assert (run.dataflex, run.llamafactory) == (None, LF)


def test_a_conflict_of_totals_is_one_notice_that_names_the_winner() -> None:
    old = parse(flat("weight", train_step=5, max_steps=8))
    assert old.notices == ("train_step (5 steps) wins over max_steps (8)",) and old.llamafactory["max_steps"] == 5
    new = parse({**LF, "max_steps": 8, "dataflex": {"total_steps": 5, "weight": "loss"}})
    assert new.notices == ("dataflex.total_steps (5 steps) wins over max_steps (8)",)
    for agreed in (-1, 5):
        assert parse(flat("weight", train_step=5, max_steps=agreed)).notices == ()


@pytest.mark.parametrize(
    "raw, start",
    [
        (flat("mix", static_mix=True), "static_mix keeps the proportions fixed, so component_name: odm"),
        (
            flat("mix", dataset="x", mixer_eval_dataset="x_eval"),
            "mixer_eval_dataset has no effect: odm reads no held-out rows",
        ),
        (flat("weight", early_stopping_min_delta=0.1), "early_stopping_min_delta has no effect"),
        (
            {**LF, "dataflex": {"mix": {"name": "odm", "interval": 5, "warmup_steps": 9}}},
            "dataflex.mix.warmup_steps has no",
        ),
        (
            {**LF, "dataflex": {"select": {"name": "random", "interval": 5, "cache_dir": "x"}}},
            "dataflex.select.cache_dir",
        ),
    ],
)
def test_what_has_no_effect_is_said(raw: dict[str, Any], start: str) -> None:
    notices = parse(raw).notices
    assert len(notices) == 1 and notices[0].startswith(start)


# -- presets ---------------------------------------------------------------------------------------------------------

PRESETS = """
selectors:
  easy: {name: loss, params: {focus: low, cache_dir: somewhere, focus_weight: 3}}
  hard: {name: loss, params: {focus: high}}
  loss: {params: {temperature: 2.0}}
mixers:
  learned: {name: odm, params: {alpha: 0.5, initial_proportions: [0.5, 0.5], warmup: 2}}
"""


def test_presets_of_one_class_stay_apart(tmp_path: Path) -> None:
    raw = flat("select", components_cfg_file=write(tmp_path / "c.yaml", PRESETS))
    easy, hard, loss = (parse({**raw, "component_name": name}) for name in ("easy", "hard", "loss"))
    assert [p.dataflex.select.component for p in (easy, hard, loss) if p.dataflex and p.dataflex.select] == [
        LossSelector(focus="low", focus_weight=3.0),
        LossSelector(focus="high"),
        LossSelector(temperature=2.0),
    ]
    assert len(easy.notices) == 1 and easy.notices[0].startswith("dataflex.select.cache_dir has no effect: scores are")
    assert hard.notices == ()
    assert config({**raw, "component_name": "easy"}).select.name == "easy"  # type: ignore[union-attr]


def test_keys_of_the_block_win_over_those_of_the_preset(tmp_path: Path) -> None:
    file = {"components_cfg_file": write(tmp_path / "c.yaml", PRESETS)}
    block = {"mix": {"name": "learned", "interval": 5, "alpha": 0.25}, "select": {"name": "hard", "interval": 2}}
    parsed = config({**LF, **file, "dataflex": block})
    assert parsed.mix == MixConfig(
        name="learned",
        component=OdmMixer(reward="averaged", alpha=0.25),  # a preset is a file of 1.1.0
        schedule=Schedule(warmup=2, interval=5),
        proportions=(0.5, 0.5),
    )
    block["mix"] |= {"proportions": [0.1, 0.9], "warmup": 1}
    mix = config({**LF, **file, "dataflex": block}).mix
    assert mix is not None and (mix.proportions, mix.schedule.warmup) == ((0.1, 0.9), 1)


# -- files and command lines -----------------------------------------------------------------------------------------


def test_overrides_reach_into_the_block(tmp_path: Path) -> None:
    text = "stage: sft\ndo_train: true\nlearning_rate: 1e-4\ndataflex:\n  select: {name: loss, interval: 5}\n"
    file = write(tmp_path / "a.yaml", text)
    run = load([file, "dataflex.select.interval=7", "dataflex.select.focus=high", "learning_rate=3e-4", "dataset=${a}"])
    assert run.dataflex is not None and run.dataflex.select is not None
    assert (run.dataflex.select.schedule.interval, run.dataflex.select.component) == (7, LossSelector(focus="high"))
    assert run.llamafactory == {**LF, "learning_rate": 3e-4, "dataset": "${a}"}  # as written
    mixed = load([file, "dataflex.select=null", "dataflex.mix.name=static", "dataflex.mix.proportions=[0.5,0.5]"])
    assert mixed.dataflex == DataflexConfig(
        mix=MixConfig(name="static", component=StaticMixer(), schedule=Schedule(), proportions=(0.5, 0.5))
    )


def test_an_override_replaces_what_is_of_another_kind(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.yaml",
        "stage: sft\ndo_train: true\ndataset: a,b\ndataflex: {mix: {name: static, proportions: {a: 0.9, b: 0.1}}}\n",
    )
    listed = "dataflex.mix.proportions=[0.3,0.7]"

    def shares(*overrides: str) -> object:
        block = load([file, *overrides]).dataflex
        return block is not None and block.mix is not None and block.mix.proportions

    assert shares() == (0.9, 0.1)
    assert shares(listed) == shares("dataflex={mix: {proportions: [0.3, 0.7]}}") == (0.3, 0.7)
    assert shares(listed, "dataflex.mix.proportions={a: 0.6, b: 0.4}") == (0.6, 0.4)
    ended = command("plan", file, listed, "dataflex.mix.proportions.a=0.5")
    assert (ended.returncode, ended.stderr) == (
        2,
        f"dataflex: error: {file}: override 'dataflex.mix.proportions.a=0.5' cannot be read: dataflex.mix.proportions is a"
        " list there; write the list whole\n",
    )


def test_yaml_json_and_flags_say_the_same(tmp_path: Path) -> None:
    raw = flat("select", dataset=["a", "b"], learning_rate=1e-05, warmup_step=2, train_step=9)
    expected = parse(raw)
    assert expected.dataflex is not None
    as_yaml = "".join(f"{k}: {json.dumps(v)}\n" for k, v in raw.items())
    flags: list[str] = []
    for key, value in raw.items():
        flags += [f"--{key}"] if value is True else [f"--{key}", *(value if isinstance(value, list) else [str(value)])]
    assert load([write(tmp_path / "a.json", json.dumps(raw))]) == expected
    assert load([write(tmp_path / "a.yaml", as_yaml)]) == expected
    assert load([write(tmp_path / "a.yml", as_yaml)]) == expected
    assert load(flags) == expected
    assert load([f"--{k}={json.dumps(v) if isinstance(v, list) else v}" for k, v in raw.items()]) == expected


# -- schedules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warmup", [0, 1, 4])
@pytest.mark.parametrize("interval", [None, 1, 2, 5])
@pytest.mark.parametrize("updates", [None, 1, 3])
def test_a_schedule_agrees_with_its_list_of_updates(warmup: int, interval: int | None, updates: int | None) -> None:
    schedule = Schedule(warmup=warmup, interval=interval, updates=updates)
    turns = 40 if updates is None else updates
    steps = [] if interval is None else [warmup + interval * turn for turn in range(turns)]
    for step in range(40):
        assert schedule.due(step) == (step in steps)
        assert schedule.next_due(step) == next((s for s in steps if s >= step), None)
    assert [schedule.turn(step) for step in steps] == list(range(len(steps)))


def test_the_nearest_choice_is_offered_else_a_short_list() -> None:
    assert nearest("intervall", ["interval", "updates"]) == "; did you mean 'interval'?"
    assert nearest("zzz", ["b", "a", "a"]) == "; choose from a, b"
    assert nearest("zzz", [str(i) for i in range(13)]) == nearest("zzz", []) == ""


# -- what is wrong ---------------------------------------------------------------------------------------------------


ONE_LINE: list[tuple[dict[str, Any], str]] = [
    (whole(5), "dataflex must be a block of keys, got 5"),
    (whole({"selct": {}}), "dataflex.selct: unknown key; did you mean 'select'?"),
    (whole({"total_steps": 0}), "dataflex.total_steps must be at least 1, got 0"),
    (whole({"scoring_tokens": -1}), "dataflex.scoring_tokens must be at least 1, got -1"),
    (whole({"total_steps": True}), "dataflex.total_steps must be a number, got True"),
    (whole({"total_steps": "x"}), "dataflex.total_steps: input should be a valid integer"),
    (whole({"select": 5}), "dataflex.select must be a block with a name, got 5"),
    (
        whole({"select": {}}),
        f"dataflex.select.name is required; choose from {', '.join(registry.names('select'))}, or module:Class",
    ),
    (nested("select", name="lss"), "dataflex.select.name: unknown selector 'lss'; did you mean 'loss'?"),
    (nested("select", warmup=-1), "dataflex.select.warmup must be at least 0, got -1"),
    (nested("select", interval=0), "dataflex.select.interval must be at least 1, got 0"),
    (nested("mix", updates=0), "dataflex.mix.updates must be at least 1, got 0"),
    (nested("weight", warmup=-1), "dataflex.weight.warmup must be at least 0, got -1"),
    (nested("mix", interval=None), "dataflex.mix.interval is required: optimizer steps between two updates of odm"),
    (nested("select", keep_ratio=0), "dataflex.select.keep_ratio must be in (0, 1], got 0.0"),
    (nested("mix", proportions=[-1, 2]), "dataflex.mix.proportions must be non-negative numbers, got [-1.0, 2.0]"),
    (nested("mix", proportions=[0.5, 0.6]), "dataflex.mix.proportions must add up to 1, got [0.5, 0.6] (sum 1.1)"),
    (nested("mix", initial="unifrom"), "dataflex.mix.initial: 'unifrom' is not a choice; did you mean 'uniform'?"),
    (nested("weight", scope="globl"), "dataflex.weight.scope: 'globl' is not a choice; did you mean 'global'?"),
    (nested("select", focuss=1), "dataflex.select.focuss: loss has no such parameter; did you mean 'focus'?"),
    (whole({"select": {"name": "loss", "interval": 5, 1: 2}}), "dataflex.select.1: loss has no such parameter"),
    (
        nested("weight", zzz=1),
        "dataflex.weight.zzz: loss has no such parameter; choose from delta, fade, fix_scaling, r,",
    ),
    (nested("select", focus="mid"), "dataflex.select.focus must be one of low, medium, high, got 'mid'"),
    (nested("select", focus=None), "dataflex.select.focus: input should be a valid string, got None"),
    (nested("weight", delta=True), "dataflex.weight.delta must be a number, got True"),
    (
        flat("mix", train_type="dynamic_reordr"),
        "train_type: unknown value 'dynamic_reordr'; did you mean 'dynamic_reorder'?",
    ),
    (flat("mix", train_type="dynamic_mx"), "train_type: unknown value 'dynamic_mx'; did you mean 'dynamic_mix'?"),
    (flat("mix", component_name=None), "component_name is required with train_type: dynamic_mix"),
    (flat("mix", component_name="odn"), "component_name: unknown mixer 'odn'; did you mean 'odm'?"),
    (flat("mix", mixture_sample_rule="mixtur"), "mixture_sample_rule: unknown value 'mixtur'; did you mean 'mixture'?"),
    (flat("mix", init_mixture_proportions=[0, 0]), "init_mixture_proportions must be non-negative numbers, got [0, 0]"),
    (flat("mix", init_mixture_proportions=[-1, 2]), "init_mixture_proportions must be non-negative numbers, got [-1"),
    (flat("mix", update_step=0), "update_step must be at least 1, got 0"),
    (flat("select", warmup_step=-1), "warmup_step must be at least 0, got -1"),
    (flat("mix", components_cfg_file="no.yaml"), "components_cfg_file: no such file: no.yaml"),
    ({**nested("mix"), "warmup_step": 3}, "dataflex and warmup_step are two spellings of one block: keep one of them"),
    ({**nested("mix"), "stage": "ppo"}, "stage: ppo cannot be combined with mix (it draws its own rollouts); use pt,"),
    (
        {**nested("select"), "stage": "kto"},
        "stage: kto has a KL term that belongs to the batch, but select: loss measures rows by themselves",
    ),
    ({**nested("mix"), "do_train": None}, "do_train must be true with mix"),
    ({**nested("mix", proportions=[1]), "dataset": "a, b"}, "dataflex.mix.proportions: 1 given for 2 data sets (a, b)"),
    (
        {**nested("mix", proportions=[1]), "dataset": ["a", "b"]},
        "dataflex.mix.proportions: 1 given for 2 data sets (a, b)",
    ),
    (
        {**nested("mix"), "train_sampling_strategy": "group_by_length"},
        "train_sampling_strategy: group_by_length orders rows itself",
    ),
]


@pytest.mark.parametrize("raw, start", ONE_LINE)
def test_a_fault_is_one_line_that_names_the_key(raw: dict[str, Any], start: str) -> None:
    assert refusal(raw).startswith(start)


PLAIN = {
    "mix_strategy": "concat",
    "label_smoothing_factor": 0,
    "cp_size": 1,
    "sequence_parallel_size": 1,
    "pref_ftx": 0,
}
FUSED = ["enable_liger_kernel", "use_unsloth"]
CHANGED = ["use_dft_loss", "use_eaft_loss", "use_asft_loss", "label_smoothing_factor"]
DATA = ["group_by_length", "ignore_data_skip", "auto_find_batch_size", "mix_strategy"]
ALWAYS = ["use_mca", "use_hyper_parallel", "use_kt", "streaming", "parallelism_config"]
REFUSED: dict[str, list[str]] = {
    "select": [*ALWAYS, *DATA, *FUSED],
    "select less": [*FUSED, *CHANGED],
    "weight": [*ALWAYS, *FUSED],
    "weight dpo": ["pref_bco_weight", "pref_ftx"],
}


@pytest.mark.parametrize("slot, key", [(slot, key) for slot, keys in REFUSED.items() for key in keys])
def test_what_cannot_be_combined_is_refused_by_name(slot: str, key: str) -> None:
    slot, _, more = slot.partition(" ")
    named = {"name": "less", "target_dataset": "target"} if more == "less" else {}
    raw = {**nested(slot, **named), "stage": "dpo" if more == "dpo" else "sft"}
    assert refusal({**raw, key: 2 if key in PLAIN or key == "pref_bco_weight" else "true"}).startswith(key)
    assert parse({**raw, key: PLAIN.get(key, 0)}).dataflex == config(raw)


@pytest.mark.parametrize("variable", ["USE_MCA", "USE_KT"])
def test_what_cannot_be_combined_is_refused_by_variable(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "1")
    assert refusal(nested("mix")).upper().startswith(variable)
    assert parse(LF) == RunConfig(dataflex=None, llamafactory=LF)


NOT_A_NUMBER: dict[str, list[Any]] = {
    "warmup_step": [1.5, "x", True, [1], float("nan"), float("inf")],
    "init_mixture_proportions": ["0.5,x", ["x"], 0.5, "[]", [None, 1], [float("nan"), 1]],
    "early_stopping_min_delta": ["x"],
    "max_steps": ["x"],
    "num_train_epochs": ["x"],
    "label_smoothing_factor": ["x"],
}


@pytest.mark.parametrize("key, value", [(key, value) for key, values in NOT_A_NUMBER.items() for value in values])
def test_a_value_of_the_wrong_kind_is_one_line(key: str, value: Any) -> None:
    slot = "select" if key == "num_train_epochs" else "mix"
    assert refusal(flat(slot, **{"train_step": 4, key: value} if slot == "mix" else {key: value})).startswith(key)


@pytest.mark.parametrize(
    "text",
    ["a: [", "- 1", "selectors: [loss]", "selectors: {loss: hello}", "selectors: {loss: {params: [1]}}", "\udcff"],
)
def test_a_bad_components_file_is_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    assert refusal(flat("select", components_cfg_file=str(path))).startswith("components_cfg_file")


@pytest.mark.parametrize(
    "name, text, overrides, start",
    [
        ("a.yaml", None, [], "no such configuration file: a.yaml"),
        ("a.yaml", "a: 1", ["b"], "override 'b' is not of the form key=value"),
        ("a.yaml", "a: [", [], "a.yaml: "),
        ("a.yaml", "a: 1", ["b=[1"], "a.yaml: "),
        ("a.yaml", "a: ${", [], "a.yaml: "),
        ("a.json", "{", [], "a.json: Expecting property name"),
        ("a.yaml", "\udcff", [], "a.yaml: "),
        ("a.yaml", "- 1", [], "a.yaml must hold keys and values"),
        ("a.json", "[1]", [], "a.json must hold keys and values"),
        ("train", None, [], "expected a .yaml, .yml or .json file or --key value, got 'train'"),
        ("--a", None, ["[1"], "--a cannot be read: while parsing"),
    ],
)
def test_a_file_or_command_line_that_cannot_be_read_is_one_line(
    name: str, text: str | None, overrides: list[str], start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path(name).write_bytes(text.encode(errors="surrogateescape"))
    assert refusal([name, *overrides], load).startswith(start)
