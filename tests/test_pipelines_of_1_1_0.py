"""Orders and pipelines of dataflex 1.1.0: the presets that it came with, read as blocks of today."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import start, train_all

from dataflex.components.orders.layers import FoldingOrder, ZigzagOrder
from dataflex.components.orders.sections import SawOrder, StairOrder
from dataflex.components.orders.segment import SegmentOrder
from dataflex.config import RunConfig, parse
from dataflex.config.schema import DataflexConfig, OrderConfig
from dataflex.errors import ConfigError

Config = dict[str, Any]
COLUMN = {"score_source": "precomputed", "score_params": {"score_field": "score"}}
STATIC = {
    "kind": "static",
    "apply_at": "raw",
    "polarity": "higher_later",
    "ascending": True,
    "window_size": 0,
    "seed": 42,
}
LOSSES = {"score_source": "model_loss", "score_params": {"batch_size": 8, "num_workers": 2, "max_samples": 20000}}
DYNAMIC = {
    "kind": "dynamic",
    "polarity": "higher_later",
    "seed": 42,
    **LOSSES,
    "reorder_every": 1,
    "consume_once": True,
}
SAW = {"num_sections": 3, "folding_ratio": 0.075, "layers": 2}
ORDERS: dict[str, Config] = {
    "sorting": {**STATIC, "pattern": "sorting", **COLUMN},
    "shuffle": {"kind": "static", "pattern": "shuffle", "apply_at": "raw", "seed": 42, **COLUMN},
    "segment": {
        **STATIC,
        "pattern": "segment",
        "pattern_params": {"x_pct": 10, "y_pct": 10, "front_is_high": False, "back_is_high": True},
        **COLUMN,
    },
    "folding": {**STATIC, "pattern": "folding", "pattern_params": {"layers": 3}, **COLUMN},
    "zigzag": {**STATIC, "pattern": "zigzag", "pattern_params": {"layers": 3}, **COLUMN},
    "stair": {
        **STATIC,
        "pattern": "stair",
        "pattern_params": {"num_sections": 2, "folding_ratio": 0.225, "layers": 3},
        **COLUMN,
    },
    "saw": {**STATIC, "pattern": "saw", "pattern_params": SAW, **COLUMN},
    "dynamic_saw": {**DYNAMIC, "pattern": "saw", "pattern_params": SAW},
    "dynamic_folding": {**DYNAMIC, "pattern": "folding", "pattern_params": {"layers": 3}},
    "reuse_selector_scores": {
        **DYNAMIC,
        "pattern": "saw",
        "score_source": "cached_selection",
        "score_params": {"cache_path": "step_10.json", "metric_key": "loss"},
    },
}
SELECTOR = {"family": "selector", "component": "loss", "warmup_step": 10}
MIXER = {"family": "mixer", "component": "odm", "every": 50}
REORDER = {"family": "reorder", "component": "dynamic_saw"}
WEIGHTER = {"family": "weighter", "component": "loss", "warmup_step": 10}
PIPELINES: dict[str, list[Config]] = {
    "hierarchical": [
        {**SELECTOR, "mode": "filter", "keep_ratio": 0.5, "every": 200},
        MIXER,
        {**REORDER, "every": 50},
        WEIGHTER,
    ],
    "select_then_reorder": [
        {**SELECTOR, "mode": "filter", "keep_ratio": 0.5, "every": 100},
        {**REORDER, "every": 20},
    ],
    "mix_then_weight": [MIXER, WEIGHTER],
    "select_only": [{**SELECTOR, "mode": "draw", "every": 1}],
}
RUN: Config = {
    "stage": "sft", "do_train": True, "dataset": "a,b", "num_train_epochs": 1.0, "warmup_step": 10, "update_step": 10,
    "update_times": 2,
}  # fmt: skip


def components(folder: Path, orders: Config | None = None, stages: list[Config] | None = None, **params: Any) -> Config:
    """A components file; orders: more presets, stages: of the pipeline `own`, params: beside them."""
    pipelines = {**PIPELINES, **({"own": stages} if stages is not None else {})}
    content: Config = {
        "selectors": {"loss": {"name": "loss", "params": {"focus": "medium"}}},
        "mixers": {"odm": {"name": "odm", "params": {"warmup_steps": 2000, "initial_proportions": [0.5, 0.5]}}},
        "weighters": {"loss": {"name": "loss", "params": {"strategy": "linupper"}}},
        "reorders": {
            n: {"name": p.get("name", n), "params": {k: v for k, v in p.items() if k != "name"}}
            for n, p in {**ORDERS, **(orders or {})}.items()
        },
        "pipelines": {
            n: {"name": n, "params": {"stages": s, "cache_dir": "saves", **params}} for n, s in pipelines.items()
        },
    }
    (folder / "components.yaml").write_text(yaml.safe_dump(content))
    return {"components_cfg_file": str(folder / "components.yaml")}


def reordered(folder: Path, name: str, params: Config | None = None, **keys: Any) -> RunConfig:
    given = components(folder, {name: params} if params is not None else None)
    return parse({**RUN, "train_type": "dynamic_reorder", "component_name": name, **given, **keys})


def piped(
    folder: Path, name: str, stages: list[Config] | None = None, params: Config | None = None, **keys: Any
) -> RunConfig:
    given = components(folder, stages=stages, **(params or {}))
    return parse({**RUN, "train_type": "dynamic_lego", "component_name": name, **given, **keys})


def order(run: RunConfig) -> OrderConfig:
    assert run.dataflex is not None and run.dataflex.order is not None
    return run.dataflex.order


def when(block: DataflexConfig) -> dict[str, tuple[int, int | None]]:
    specs = {"select": block.select, "mix": block.mix, "order": block.order}
    return {slot: (spec.schedule.warmup, spec.schedule.interval) for slot, spec in specs.items() if spec is not None}


# -- orders ----------------------------------------------------------------------------------------------------------

SHAPES = {
    "folding": FoldingOrder(layers=3),
    "zigzag": ZigzagOrder(layers=3),
    "segment": SegmentOrder(front=0.1, back=0.1),
    "stair": StairOrder(sections=2, radius=0.225, layers=3),
    "saw": SawOrder(sections=3, radius=0.075, layers=2),
    "dynamic_saw": SawOrder(sections=3, radius=0.075, layers=2),
    "dynamic_folding": FoldingOrder(layers=3),
}


@pytest.mark.parametrize("name", [name for name in ORDERS if name != "reuse_selector_scores"])
def test_every_preset_of_an_order_is_read(tmp_path: Path, name: str) -> None:
    run = reordered(tmp_path, name)
    found = order(run)
    assert run.dataflex is not None and run.dataflex.total_steps == 30
    assert name not in SHAPES or found.component == SHAPES[name]
    assert (found.polarity, found.window) == ("higher_later", 0)
    if name == "shuffle":
        assert found.by is None
    elif name.startswith("dynamic"):
        assert (found.by, found.schedule.warmup, found.schedule.interval) == ("loss", 10, 10)
        assert [n for n in run.notices if "is laid over the whole run" in n]
    else:
        assert (found.by, found.column, found.schedule.warmup, found.schedule.interval) == ("column", "score", 0, None)
        assert not [n for n in run.notices if "is laid over the whole run" in n]


def test_a_preset_with_the_scores_of_a_selector_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        reordered(tmp_path, "reuse_selector_scores")
    assert "cached_selection reads a file of 1.1.0" in str(error.value) and "name: saw, by: loss" in str(error.value)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"kind": "dynamic"}, {"by": "loss", "polarity": "higher_earlier"}),  # its class had the other default
        ({"kind": "static"}, {"by": "column", "column": "score", "polarity": "higher_later"}),
        ({**STATIC, "ascending": False}, {"polarity": "higher_earlier"}),
        ({**STATIC, "polarity": "lower_is_better", "ascending": False}, {"polarity": "higher_later"}),
        ({**STATIC, "polarity": "higher_is_better"}, {"polarity": "higher_later"}),
        ({**STATIC, "window_size": 5000}, {"window": 5000}),
        ({**STATIC, "window_size": 1}, {"window": 0}),
        ({**STATIC, "pattern": "folding"}, {"component": FoldingOrder(layers=5)}),  # the default of its code
        ({**STATIC, "pattern": "zigzag", "pattern_params": {"zigzag_layer": 2}}, {"component": ZigzagOrder(layers=2)}),
        ({**STATIC, "pattern": "stair"}, {"component": StairOrder(sections=2, radius=0.0, layers=2)}),
        ({**STATIC, "pattern": "saw"}, {"component": SawOrder(sections=2, radius=0.0, layers=2)}),
        (
            {**STATIC, "pattern": "segment", "pattern_params": {"x_pct": 25, "back_is_high": False}},
            {"component": SegmentOrder(front=0.25, back=0.1, back_is_high=False)},
        ),
        ({"kind": "dynamic", "reorder_every": 3}, {"interval": 30}),
    ],
)
def test_parameters_mean_what_they_meant(tmp_path: Path, params: Config, expected: Config) -> None:
    found = order(reordered(tmp_path, "own", params))
    for name, value in expected.items():
        assert getattr(found.schedule if name == "interval" else found, name) == value, name


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"kind": "statc"}, "kind of the preset 'own': unknown value 'statc'; choose static or dynamic"),
        (
            {**STATIC, "pattern": "foldin"},
            "pattern of the preset 'own': unknown value 'foldin'; did you mean 'folding'?",
        ),
        ({**STATIC, "polarity": "higher_late"}, "did you mean 'higher_later'?"),
        ({**STATIC, "score_source": "precomputd"}, "did you mean 'precomputed'?"),
        ({**STATIC, "pattern_params": 3}, "pattern_params of the preset 'own' must be a block of keys, got 3"),
        ({"kind": "dynamic", "consume_once": False}, "consume_once: false of the preset 'own' serves the same rows"),
        ({**STATIC, "pattern": "folding", "pattern_params": {"layers": 0}}, "layers must be at least 1"),
        ({**STATIC, "score_params": {"score_path": "no.npy"}}, "no such file: no.npy"),
    ],
)
def test_presets_that_say_nothing_are_refused(tmp_path: Path, params: Config, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        reordered(tmp_path, "own", params)
    assert words in str(error.value)


def test_what_a_preset_says_without_effect_is_said(tmp_path: Path) -> None:
    said = "\n".join(reordered(tmp_path, "dynamic_saw").notices)
    assert "batch_size, max_samples, num_workers of the preset 'dynamic_saw' without effect" in said
    own = {**STATIC, "pattern": "segment", "pattern_params": {"layers": 2}, "depth": 1}
    said = "\n".join(reordered(tmp_path, "own", own).notices)
    for words in ("layers without effect on segment", "depth of the preset 'own' without effect", "seed of the preset"):
        assert words in said
    plain = reordered(tmp_path, "own", {**STATIC, "pattern": "stair"}).notices
    assert "dataflex.order: with radius: 0, own serves rows as sorting does" in plain


def test_a_name_without_a_preset_and_a_preset_in_todays_keys(tmp_path: Path) -> None:
    bare = order(parse({**RUN, "train_type": "dynamic_reorder", "component_name": "zigzag"}))
    assert (bare.by, bare.column, bare.schedule.warmup, bare.component) == ("column", "score", 0, ZigzagOrder(layers=5))
    today = order(reordered(tmp_path, "mine", {"name": "saw", "by": "loss", "window": 4, "radius": 0.1}, update_step=7))
    assert (today.by, today.window, today.schedule.warmup, today.schedule.interval) == ("loss", 4, 10, 7)
    assert today.component == SawOrder(sections=2, radius=0.1, layers=2)
    block = {"order": {"name": "dynamic_folding", "warmup": 5}}
    nested = {k: v for k, v in RUN.items() if k not in ("warmup_step", "update_step", "update_times")}
    beside = order(parse({**nested, "max_steps": 9, **components(tmp_path), "dataflex": block}))
    assert (beside.by, beside.component, beside.schedule.interval) == ("loss", FoldingOrder(layers=3), None)


# -- pipelines -------------------------------------------------------------------------------------------------------


def test_every_preset_of_a_pipeline_is_read(tmp_path: Path) -> None:
    blocks = {name: piped(tmp_path, name).dataflex for name in PIPELINES}
    hierarchical, ordered, mixed, only = blocks.values()
    assert hierarchical is not None and ordered is not None and mixed is not None and only is not None
    assert when(hierarchical) == {"select": (10, 200), "mix": (10, 50), "order": (10, 50)}
    assert hierarchical.select is not None and hierarchical.select.keep_ratio == 0.5
    assert hierarchical.weight is not None and hierarchical.weight.parts[0].warmup == 10
    assert when(ordered) == {"select": (10, 100), "mix": (0, None), "order": (10, 20)}
    assert ordered.mix is not None and ordered.mix.name == "proportional"
    assert when(mixed) == {"mix": (10, 50)} and mixed.weight is not None
    assert mixed.mix is not None and mixed.mix.proportions == (0.5, 0.5)
    assert when(only) == {"select": (10, 10)} and only.mix is None
    assert {block.total_steps for block in blocks.values() if block is not None} == {30}


def test_stages_act_at_boundaries(tmp_path: Path) -> None:
    run = piped(tmp_path, "select_then_reorder", update_step=50, warmup_step=5)
    assert run.dataflex is not None and when(run.dataflex) == {"select": (55, 100), "mix": (0, None), "order": (5, 50)}
    assert "stage 2: every: 20 means every 50 steps" in "\n".join(run.notices)


def test_stages_of_ones_own(tmp_path: Path) -> None:
    draw = {**SELECTOR, "mode": "draw", "every": 30}
    static = {"family": "reorder", "component": "saw"}
    stages = [{**REORDER, "enabled": False}, static, draw, WEIGHTER, {**WEIGHTER, "warmup_step": 20}]
    run = piped(tmp_path, "own", stages, {"score_batch_size": 4, "save_plans": False})
    block = run.dataflex
    assert block is not None and when(block) == {"select": (10, 30), "order": (10, None)}
    assert block.order is not None and (block.order.by, block.mix) == ("column", None)
    assert block.weight is not None and [part.warmup for part in block.weight.parts] == [10, 20]
    said = "\n".join(run.notices)
    assert "stages act in the order select, mix, order" in said
    assert "cache_dir, score_batch_size without effect" in said and "save_plans" not in said


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([], "the pipeline 'own' has no list of stages"),
        ([{**MIXER, "enabled": False}], "has no stage that is enabled"),
        ([{**MIXER, "family": "mixr"}], "stage 1: family: unknown value 'mixr'; did you mean 'mixer'?"),
        ([MIXER, {**REORDER, "evry": 2}], "stage 2: no such key: 'evry'; did you mean 'every'?"),
        ([{"family": "mixer"}], "stage 1: component must name a mixer, got None"),
        ([MIXER, MIXER], "stage 2: a second mixer; a block has one `mix`"),
        (
            [{**SELECTOR, "mode": "draw"}, MIXER],
            "no mixer can follow; use mode: filter, or a block: select: {name: loss,",
        ),
        ([{**SELECTOR, "mode": "filtr"}], "mode: unknown value 'filtr'; did you mean 'filter'?"),
        ([{**MIXER, "component": "odn"}], "unknown mixer 'odn'; did you mean 'odm'?"),
        ([5], "stage 1 must be a block of keys, got 5"),
    ],
)
def test_pipelines_that_no_block_says_are_refused(tmp_path: Path, stages: list[Any], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        piped(tmp_path, "own", stages)
    assert words in str(error.value) and len(str(error.value).splitlines()) == 1


def test_pipelines_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no pipeline 'select_onl'; did you mean 'select_only'"):
        piped(tmp_path, "select_onl")
    with pytest.raises(ConfigError, match="update_step must be at least 1, got 0"):
        piped(tmp_path, "select_only", update_step=0)
    with pytest.raises(ConfigError, match="no such key: 'stags'"):
        piped(tmp_path, "own", [MIXER], {"stags": 1})
    with pytest.raises(ConfigError, match="component_name is required with train_type: dynamic_lego"):
        parse({**RUN, "train_type": "dynamic_lego"})


@pytest.mark.slow
def test_every_preset_trains(base: Config, tmp_path: Path) -> None:
    """Files as 1.1.0 came with them: 4 rows a step, every stage and order fires."""
    keys = {"warmup_step": 2, "update_step": 4, "update_times": 3}
    data = Path(base["dataset_dir"])
    info, rows = json.loads((data / "dataset_info.json").read_text()), tmp_path / "data"
    rows.mkdir()
    for name in base["dataset"].split(","):
        lines = [json.loads(line) for line in (data / f"{name}.jsonl").read_text().splitlines()]
        (rows / f"{name}.json").write_text(json.dumps([line | {"score": i % 9} for i, line in enumerate(lines)]))
        info[name] = {**info[name], "file_name": f"{name}.json"}
    (rows / "dataset_info.json").write_text(json.dumps(info))
    config = {**base, **keys, **components(tmp_path), "dataset_dir": str(rows), "max_steps": -1, "num_train_epochs": 1}
    cases = [("dynamic_reorder", name) for name in ORDERS if name != "reuse_selector_scores"]
    cases += [("dynamic_lego", name) for name in PIPELINES]
    for kind, name in cases:
        run = train_all(start({**config, "train_type": kind, "component_name": name}, tmp_path / name))[0].ok
        assert len(run.history()) == 14
        families = {line["component"].partition(":")[0] for line in run.ledger()}
        expected = {"hierarchical": {"select", "mix", "order"}, "select_then_reorder": {"select", "order"}}
        expected |= {"mix_then_weight": {"mix"}, "select_only": {"select"}}
        assert families - {"start"} == expected.get(name, {"order"}), name
