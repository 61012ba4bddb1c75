"""The `dataflex` block, its flat spelling, presets, overrides, schedules, and the answer to everything that is wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataflex.components import registry
from dataflex.components.contracts import Mixer, Selection, SelectionContext, Selector, State
from dataflex.components.mixers.odm import OdmMixer
from dataflex.components.mixers.static import StaticMixer
from dataflex.components.selectors.loss import LossSelector
from dataflex.components.weighters.loss import LossWeighter
from dataflex.config import DataflexConfig, MixConfig, RunConfig, Schedule, SelectConfig, WeightConfig, load, parse
from dataflex.errors import ConfigError, nearest

LF: dict[str, Any] = {"stage": "sft", "do_train": True}
NAMES = {"select": "loss", "mix": "odm", "weight": "loss"}


def flat(slot: str, **keys: Any) -> dict[str, Any]:
    """A configuration in the spelling of 1.1.0."""
    step = {} if slot == "weight" else {"update_step": 5}
    return {**LF, "train_type": f"dynamic_{slot}", "component_name": NAMES[slot], **step, **keys}


def nested(slot: str, **keys: Any) -> dict[str, Any]:
    """A configuration with one component in the `dataflex` block."""
    step = {} if slot == "weight" else {"interval": 5}
    return {**LF, "dataflex": {slot: {"name": NAMES[slot], **step, **keys}}}


@dataclass(frozen=True, kw_only=True)
class Needy(Selector):
    """A component of a third party, with a parameter that has no default."""

    target: str

    def select(
        self, state: State, signals: Mapping[str, np.ndarray], context: SelectionContext
    ) -> tuple[Selection, State]:
        return Selection(np.arange(context.budget)), state


@dataclass(frozen=True, kw_only=True)
class Unfinished(Mixer):
    """Lacks `update`."""


class OldSelector:
    """The shape of a component of dataflex 1.1.0."""

    def select(self, model: Any, step_id: int, num_samples: int) -> list[int]:
        return list(range(num_samples))


def config(raw: dict[str, Any]) -> DataflexConfig:
    parsed = parse(raw).dataflex
    assert parsed is not None
    return parsed


def refusal(raw: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as error:
        parse(raw)
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
        "mix": {"name": "odm", "interval": 10, "proportions": [0.5, 0.3, 0.2], "alpha": 0.5},
        "weight": {"name": "loss", "warmup": 3, "scope": "global", "strategy": "extremes", "delta": 2},
    }
    schedule, every_ten = Schedule(warmup=50, interval=100, updates=5), Schedule(warmup=0, interval=10, updates=None)
    select = SelectConfig(name="loss", component=LossSelector(focus="low"), schedule=schedule, keep_ratio=0.25)
    mix = MixConfig(name="odm", component=OdmMixer(alpha=0.5), schedule=every_ten, proportions=(0.5, 0.3, 0.2))
    weighter = LossWeighter(strategy="extremes", delta=2.0)
    weight = WeightConfig(name="loss", component=weighter, warmup=3, scope="global")
    whole = DataflexConfig(
        total_steps=600, scoring_tokens=4096, freeze_gate=True, select=select, mix=mix, weight=weight
    )
    assert parse({**LF, "dataflex": block}) == RunConfig(
        dataflex=whole, llamafactory={**LF, "max_steps": 600}, notices=()
    )


# Flat, nested, and what the flat spelling settles besides.
SAME: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    (
        flat("select", warmup_step=10, update_times=2, num_train_epochs=1.5),
        nested("select", warmup=10),
        {"total_steps": 30},
    ),
    (
        flat("mix", warmup_step=4, update_times=3, init_mixture_proportions=[2, 1, 1]),
        nested("mix", warmup=4, proportions=[0.5, 0.25, 0.25]),
        {"total_steps": 19, "epoch_rounding": "down"},
    ),
    (
        flat("mix", mixture_sample_rule="stratified", train_step=40, freeze_gate=True),
        nested("mix", initial="stratified"),
        {"total_steps": 40, "epoch_rounding": "down", "freeze_gate": True},
    ),
    (
        flat("mix", static_mix=True, init_mixture_proportions="[0.75,0.25]"),
        nested("mix", name="static", proportions=[0.75, 0.25]),
        {"epoch_rounding": "down"},
    ),
    (flat("weight", warmup_step=7), nested("weight", warmup=7), {}),
    (
        flat("weight", train_step=9, early_stopping_min_delta=0.5, early_stopping_steps=2),
        {**LF, "dataflex": {"weight": "loss"}},
        {"total_steps": 9, "early_stopping_min_delta": 0.5},
    ),
]


@pytest.mark.parametrize("old, new, implied", SAME)
def test_the_flat_spelling_means_the_nested_one(old: dict[str, Any], new: dict[str, Any], implied: Any) -> None:
    assert config(old) == replace(config(new), **implied)
    kept = {*LF, "num_train_epochs", "early_stopping_steps"}
    assert set(parse(old).llamafactory) - {"max_steps"} == set(old) & kept


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
        assert parse({**LF, **raw}) == RunConfig(dataflex=None, llamafactory=LF)


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
        (flat("mix", mixer_eval_dataset="x"), "mixer_eval_dataset has no effect"),
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
  bare: {name: random}
mixers:
  learned: {name: odm, params: {alpha: 0.5, initial_proportions: [0.5, 0.5], warmup: 2}}
  random:
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
        name="learned", component=OdmMixer(alpha=0.25), schedule=Schedule(warmup=2, interval=5), proportions=(0.5, 0.5)
    )
    block["mix"] |= {"proportions": [0.1, 0.9], "warmup": 1}
    mix = config({**LF, **file, "dataflex": block}).mix
    assert mix is not None and (mix.proportions, mix.schedule.warmup) == ((0.1, 0.9), 1)


# -- files and command lines -----------------------------------------------------------------------------------------


def test_overrides_reach_into_the_block(tmp_path: Path) -> None:
    text = "stage: sft\ndo_train: true\nlearning_rate: 1e-4\ndataflex:\n  select: {name: loss, interval: 5}\n"
    file = write(tmp_path / "a.yaml", text)
    run = load([file, "dataflex.select.interval=7", "dataflex.select.focus=high", "learning_rate=3e-4", "dataset=a,b"])
    assert run.dataflex is not None and run.dataflex.select is not None
    assert (run.dataflex.select.schedule.interval, run.dataflex.select.component) == (7, LossSelector(focus="high"))
    assert run.llamafactory == {**LF, "learning_rate": 3e-4, "dataset": "a,b"}
    mixed = load([file, "dataflex.select=null", "dataflex.mix.name=static", "dataflex.mix.proportions=[0.5,0.5]"])
    assert mixed.dataflex == DataflexConfig(
        mix=MixConfig(name="static", component=StaticMixer(), schedule=Schedule(), proportions=(0.5, 0.5))
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
@pytest.mark.parametrize("interval", [1, 2, 5])
@pytest.mark.parametrize("updates", [None, 1, 3])
def test_a_schedule_agrees_with_its_list_of_updates(warmup: int, interval: int, updates: int | None) -> None:
    schedule = Schedule(warmup=warmup, interval=interval, updates=updates)
    steps = [warmup + interval * turn for turn in range(40 if updates is None else updates)]
    for step in range(40):
        assert schedule.due(step) == (step in steps)
        assert schedule.next_due(step) == next((s for s in steps if s >= step), None)
    assert [schedule.turn(step) for step in steps] == list(range(len(steps)))


def test_a_schedule_without_an_interval_is_never_due() -> None:
    schedule = Schedule(warmup=2)
    assert not any(schedule.due(step) for step in range(10))
    assert all(schedule.next_due(step) is None for step in range(10))


# -- the registry ----------------------------------------------------------------------------------------------------


def test_components_come_from_modules_and_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    assert registry.resolve("select", f"{__name__}:Needy", "key") is Needy
    found = EntryPoint(name="theirs", value=f"{__name__}:Needy", group="dataflex.selectors")
    monkeypatch.setattr(registry, "entry_points", lambda group: [found] if group == found.group else [])
    assert registry.resolve("select", "theirs", "key") is Needy
    assert registry.names("select") == ["loss", "random", "theirs"] and registry.names("weight") == ["loss"]
    parsed = config(nested("select", name="theirs", target="x"))
    assert parsed.select == SelectConfig(name="theirs", component=Needy(target="x"), schedule=Schedule(interval=5))
    broken = EntryPoint(name="broken", value="no_such_module_at_all:X", group="dataflex.mixers")
    monkeypatch.setattr(registry, "entry_points", lambda group: [broken] if group == broken.group else [])
    assert refusal(nested("mix", name="broken")).startswith("dataflex.mix.name: entry point 'broken' does not load: No")


@pytest.mark.parametrize("slot", list(registry.FAMILIES))
def test_every_name_of_the_tables_resolves(slot: str) -> None:
    table, base, _ = registry.FAMILIES[slot]
    for name in table:
        assert issubclass(registry.resolve(slot, name, "key"), base)
    assert not set(table) & registry.ABSENT[slot]


def test_the_nearest_choice_is_offered_else_a_short_list() -> None:
    assert nearest("intervall", ["interval", "updates"]) == "; did you mean 'interval'?"
    assert nearest("zzz", ["b", "a", "a"]) == "; choose from a, b"
    assert nearest("zzz", [str(i) for i in range(13)]) == nearest("zzz", []) == ""
