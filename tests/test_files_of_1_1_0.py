"""Files of dataflex 1.1.0: key combinations as its own examples have them, and what it did with each."""

from __future__ import annotations

import json
from math import ceil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from checkpoint_files import assert_refused
from harness import start, train, train_all
from models_and_data import renamed

from dataflex.components.mixers.fixed import StaticMixer
from dataflex.components.mixers.odm import OdmMixer
from dataflex.components.mixers.schedule import ScheduleMixer
from dataflex.config import RunConfig, parse
from dataflex.errors import ConfigError
from dataflex.record import snapshot as state
from dataflex.trainer.epochs import settle_steps

Config = dict[str, Any]

# Presets with the parameters that those of 1.1.0 had.
GRADIENTS = {"cache_dir": "saves", "gradient_type": "adam", "proj_dim": 4096, "seed": 123, "save_interval": 16}
PRESETS: dict[str, dict[str, Any]] = {
    "selectors": {
        "random": {"cache_dir": "saves", "seed": 42, "replacement": False},
        "loss": {"cache_dir": "saves", "focus": "medium", "score_batch_size": 8},
        "delta_loss": {"cache_dir": "saves", "window_size": 0.2, "score_batch_size": 8},
        "less": GRADIENTS,
        "icons": {**GRADIENTS, "task_boundaries": None},
        "cluster_less": {**GRADIENTS, "cluster_size": 64, "samples_per_cluster": 4, "clustering_batch_size": 8},
        "coincide": {
            "cache_dir": "saves",
            "seed": 42,
            "embedding_model_name_or_path": None,
            "embedding_model_dtype": "auto",
            "embedding_layers": None,
            "num_clusters": 10000,
            "clustering_batch_size": 8,
            "clustering_num_workers": 4,
            "clustering_device": "auto",
            "clustering_max_iter": 10,
            "assignment_chunk_size": 4096,
            "temperature": 1.0,
            "density_chunk_size": 2048,
            "single_member_density": 1.0,
        },
        "nice": {**GRADIENTS, "reward_model_backend": "api", "mc_samples": 4, "max_prompt_length": 4096},
        "custom": {"cache_dir": "saves"},
    },
    "mixers": {
        "random": {"seed": 42},
        "static": {"proportions": [0.5, 0.5]},
        "odm": {"alpha": 0.9, "warmup_steps": 2000, "reward_scale": 15.0, "initial_proportions": [0.5, 0.5]},
        "doremi": {"reference_model_path": "reference", "reweight_eta": 0.1, "reweight_eps": 0.01},
        "dynamic_moe": {"eta": 10.0, "c": 0.05, "collect_steps": 5, "eval_samples": 1000, "eval_batch_size": 32},
    },
    "weighters": {
        "loss": {"strategy": "linupper", "delta": 1.0},
        "adapt": {"tau": 1.0, "refresh_interval": 50, "anchor_batch_size": 8, "clip": None},
        "joint_update_aware": {"beta": 0.1, "tau": 0.05, "target_batch_size": 1, "target_num_batches": 1},
        "custom": {"strategy": "uniform"},
    },
}


def presets(folder: Path, **changes: dict[str, Any]) -> dict[str, str]:
    """A components file; changes: parameters by "<bucket>_<preset>"."""
    content: dict[str, Any] = {b: {n: {"name": n, "params": p} for n, p in own.items()} for b, own in PRESETS.items()}
    for key_path, params in changes.items():
        bucket, _, name = key_path.partition("_")
        content[bucket][name] = {"name": name, "params": params}
    (folder / "components.yaml").write_text(yaml.safe_dump(content))
    return {"components_cfg_file": str(folder / "components.yaml")}


