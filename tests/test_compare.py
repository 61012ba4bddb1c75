"""`compare`: grids of tiny runs through the real command line."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from forked import Starts
from harness import start, train_all
from scipy import stats

from dataflex.cli import main
from dataflex.comparing.grids.cells import Trial
from dataflex.comparing.grids.grid import read_grid
from dataflex.comparing.grids.running import places
from dataflex.errors import ConfigError

Config = dict[str, Any]
ROOT = Path(__file__).parents[1]
VARIANTS: Config = {"none": None, "random": {"name": "random", "interval": 3}, "loss": {"name": "loss", "interval": 3}}
HELD_OUT: Config = {"eval_dataset": "code_heldout,docs_heldout", "eval_on_each_dataset": True}


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> Starts:
    found = Starts()
    monkeypatch.setattr("dataflex.base.processes.side_by_side.start", found)
    return found


@pytest.fixture
def grid(base: Config, tmp_path: Path) -> Config:
    """A file of a comparison: three methods, two seeds, six steps."""
    return {
        "base": {**base, **HELD_OUT, "max_steps": 6},
        "output_dir": str(tmp_path / "out"),
        "vary": {"select": VARIANTS},
        "seeds": [0, 1],
    }


def written(grid: Config, folder: Path) -> str:
    file = folder / "grid.yaml"
    file.write_text(yaml.safe_dump(grid, sort_keys=False))
    return str(file)


def comparison(out: Path) -> Config:
    return dict(json.loads((out / "comparison.json").read_text()))


def without_times(found: Config) -> Config:
    for method in found["methods"].values():
        for run in method["runs"].values():
            del run["seconds"], run["deciding"]
    return found


# -- reading -----------------------------------------------------------------------------------------------------------


def test_cells_are_the_product_of_what_varies(grid: Config, tmp_path: Path) -> None:
    grid["base"]["dataflex"] = {"total_steps": 5, "mix": "uniform"}
    grid["vary"] = {
        "select": VARIANTS,
        "dataflex.mix": {"odm": {"name": "odm", "interval": 2}, "same": "uniform"},
        "learning_rate": [1e-3, 2e-3],
    }
    grid["baseline"] = {"select": "none", "dataflex.mix": "same"}
    found = read_grid([written(grid, tmp_path)])
    assert len(found.cells) == 12 and found.seeds == (0, 1)
    names = [cell.name for cell in found.cells]
    assert names[0] == "select=none mix=odm learning_rate=0.001" and len(set(names)) == 12
    last = found.cells[-1]
    assert last.keys["learning_rate"] == 2e-3 and last.keys["dataflex"] == {
        "total_steps": 5, "mix": "uniform", "select": VARIANTS["loss"],
    }  # fmt: skip
    assert found.baseline_of(last).name == "select=none mix=same learning_rate=0.002"
    assert found.baseline_of(found.cells[2]).choices["learning_rate"] == "0.001"
    assert found.cells[0].keys["dataflex"] == {"total_steps": 5, "mix": {"name": "odm", "interval": 2}}


def test_paths_reach_into_blocks_and_empty_blocks_are_left_out(grid: Config, tmp_path: Path) -> None:
    grid["base"]["dataflex"] = {"total_steps": 5, "mix": {"name": "odm", "interval": 2}}
    grid["vary"] = {"dataflex.mix.interval": [1, 2], "mix": {"odm": grid["base"]["dataflex"]["mix"]}}
    cells = read_grid([written(grid, tmp_path)]).cells
    assert [cell.keys["dataflex"]["mix"]["interval"] for cell in cells] == [1, 2]
    grid["vary"] = {"mix": [None, {"name": "odm", "interval": 2}]}
    none, odm = read_grid([written(grid, tmp_path)]).cells
    assert "dataflex" not in none.keys and none.keys["max_steps"] == 5  # the length of the block is kept
    grid["base"]["dataflex"]["evaluate"] = judged = {"heldout": "code_heldout"}
    assert read_grid([written(grid, tmp_path)]).cells[0].keys["dataflex"] == {"evaluate": judged}
    assert (none.name, odm.name) == ("mix=none", "mix=odm") and odm.keys["dataflex"]["total_steps"] == 5


def test_a_method_may_set_several_keys(grid: Config, tmp_path: Path) -> None:
    grid["vary"] = {
        "method": {"plain": None, "both": {"select": VARIANTS["loss"], "mix": "uniform", "max_grad_norm": 2}}
    }
    plain, both = read_grid([written(grid, tmp_path)]).cells
    assert (plain.name, both.name) == ("plain", "both") and "dataflex" not in plain.keys
    assert both.keys["dataflex"] == {"select": VARIANTS["loss"], "mix": "uniform"} and both.keys["max_grad_norm"] == 2


def test_the_base_may_be_a_file_and_overrides_win(grid: Config, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({**grid["base"], "output_dir": "x", "seed": 5, "overwrite_output_dir": True}))
    found = read_grid([written({**grid, "base": str(file)}, tmp_path), "seeds=[4]", "equal=nothing"])
    assert found.seeds == (4,) and found.equal == "nothing"
    config = Trial(found.cells[0], 4, found.output_dir).config()
    assert config["seed"] == 4 and config["output_dir"] == str(tmp_path / "out" / "none" / "seed-4")
    assert config["do_eval"] is True and "overwrite_output_dir" not in config


ODM = {"name": "odm", "interval": 2}
# What is wrong -> (changes to a good file, the one line).
BAD: dict[str, tuple[Config, str]] = {
    "no base": ({"base": None}, "base must be a .yaml, .yml, .json file of train, or its keys, got None"),
    "base is a word": ({"base": "run"}, "base must be a .yaml, .yml, .json file of train, or its keys, got 'run'"),
    "no such base": ({"base": "nowhere.yaml"}, "base: no such configuration file: nowhere.yaml"),
    "no output_dir": ({"output_dir": None}, "output_dir is required"),
    "unknown key": ({"sedes": [1]}, "sedes: unknown key; did you mean 'seeds'?"),
    "no seeds": ({"seeds": []}, "seeds names no seed"),
    "a seed twice": ({"seeds": [1, 2, 1]}, "seeds: 1 is listed twice"),
    "a seed that is none": ({"seeds": ["one"]}, "seeds: "),
    "a negative seed": ({"seeds": [-1]}, "seeds must be in [0, 2^32), got -1"),
    "a seed too large": ({"seeds": [1 << 32]}, "seeds must be in [0, 2^32), got 4294967296"),
    "nothing varies": ({"vary": {}}, "vary must be a block of keys, each with its variants, got {}"),
    "vary is a list": ({"vary": ["select"]}, "vary must be a block of keys"),
    "an axis without variants": ({"vary": {"select": []}}, "vary.select has no variant"),
    "an axis that is a value": ({"vary": {"select": "loss"}}, "vary.select must be a list of values, or a block"),
    "one combination": ({"vary": {"select": {"none": None}}}, "vary gives a single combination"),
    "a variant twice": (
        {"vary": {"select": [{"name": "loss", "interval": 2}, {"name": "loss", "interval": 3}]}},
        "vary.select has two variants 'loss'; write them as a block",
    ),
    "a variant without a name": (
        {"vary": {"select": [None, {"interval": 3}]}},
        "vary.select: {'interval': 3} has no name",
    ),
    "a variant named by YAML": (
        {"vary": {"select": {False: None, "loss": ODM}}},
        "vary.select: YAML reads a variant's name",
    ),
    "seeds as an axis": ({"vary": {"seed": [1, 2]}}, "vary.seed cannot vary: `seeds` names the seeds"),
    "output_dir as an axis": ({"vary": {"output_dir": ["a", "b"]}}, "vary.output_dir cannot vary"),
    "a method that sets the seed": (
        {"vary": {"method": {"a": None, "b": {"seed": 1}}}},
        "vary.method.b.seed cannot vary",
    ),
    "a method that is a value": ({"vary": {"method": {"a": None, "b": 3}}}, "vary.method.b must be a block of keys"),
    "two axes of one key": (
        {"vary": {"select": VARIANTS, "dataflex.select": VARIANTS}},
        "vary.dataflex.select sets dataflex.select, which vary.select sets too",
    ),
    "a key below nothing": (
        {"vary": {"dataflex.mix.interval": [1, 2]}},
        "vary.dataflex.mix.interval: dataflex.mix is no block here, so it has no interval",
    ),
    "a baseline that is a word": (
        {"baseline": "none"},
        "baseline must name a variant by its axis, such as {select: none}",
    ),
    "a baseline of no axis": (
        {"baseline": {"selct": "none"}},
        "baseline.selct: vary has no such axis; did you mean 'select'?",
    ),
    "a baseline of no variant": (
        {"baseline": {"select": "randm"}},
        "baseline.select: 'randm' is no variant; did you mean",
    ),
    "equal to what": ({"equal": "step"}, "equal: 'step' is not a choice; did you mean 'steps'?"),
    "a budget of nothing": ({"equal": "compute", "budget": 0}, "budget "),
    "a budget of steps": ({"budget": 100}, "budget has no effect with equal: steps; use tokens or compute"),
    "metrics": ({"metrics": [1]}, "metrics must be a list of names"),
}
# The same of the keys of the base.
BAD_BASE: dict[str, tuple[Config, str]] = {
    "a seed of the data": ({"data_seed": 3}, "base.data_seed: the seeds of a comparison decide the data too"),
    "a checkpoint": (
        {"resume_from_checkpoint": "x/checkpoint-3"},
        "base.resume_from_checkpoint: the runs of a comparison",
    ),
    "a grid": ({"vary": {}}, "base has the key vary"),
    "a key of LLaMA-Factory": ({"learning_rat": 1}, "learning_rat: unknown key; did you mean 'learning_rate'?"),
    "a data set": ({"dataset": "code,dcs"}, "dataset: 'dcs' is not defined"),
    "a value": ({"num_train_epochs": "many"}, "num_train_epochs"),
}
# And of variants, with the cells that are wrong.
BAD_CELLS: dict[str, tuple[Config, str]] = {
    "a component": ({"select": {"none": None, "los": {"name": "los", "interval": 2}}}, "los: dataflex.select.name: "),
    "a parameter": ({"select": {"none": None, "l": {**VARIANTS["loss"], "focuss": 1}}}, "l: dataflex.select.focuss: "),
    "a value": ({"learning_rate": [1e-3, "fast"]}, "learning_rate=fast: learning_rate"),
    "a combination": (
        {"select": VARIANTS, "enable_liger_kernel": [False, True]},
        "select=loss enable_liger_kernel=true: enable_liger_kernel hides",
    ),
    "a length": ({"max_steps": [4, 8]}, "equal: steps, but the optimizer steps differ (max_steps=4 4, max_steps=8 8)"),
}
CASES = {
    **{f"file: {name}": (changes, line) for name, (changes, line) in BAD.items()},
    **{f"base: {name}": ({"base": changes}, line) for name, (changes, line) in BAD_BASE.items()},
    **{f"cells: {name}": ({"vary": changes}, line) for name, (changes, line) in BAD_CELLS.items()},
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_and_starts_nothing(
    grid: Config, tmp_path: Path, starts: Starts, capfd: pytest.CaptureFixture[str], case: str
) -> None:
    changes, line = CASES[case]
    if case.startswith("base: "):
        changes = {"base": {**grid["base"], **changes["base"]}}
    assert main(["compare", written({**grid, **changes}, tmp_path)]) == 2
    said = [text for text in capfd.readouterr().err.splitlines() if text.startswith("dataflex: error: ")]
    assert len(said) == 1 and said[0].startswith(f"dataflex: error: {line}"), said
    assert not starts.names and not (tmp_path / "out").exists()


def test_all_mistakes_are_said_at_once(
    grid: Config, tmp_path: Path, starts: Starts, capfd: pytest.CaptureFixture[str]
) -> None:
    """Those of the file, and then those of its runs: what all have in common once."""
    wrong = {**grid, "seeds": [1, 1], "equal": "time", "baseline": {"select": "nothing"}}
    assert main(["compare", written(wrong, tmp_path)]) == 2
    said = capfd.readouterr().err
    assert [re.split("[.: ]+", line)[2] for line in said.splitlines()] == ["equal", "seeds", "baseline"]
    grid["base"]["learning_rat"] = 1
    grid["vary"]["select"] = {**VARIANTS, "los": {"name": "los", "interval": 1}}
    assert main(["compare", written(grid, tmp_path)]) == 2
    first, second = capfd.readouterr().err.splitlines()
    assert first.startswith("dataflex: error: learning_rat") and second.startswith(
        "dataflex: error: los: dataflex.select"
    )


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["GRID", "--jobs", "0"], "--jobs must be at least 1, not 0"),
        (["GRID", "--baseline", "none"], "--baseline is for finished runs; the file of a grid has its own keys"),
        (["OUT", "--jobs", "2"], "--jobs is for the file of a grid"),
        (["OUT", "--dry-run"], "--dry-run is for the file of a grid"),
        (["OUT"], "OUT: there is no such directory"),
        (["nowhere.yaml"], "no such configuration file: nowhere.yaml"),
    ],
)
def test_bad_options_are_one_line(
    grid: Config, tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], line: str
) -> None:
    names = {"GRID": written(grid, tmp_path), "OUT": str(tmp_path / "out")}
    assert main(["compare", *(names.get(word, word) for word in arguments)]) == 2
    assert capfd.readouterr().err == f"dataflex: error: {line.replace('OUT', names['OUT'])}\n"


def test_several_nodes_are_refused(
    grid: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NNODES", "2")
    assert main(["compare", written(grid, tmp_path)]) == 2
    assert [line.split(":")[2].strip() for line in capfd.readouterr().err.splitlines()] == ["NNODES"]


def test_ray_that_is_not_installed_is_one_line(
    grid: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("USE_RAY", "1")
    monkeypatch.setattr("dataflex.base.processes.on_ray.find_spec", lambda name: None)
    assert main(["compare", written(grid, tmp_path)]) == 2
    line = "USE_RAY: the package ray is not installed; it comes with the extra ray (dataflex[ray])"
    assert capfd.readouterr().err == f"dataflex: error: {line}\n"


def test_every_place_has_gpus_of_its_own() -> None:
    assert places(2, None, ()) == places(2, None, ("3",)) == [{}, {}]
    found = places(2, 2, ("0", "1", "5", "6"))
    assert [place["CUDA_VISIBLE_DEVICES"] for place in found] == ["0,1", "5,6"]
    with pytest.raises(ConfigError, match="--jobs: 4 GPUs are visible, and every run would take all of them"):
        places(2, None, ("0", "1", "2", "3"))
    with pytest.raises(ConfigError, match="--gpus: 3 runs with 2 GPUs each need 6, and 4 are visible"):
        places(3, 2, ("0", "1", "2", "3"))


# -- running -----------------------------------------------------------------------------------------------------------


def test_a_grid_is_trained_and_compared(
    grid: Config, tmp_path: Path, starts: Starts, capfd: pytest.CaptureFixture[str]
) -> None:
    """Side by side. The table holds what the runs' own files say; what is done is not done again; nothing is overwritten."""
    out, file = tmp_path / "out", written(grid, tmp_path)
    assert main(["compare", file, "--dry-run", "--json"]) == 0
    plan = json.loads(capfd.readouterr().out)["runs"]
    assert [run["run"] for run in plan][:3] == ["none, seed 0", "random, seed 0", "loss, seed 0"]
    assert {run["steps"] for run in plan} == {6} and plan[2]["settings"]["dataflex.select.name"] == "loss"
    assert not starts.names and not out.exists()

    assert main(["compare", file, "--jobs", "2"]) == 0
    assert sorted(starts.names) == sorted(run["run"] for run in plan)
    shown = capfd.readouterr()
    assert "Held-out loss/mean" in shown.out and "6 of 6 runs are done" in shown.err
    found = comparison(out)
    losses: dict[str, list[float]] = {}
    for name in VARIANTS:
        for seed in (0, 1):
            results = json.loads((out / name / f"seed-{seed}" / "all_results.json").read_text())
            losses.setdefault(name, []).append(
                (results["eval_code_heldout_loss"] + results["eval_docs_heldout_loss"]) / 2
            )
            own = found["methods"][name]["runs"][str(seed)]
            assert own["metrics"]["loss/code_heldout"] == results["eval_code_heldout_loss"]
            assert 0 <= own["seconds"] - results["train_runtime"] < 1  # the log knows whole seconds
            assert own["steps"] == 6
    assert list(found["metrics"]) == ["loss/mean", "loss/code_heldout", "loss/docs_heldout"]
    table = found["metrics"]["loss/mean"]
    for name in ("random", "loss"):
        expected = stats.ttest_rel(losses[name], losses["none"])
        assert table[name]["difference"]["p"] == pytest.approx(expected.pvalue, rel=1e-6)
        assert table[name]["difference"]["mean"] == pytest.approx(np.mean(losses[name]) - np.mean(losses["none"]))
    assert "difference" not in table["none"]
    assert "| none | 2 |" in (out / "RESULTS.md").read_text() and "by DataFlex" in (out / "report.html").read_text()

    starts.names.clear()
    assert main(["compare", file, "--json"]) == 0
    again = capfd.readouterr()
    assert (
        not starts.names
        and "6 of 6 runs are done" in again.err
        and json.loads(again.out)["metrics"] == found["metrics"]
    )

    shutil.rmtree(out / "loss" / "seed-1")  # a run that was removed is run again, and is the same run
    assert main(["compare", file]) == 0
    assert starts.names == ["loss, seed 1"] and without_times(comparison(out)) == without_times(found)

    starts.names.clear()
    capfd.readouterr()
    changed = {**grid, "base": {**grid["base"], "learning_rate": 2e-3}}
    assert main(["compare", written(changed, tmp_path)]) == 2
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 6 and not starts.names  # one line a run
    assert said[0].startswith(
        f"dataflex: error: output_dir: {out}/none/seed-0 was made with learning_rate: 0.001, and the"
    )

    runs = [str(out / name / f"seed-{seed}") for name in ("none", "loss") for seed in (0, 1)]
    assert main(["compare", *runs, "--json"]) == 0  # the same runs by themselves
    by_runs = json.loads(capfd.readouterr().out)["metrics"]["loss/mean"]["loss"]["difference"]
    assert by_runs["p"] == table["loss"]["difference"]["p"] and by_runs["p_holm"] == by_runs["p"]
    assert main(["compare", str(out), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["metrics"] == found["metrics"]


def test_a_failed_run_is_one_line_and_the_others_go_on(
    grid: Config, tmp_path: Path, starts: Starts, capfd: pytest.CaptureFixture[str]
) -> None:
    starts.hooks["random, seed 0"] = ["kill_after:2"]
    file = written(grid, tmp_path)
    assert main(["compare", file]) == 1
    said = capfd.readouterr().err
    failed = [line for line in said.splitlines() if ": failed with " in line]
    assert len(failed) == 1 and failed[0].startswith("dataflex: random, seed 0: failed with status 137: ")
    assert "random: no results of seed 0" in said and len(starts.names) == 6
    table = comparison(tmp_path / "out")["metrics"]["loss/mean"]
    assert table["random"]["seeds"] == 1 and "one seed cannot tell" in table["random"]["verdict"]
    assert table["loss"]["difference"]["pairs"] == 2
    starts.hooks.clear()
    starts.names.clear()
    assert main(["compare", file]) == 0 and starts.names == ["random, seed 0"]
    assert comparison(tmp_path / "out")["metrics"]["loss/mean"]["random"]["seeds"] == 2


# -- the example and the page ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_example_of_the_guide_is_trained_and_compared(ground: Path, tmp_path: Path, starts: Starts) -> None:
    """As it stands but for paths, steps and seeds; the guide quotes it, and shows a table of this form."""
    text = (ROOT / "examples" / "demo" / "compare.yaml").read_text(encoding="utf-8")
    config, guide = yaml.safe_load(text), (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
    quoted = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", guide, re.S)[0])
    assert quoted == {key: value for key, value in config.items() if key != "base"}
    base = config["base"]
    assert base["model_name_or_path"] == "./dataflex-demo/model" and base["dataset_dir"] == "./dataflex-demo/data"
    base |= {"model_name_or_path": str(ground / "model"), "dataset_dir": str(ground / "data"), "max_steps": 9}
    out = tmp_path / "out"
    assert main(["compare", written({**config, "output_dir": str(out), "seeds": [0, 1]}, tmp_path)]) == 0
    assert len(starts.names) == 6
    results = (out / "RESULTS.md").read_text(encoding="utf-8")
    for title in comparison(out)["metrics"]:
        assert f"## Held-out {title}" in results
    rows = re.findall(r"^\| (\w+) \|.*\|$", results, re.M)
    shown = re.findall(r"^    (none|random|longest)  ", guide, re.M)
    assert set(rows) == {"method", "none", "random", "longest"} and set(shown) == {"none", "random", "longest"}


def test_the_page_has_the_tables_on_top(base: Config, tmp_path: Path, starts: Starts) -> None:
    grid = {"base": {**base, **HELD_OUT, "max_steps": 2}, "output_dir": str(tmp_path / "out"), "seeds": [0],
            "vary": {"learning_rate": [1e-3, 1e-2]}}  # fmt: skip
    assert main(["compare", written(grid, tmp_path)]) == 0
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    table, runs = text.index("Held-out loss/mean"), text.index("<h3>Runs</h3>")
    assert table < runs and "one seed cannot tell an effect from noise" in text
    assert "learning_rate=0.01, seed 0" in text[runs:]


def test_metrics_of_a_finished_model_are_read(base: Config, tmp_path: Path, starts: Starts) -> None:
    """From `dataflex/evaluation.json`, once it is there; without it they are named as missing."""
    grid = {"base": {**base, **HELD_OUT, "max_steps": 2}, "output_dir": str(tmp_path / "out"), "seeds": [0, 1],
            "vary": {"learning_rate": [1e-3, 1e-2]}, "metrics": ["accuracy", "loss/code_heldout"]}  # fmt: skip
    file, out = written(grid, tmp_path), tmp_path / "out"
    assert main(["compare", file]) == 0
    found = comparison(out)
    assert list(found["metrics"]) == ["loss/code_heldout"] and found["remarks"][0].startswith(
        "metrics: no run has 'accuracy'"
    )
    for rate, right in (("0.001", 0.2), ("0.01", 0.4)):
        for seed in (0, 1):
            folder = out / f"learning_rate={rate}" / f"seed-{seed}" / "dataflex"
            folder.mkdir(exist_ok=True)
            measured = {"accuracy": {"sums": right * (1 + 0.01 * seed), "words": 0.1}, "exact_match": {"sums": 0.0}}
            (folder / "evaluation.json").write_text(json.dumps(measured))
    starts.names.clear()
    assert main(["compare", file]) == 0 and not starts.names
    found = comparison(out)
    assert list(found["metrics"]) == ["accuracy/mean", "loss/code_heldout", "accuracy/sums", "accuracy/words"]
    row = found["metrics"]["accuracy/sums"]["learning_rate=0.01"]
    assert row["verdict"].startswith("higher (better) by 0.201 (p = 0.0032") and row["difference"][
        "mean"
    ] == pytest.approx(0.201)
    assert found["metrics"]["accuracy/words"]["learning_rate=0.01"]["verdict"] == "equal in every seed"


def test_runs_by_themselves_are_grouped_by_what_differs(
    base: Config, tmp_path: Path, starts: Starts, capfd: pytest.CaptureFixture[str]
) -> None:
    """Runs of `train`: with a block by what they have recorded, without one by the names of their directories."""
    keys = {**base, **HELD_OUT, "do_eval": True, "max_steps": 3}
    running = []
    for seed in (1, 2):
        own = {**keys, "seed": seed}
        for name, interval in (("short", 2), ("long", 3)):
            select = {"name": "random", "interval": interval}
            running.append(start({**own, "dataflex": {"select": select}}, tmp_path / f"{name}{seed}"))
        running.append(start(own, tmp_path / f"plain-{seed}"))
    for result in train_all(*running):
        assert result.ok
    runs = {kind: [str(tmp_path / f"{kind}{seed}") for seed in (1, 2)] for kind in ("short", "long", "plain-")}
    assert main(["compare", *runs["short"], *runs["long"], "--json", "--out", str(tmp_path / "compared")]) == 0
    methods = json.loads(capfd.readouterr().out)["methods"]
    assert list(methods) == ["short", "long"] and list(methods["short"]["runs"]) == ["1", "2"]
    assert methods["long"]["baseline"] == "short" and (tmp_path / "compared" / "report.html").is_file()
    assert main(["compare", *runs["plain-"], *runs["long"], "--baseline", "select random", "--json"]) == 0
    methods = json.loads(capfd.readouterr().out)["methods"]
    assert {name: method["baseline"] for name, method in methods.items()} == dict.fromkeys(
        ["plain", "select random"], "select random"
    )
    shutil.copytree(tmp_path / "long1", tmp_path / "twin")
    shutil.copytree(tmp_path / "plain-1", tmp_path / "nameless")
    (tmp_path / "plain-2" / "all_results.json").unlink()
    for chosen, line in (
        (runs["short"], "these runs differ in nothing but their seeds"),
        (
            [*runs["short"], *runs["long"], "--baseline", "shorter"],
            "--baseline: there is no method 'shorter'; did you",
        ),
        (
            [*runs["short"], *runs["long"], str(tmp_path / "twin")],
            f"{tmp_path / 'twin'} and {tmp_path / 'long1'} are runs of",
        ),
        (
            [*runs["long"], str(tmp_path / "nameless")],
            f"{tmp_path / 'nameless'}: a run without a dataflex block keeps no",
        ),
        ([*runs["long"], runs["plain-"][1]], f"{tmp_path / 'plain-2'}: there is no all_results.json"),
    ):
        assert main(["compare", *chosen]) == 2
        assert capfd.readouterr().err.startswith(f"dataflex: error: {line}")