LF: Config = {"stage": "sft", "do_train": True, "dataset": "a,b", "num_train_epochs": 1.0, "save_only_model": False}
PRETRAINING: Config = {**LF, "stage": "pt", "save_only_model": True, "eval_dataset": "b"}
MIX = {"train_type": "dynamic_mix", "mixture_sample_rule": "mixture", "init_mixture_proportions": [0.3, 0.7]}
SELECT = {"train_type": "dynamic_select", "warmup_step": 10, "update_step": 10, "update_times": 2, "eval_dataset": "e"}
THREE = {"warmup_step": 100, "update_step": 200, "update_times": 3}
WEIGHT = {"train_type": "dynamic_weight", "warmup_step": 100, "train_step": 500}

# (keys, optimizer steps of the run, component as the ledger has it)
COMBINATIONS: dict[str, tuple[Config, int | None, str]] = {
    **{
        f"select {name}": ({**LF, **SELECT, "component_name": name}, 30, name)
        for name in ("random", "loss", "delta_loss", "less", "icons", "cluster_less", "nice")
    },
    "the reference of doremi": (
        {**PRETRAINING, **MIX, **THREE, "component_name": "static", "static_mix": True}, None, "static"
    ),
    "the proxy of doremi": ({**PRETRAINING, **MIX, **THREE, "component_name": "doremi"}, 700, "doremi"),
    "odm to the end": (
        {**PRETRAINING, **MIX, "component_name": "odm", "warmup_step": 10, "update_step": 10, "update_times": -1},
        None, "odm",
    ),
    "experts": (
        {**LF, **MIX, "component_name": "dynamic_moe", "mixer_eval_dataset": "a_eval,b_eval", "warmup_step": 60,
         "update_step": 100, "update_times": -1, "train_step": 2000, "max_steps": 2000, "freeze_gate": True},
        2000, "dynamic_moe",
    ),
    "random, no rule": ({**LF, **THREE, "train_type": "dynamic_mix", "component_name": "random"}, 700, "random"),
    "static_mix alone": ({**LF, **MIX, "static_mix": True, "train_step": 3}, 3, "static"),
    "weight loss": ({**LF, **WEIGHT, "component_name": "loss"}, 500, "loss"),
    "weight adapt, by what it trains on": ({**LF, **WEIGHT, "component_name": "adapt", "eval_dataset": "a"}, 500, "adapt"),
    "weight joint, by what it trains on": (
        {**LF, **WEIGHT, "component_name": "joint_update_aware", "eval_dataset": "a"}, 500, "joint_update_aware"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", COMBINATIONS)
def test_the_key_combinations_of_its_examples_are_read(tmp_path: Path, case: str) -> None:
    keys, steps, name = COMBINATIONS[case]
    run = parse({**keys, **presets(tmp_path)})
    slot = str(keys["train_type"]).removeprefix("dynamic_")
    assert run.dataflex is not None and list(run.dataflex.components) == [slot]
    assert getattr(run.dataflex, slot).name == name
    assert run.llamafactory.get("max_steps") == steps
    assert ("save_only_model: checkpoints cannot be resumed from" in run.notices) == keys["save_only_model"]
    said = [n for n in run.notices if n.startswith("eval_dataset: 'a' is also in dataset, so ")]
    assert len(said) == ("by what it trains on" in case)
    if slot == "mix" and "mixture_sample_rule" in keys:
        assert run.dataflex.mix is not None and run.dataflex.mix.proportions == (0.3, 0.7)


@pytest.mark.parametrize(
    "keys, start",
    [
        ({**LF, **SELECT, "component_name": "custom"}, "dataflex.select.class must name the class of custom"),
        ({**LF, **WEIGHT, "component_name": "custom"}, "dataflex.weight.class must name the class of custom"),
        ({**LF, **SELECT, "component_name": "less", "eval_dataset": "a"}, "eval_dataset: 'a' is also in dataset, and"),
    ],
)  # fmt: skip
def test_the_other_combinations_are_refused_by_name(tmp_path: Path, keys: Config, start: str) -> None:
    """For the reasons in docs/migration.md."""
    with pytest.raises(ConfigError) as error:
        parse({**keys, **presets(tmp_path)})
    assert str(error.value).startswith(start)


# -- where a mixture starts ------------------------------------------------------------------------------------------


def mixture(folder: Path, *, dataset: str = "a,b", changes: dict[str, Any] | None = None, **keys: Any) -> RunConfig:
    return parse({**LF, "train_type": "dynamic_mix", "dataset": dataset, **presets(folder, **(changes or {})), **keys})


@pytest.mark.parametrize("rule", ["stratified", "uniform"])
@pytest.mark.parametrize("dataset", ["a,b", "a,b,c"])
@pytest.mark.parametrize("keys", [{"component_name": "odm", "update_step": 5}, {"component_name": "static"}])
def test_a_preset_does_not_overrule_the_rule(tmp_path: Path, rule: str, dataset: str, keys: Config) -> None:
    """Also where it has proportions for another number of data sets."""
    run = mixture(tmp_path, dataset=dataset, mixture_sample_rule=rule, warmup_step=4, **keys)
    assert run.dataflex is not None and run.dataflex.mix is not None
    mix = run.dataflex.mix
    assert (mix.name, mix.proportions, mix.initial) == (keys["component_name"], None, rule)
    kind = "initial_proportions" if keys["component_name"] == "odm" else "proportions"
    line = (
        f"components_cfg_file: {kind} of the preset {keys['component_name']!r} has no effect with mixture_sample_rule"
    )
    assert [n for n in run.notices if n.startswith(line)]


def test_stratified_rows_are_drawn_by_size(base: Config, ground: Path, tmp_path: Path) -> None:
    """0.118 and 0.882 of 120 rows, whatever the preset says."""
    data = renamed(ground, tmp_path, {})
    lines = (ground / "data" / "code.jsonl").read_text().splitlines()
    (tmp_path / "data" / "few.jsonl").write_text("\n".join(lines[:8]) + "\n")
    info = json.loads((tmp_path / "data" / "dataset_info.json").read_text())
    few = {**info["code"], "file_name": "few.jsonl"}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps({**info, "few": few}))
    keys = {"mixture_sample_rule": "stratified", "component_name": "odm", "warmup_step": 30, "update_step": 5}
    config = {**base, "dataset_dir": data, "dataset": "few,docs", "train_type": "dynamic_mix", **keys, "train_step": 30}
    run = train({**config, **presets(tmp_path)}, tmp_path / "run", hooks=["record_ids"]).ok
    assert run.ledger()[0]["stage"]["proportions"] == pytest.approx([8 / 68, 60 / 68])
    served = np.array([i for ids in run.ids().values() for i in ids])
    assert abs(int((served < 8).sum()) - 120 * 8 / 68) < 1


@pytest.mark.parametrize(
    "start, preset, warmup, points",
    [
        ([3, 1], [0.2, 0.2], 6, ((0, (0.75, 0.25)), (6, (0.5, 0.5)))),
        (None, [1, 3], 6, ((0, (0.5, 0.5)), (6, (0.25, 0.75)))),
        ([3, 1], None, 6, ((0, (0.75, 0.25)), (6, (0.5, 0.5)))),  # equal shares
        ([3, 1], [0.6, 0.2], 6, (0.75, 0.25)),  # nothing changes
        ([3, 1], [1, 3], 0, (0.25, 0.75)),  # from the start
        (None, None, 6, None),
        (None, [1, 1], 6, None),
    ],
)
def test_static_takes_the_proportions_of_its_preset_after_the_warmup(
    tmp_path: Path, start: Any, preset: Any, warmup: int, points: Any
) -> None:
    keys = {"component_name": "static", "init_mixture_proportions": start, "warmup_step": warmup, "update_step": 5}
    run = mixture(tmp_path, changes={"mixers_static": {"proportions": preset}}, **keys)
    assert run.dataflex is not None and run.dataflex.mix is not None
    mix, said = run.dataflex.mix, [n for n in run.notices if n.startswith("static without static_mix: from step 6 on")]
    if points and isinstance(points[0], tuple):
        assert mix.component == ScheduleMixer(points=points) and len(said) == 1
    else:
        assert (mix.component, mix.proportions, said) == (StaticMixer(), points, [])
    assert run.dataflex.total_steps == warmup + 5  # as for every mixer
    fixed = mixture(tmp_path, changes={"mixers_static": {"proportions": preset}}, **keys, static_mix=True).dataflex
    assert fixed is not None and fixed.mix is not None and fixed.mix.component == StaticMixer()
    assert fixed.mix.proportions == ((0.75, 0.25) if start else None)  # a preset is not asked then


def test_the_switch_of_static_is_served(base: Config, tmp_path: Path) -> None:
    keys = {"component_name": "static", "init_mixture_proportions": [1, 0], "warmup_step": 5, "update_step": 5}
    given = presets(tmp_path, mixers_static={"proportions": [0, 1]})
    config = {**base, "dataset": "code,docs", "train_type": "dynamic_mix", **keys, **given}
    run = train(config, tmp_path / "run", hooks=["record_ids"]).ok
    assert [all(i < 60 for i in ids) for ids in run.ids().values()] == [True] * 5 + [False] * 5
    assert [all(i >= 60 for i in ids) for ids in run.ids().values()] == [False] * 5 + [True] * 5


def test_with_static_mix_no_components_file_is_read(tmp_path: Path) -> None:
    run = parse({**LF, **MIX, "static_mix": True, "components_cfg_file": "configs/components.yaml"})
    assert run.dataflex is not None and run.dataflex.mix is not None and run.dataflex.mix.proportions == (0.3, 0.7)


def test_proportions_of_a_preset_for_another_number_of_data_sets(tmp_path: Path) -> None:
    """1.1.0 started odm with equal shares then, and refused static."""
    run = mixture(tmp_path, dataset="a,b,c", component_name="odm", update_step=5)
    assert run.dataflex is not None and run.dataflex.mix is not None
    assert (run.dataflex.mix.proportions, run.dataflex.mix.component) == (
        None,
        OdmMixer(reward="averaged", alpha=0.9, reward_scale=15.0),
    )
    line = "components_cfg_file: initial_proportions of the preset 'odm' has no effect: 2 given for 3 data sets; the"
    assert [n for n in run.notices if n.startswith(line)]
    for keys, message in (
        ({}, "components_cfg_file: proportions of the preset 'static': 2 given for 3 data sets (a, b, c)"),
        ({"init_mixture_proportions": [1, 1]}, "init_mixture_proportions: 2 given for 3 data sets (a, b, c)"),
    ):
        with pytest.raises(ConfigError) as error:
            mixture(tmp_path, dataset="a,b,c", component_name="static", warmup_step=3, update_step=5, **keys)
        assert str(error.value) == message
    by_name = {"mixers_odm": {"initial_proportions": {"b": 0.75, "a": 0.25}}}  # as the block has them
    named = mixture(tmp_path, changes=by_name, component_name="odm", update_step=5).dataflex
    assert named is not None and named.mix is not None and named.mix.proportions == (0.25, 0.75)
    with pytest.raises(ConfigError, match=r"^components_cfg_file: proportions of the preset 'static' must be"):
        mixture(tmp_path, changes={"mixers_static": {"proportions": "half"}}, component_name="static")


# -- steps, held-out rows, order -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rows, batch, epochs", [(2185 * 8, 8, 0.5), (180, 4, 0.5), (180, 7, 2.5), (330, 8, 3), (3, 8, 0.5)]
)
def test_steps_of_a_mixture_are_rounded_down(rows: int, batch: int, epochs: float) -> None:
    """int(max(1, rows // batch) * epochs), but never none; the Trainer's own rounding is upwards, twice."""
    args = SimpleNamespace(
        max_steps=-1, num_train_epochs=epochs, dataloader_drop_last=False, eval_strategy="no", save_strategy="no",
        logging_strategy="steps",
    )  # fmt: skip
    found = {}
    for rounding in ("down", "up"):
        settled = SimpleNamespace(**vars(args))
        settle_steps(settled, rows, batch, down=rounding == "down")
        found[rounding] = settled.max_steps
    assert found["down"] == max(1, int(max(1, rows // batch) * epochs))
    assert found["up"] == ceil(ceil(rows / batch) * epochs)
    if batch == 8 and epochs == 0.5 and rows > 8:
        assert found == {"down": 1092, "up": 1093}


def test_experts_are_counted_on_the_held_out_rows(
    base: Config, ground: Path, experts: dict[str, Path], tmp_path: Path
) -> None:
    """Of the domains that mixer_eval_dataset has some of; of docs, on rows that are trained on."""
    data = renamed(ground, tmp_path, {"code_eval": "code_heldout", "arithmetic_eval": "arithmetic_heldout"})
    keys = {
        "component_name": "dynamic_moe",
        "update_step": 2,
        "train_step": 2,
        "mixer_eval_dataset": "arithmetic_eval,code_eval",
    }
    config = {**base, "dataset_dir": data, "model_name_or_path": str(experts["mixtral"]), "train_type": "dynamic_mix"}
    given = presets(tmp_path, mixers_dynamic_moe={"eval_samples": 12})
    run = train(
        {**config, **keys, **given}, tmp_path / "run", hooks=["record_routing", "dump_held_out", "dump_rows"]
    ).ok
    held_out = {
        n: [r["input_ids"] for r in own] for n, own in json.loads((run.out / "held_out.json").read_text()).items()
    }
    trained = json.loads((run.out / "rows.json").read_text())["train"]
    measured = [json.loads(line) for line in (run.out / "routing.jsonl").read_text().splitlines()]
    assert [len(rows) for rows in measured] == [4, 8]  # 12 rows, as many of each domain
    assert all(row in trained[60:120] for row in measured[0])
    assert all(row in held_out["code"] for row in measured[1][:4])
    assert all(row in held_out["arithmetic"] for row in measured[1][4:])
    assert "mixer_eval_dataset has no effect" not in run.log


def test_without_shuffling_rows_come_as_they_were_selected(base: Config, tmp_path: Path) -> None:
    """From the flat spelling; the block asks for it by serving_order, and otherwise keeps the order of the data."""
    component = "own_components:Backwards"
    flat = {"train_type": "dynamic_select", "component_name": component, "update_step": 3, "train_step": 6}
    block: dict[str, Any] = {"total_steps": 6, "select": {"name": component, "interval": 3}}
    chosen = {**block, "select": {**block["select"], "serving_order": "selection"}}
    unshuffled = {**base, "disable_shuffling": True}
    old, asked, new, shuffled = train_all(
        *(
            start(config, tmp_path / name, hooks=["record_ids"])
            for name, config in {
                "old": {**unshuffled, **flat, "save_strategy": "steps", "save_steps": 2},
                "asked": {**unshuffled, "dataflex": chosen},
                "new": {**unshuffled, "dataflex": block},
                "shuffled": {**base, "dataflex": chosen},
            }.items()
        )
    )
    backwards = list(range(179, 167, -1)) * 2
    assert [i for ids in old.ok.ids().values() for i in ids] == backwards
    assert asked.ok.ids() == old.ids()
    assert [i for ids in new.ok.ids().values() for i in ids] == backwards[::-1]
    assert "serving_order has no effect without disable_shuffling" in shuffled.ok.log
    resumed = {**unshuffled, **flat, "resume_from_checkpoint": str(old.out / "checkpoint-4")}
    on = train(resumed, tmp_path / "on", hooks=["record_ids"]).ok
    assert on.ids() == {step: old.ids()[step] for step in (4, 5)}


# -- components ------------------------------------------------------------------------------------------------------


def test_cache_dir_of_a_custom_preset_is_ignored_with_a_line(tmp_path: Path) -> None:
    params = {"cache_dir": "saves", "class": "own_components:Backwards"}
    keys = {**LF, **SELECT, "component_name": "custom", **presets(tmp_path, selectors_custom=params)}
    notices = parse(keys).notices
    line = "components_cfg_file: cache_dir of the preset 'custom' has no effect"
    assert len(notices) == 1 and notices[0].startswith(line)
    with pytest.raises(ConfigError, match="cache_dir: own_components:Backwards has no such parameter"):
        parse({**LF, "dataflex": {"select": {"name": "own_components:Backwards", "interval": 1, "cache_dir": "saves"}}})


@pytest.mark.parametrize(
    "line",
    [
        "from dataflex.core.registry import register_selector",
        "from dataflex.utils.logging import logger",
        "from dataflex.train.selector.base_selector import Selector",
        "import dataflex.core.registry",
    ],
)
def test_a_component_file_written_for_it_leads_to_how_to_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    name = f"written_for_1_1_0_{abs(hash(line))}"
    (tmp_path / f"{name}.py").write_text(f"{line}\n\n\nclass Mine:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError) as error:
        parse({**LF, **SELECT, "component_name": f"{name}:Mine"})
    said = str(error.value)
    assert said.startswith(f"component_name: cannot import '{name}:Mine': ModuleNotFoundError")
    assert "written for dataflex 1.1.0" in said and "docs/migration.md" in said


def test_a_missing_module_of_another_name_gives_no_such_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "written_today.py").write_text("import dataflex.trainer.nothing\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError) as error:
        parse({**LF, **SELECT, "component_name": "written_today:Mine"})
    assert "No module named 'dataflex.trainer.nothing'" in str(error.value) and "1.1.0" not in str(error.value)


# -- checkpoints of models alone -------------------------------------------------------------------------------------


def test_a_checkpoint_of_the_model_alone_is_saved_and_not_resumed_from(base: Config, tmp_path: Path) -> None:
    """Its part of ours is whole, and the command given again neither goes on from it nor trains over it."""
    block = {"dataflex": {"select": {"name": "random", "interval": 3}}, "save_strategy": "steps", "save_steps": 4}
    config = {**base, "max_steps": 8, **block}
    alone = {**config, "save_only_model": True}
    run = train(alone, tmp_path / "run").ok
    assert "dataflex: save_only_model: checkpoints cannot be resumed from" in run.log
    last = run.out / "checkpoint-8"
    assert (last / "model.safetensors").is_file() and not (last / "optimizer.pt").exists()
    assert (last / "dataflex" / "COMPLETE").is_file() and state.read_snapshot(last)[0].model_only
    files = {f: f.read_bytes() for f in run.out.rglob("*") if f.is_file() and "checkpoint-" in str(f)}
    again, named = train_all(
        start(alone, run.out),
        start({**config, "resume_from_checkpoint": str(last)}, tmp_path / "named"),
    )
    assert_refused(
        again, f"output_dir: the checkpoints in {run.out} were saved with save_only_model and cannot be resumed"
    )
    assert_refused(named, f"resume_from_checkpoint: {last}", "saved with save_only_model", "no optimizer")
    assert all(f.read_bytes() == content for f, content in files.items())
    assert train({**alone, "overwrite_output_dir": True}, run.out).ok.trace() == run.trace()


def test_an_older_checkpoint_with_an_optimizer_is_used(base: Config, tmp_path: Path) -> None:
    block = {"dataflex": {"weight": {"name": "loss"}}, "save_strategy": "steps", "save_steps": 3}
    config = {**base, "max_steps": 6, **block}
    killed = train(config, tmp_path / "run", hooks=["kill_after:3"])
    assert killed.status != [0]
    whole = train({**config, "save_only_model": True}, tmp_path / "run").ok
    assert not (whole.out / "checkpoint-6" / "optimizer.pt").exists()
    again = train(config, tmp_path / "run").ok
    assert "checkpoint-6 is not complete (it was saved with save_only_model" in again.log
    assert "an older checkpoint is used" in again.log and again.trace() == whole.trace()
