"""Every file of `examples/` does what it says, and what the documentation quotes is what is there."""

from __future__ import annotations

import json
import re
import runpy
import tomllib
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from harness import start, train_all

from dataflex import Mixer, Order, SelectionContext, Selector, Weighter
from dataflex.components import registry
from dataflex.config import load, load_offline, parse
from dataflex.config.doremi import load_doremi
from dataflex.config.evaluate import load_evaluate

ROOT = Path(__file__).parents[1]
COMPARE = ROOT / "examples" / "demo" / "compare.yaml"  # a grid, which test_compare.py trains
DEMO = [path for path in sorted((ROOT / "examples" / "demo").glob("*.yaml")) if path != COMPARE]
REAL = sorted((ROOT / "examples" / "real").glob("*.yaml"))
EXTENSION = ROOT / "examples" / "extension"
STEPS = 13
# Ledger lines of 13 steps: the first stage and one a decision, and one an evaluation by domain (at its step, at the last step and
# after training); a run that is only weighted decides nothing about data, but has a line for every look at a target.
LINES = {
    "select_random": 1 + 2, "select_loss": 1 + 2, "select_less": 1 + 2, "select_icons": 1 + 2, "select_cluster_less": 1 + 2,
    "select_nice": 1 + 2, "select_greats": 1 + 7, "mix_static": 1, "mix_random": 1 + 2, "mix_odm": 1 + 4, "weight_loss": 0,
    "select_rds": 1 + 2, "select_near": 1 + 2, "select_tsds": 1 + 2, "select_delta_loss": 1 + 2, "select_token_length": 1 + 1,
    "select_coincide": 1 + 2,
    "mix_uniform": 1, "mix_proportional": 1, "mix_temperature": 1, "mix_ado": 1 + 4, "mix_doremi": 1 + 13, "mix_doge": 1 + 4,
    "weight_adapt": 2, "weight_joint_update_aware": 2, "weight_rho1": 0, "weight_focal": 0, "weight_product": 0,
    "mix_loss_gap": 1 + 2 + 3, "mix_aioli": 1 + 4, "mix_schedule": 1 + 1, "mix_file": 1, "mix_replay": 1 + 3,
    "all_three": 1 + 1 + 4, "flat_1_1_0": 1 + 2, "extension": 1 + 2 + 4 + 3, "mix_stream": 1 + 4, "weight_domain": 1,
    "weight_column": 0, "target_and_mix": 1 + 2 + 4, "domains_column": 1 + 4,
    "order_sorting": 1 + 1, "order_folding": 1 + 1, "order_zigzag": 1 + 1, "order_segment": 1 + 1, "order_stair": 1 + 1,
    "order_saw": 1 + 2, "order_shuffle": 1 + 1, "order_column": 1 + 1, "order_composed": 1 + 1 + 4 + 3,
}  # fmt: skip


def name(path: Path) -> str:
    return path.stem


# Of the orders, which differ in their shape alone, one by a file's column and one beside the others are enough each time.
LONG = [f"order_{shape}" for shape in ("folding", "zigzag", "segment", "stair", "shuffle", "sorting")]


@pytest.mark.parametrize(
    "path", [pytest.param(path, marks=pytest.mark.slow) if path.stem in LONG else path for path in DEMO], ids=name
)
def test_demo_examples_train(path: Path, ground: Path, tmp_path: Path) -> None:
    """As they stand but for the paths and the number of steps."""
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert Path(config["model_name_or_path"]) == Path("dataflex-demo/model")  # where `dataflex-cli demo` puts them
    assert Path(config["dataset_dir"]) == Path("dataflex-demo/data")
    assert config["output_dir"] == f"runs/{path.stem}"
    config |= {"model_name_or_path": str(ground / "model"), "dataset_dir": str(ground / "data"), "disable_tqdm": True}
    if "dataflex" in config:
        config["dataflex"]["total_steps"] = STEPS
        for _, spec in slots_of(config):
            if "reference_model_path" in spec:
                assert Path(spec["reference_model_path"]) == Path("dataflex-demo/model")
                spec["reference_model_path"] = str(ground / "still")
    else:
        config["train_step"] = STEPS
    run = train_all(start(config, tmp_path / "run", hooks=["extension_example"]))[0]
    assert [r["step"] for r in run.ok.history()] == [3, 6, 9, 12]
    assert len(run.ledger()) == LINES[path.stem]
    scalars = {key.split("/")[1] for records in run.scalars().values() for key in records}
    slots = set(config.get("dataflex", {"select": {}})) - {"total_steps", "domains"}
    expected = {"select": {"selection", "realized"}, "mix": {"proportion", "realized"}, "weight": {"weight"}}
    expected["order"] = {"order", "realized"}
    assert set().union(*(expected[slot] for slot in slots)) <= scalars


def test_the_corpus_that_names_its_sources_is_mixed(ground: Path, tmp_path: Path) -> None:
    """`examples/slimpajama`: its own corpus and configuration, on the tiny model and for fewer steps."""
    found = runpy.run_path(str(ROOT / "examples" / "slimpajama" / "run.py"))
    config = yaml.safe_load((ROOT / "examples" / "slimpajama" / "train.yaml").read_text(encoding="utf-8"))
    found["write_corpus"](tmp_path / "data")
    config |= {"model_name_or_path": str(ground / "model"), "dataset_dir": str(tmp_path / "data"), "disable_tqdm": True}
    config["dataflex"]["total_steps"] = STEPS
    (run,) = train_all(start(config, tmp_path / "run"))
    domains = config["dataflex"]["domains"]
    names = [*domains["keep"], domains["other"].replace("merge", "other")]
    record = yaml.safe_load((run.ok.out / "dataflex" / "config.yaml").read_text())
    assert list(record["domains"]) == names and record["left_out"]["meta.quality min 2"] > 0
    assert all(f"dataflex/proportion/{name}" in run.scalars()[10] for name in names)
    results = json.loads((run.out / "eval_results.json").read_text())
    assert all(f"eval_dataflex/loss/{name}" in results for name in names)


def test_every_component_has_a_demo_example() -> None:
    """And one to start from for real. The model of the demonstration is no mixture of experts."""
    for slot, (table, _, _) in registry.FAMILIES.items():
        for files, missing in ((DEMO, {"dynamic_moe"}), (REAL, set[str]())):
            configs = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in files]
            used = {spec.get("name") for config in configs for s, spec in slots_of(config) if s == slot}
            assert set(table.values()) <= {table[name] for name in (used | missing) & set(table)}


def slots_of(config: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Each component of the block, with the key it stands under; there may be several weighters."""
    block = config.get("dataflex", {})
    given = {slot: block[slot] for slot in registry.FAMILIES if slot in block}
    return [(slot, spec) for slot, specs in given.items() for spec in (specs if isinstance(specs, list) else [specs])]


@pytest.mark.parametrize("path", REAL, ids=name)
def test_real_examples_are_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every key, of ours and of LLaMA-Factory, every component and every data set; nothing is loaded."""
    from dataflex.base.checks.arguments import check_arguments

    monkeypatch.chdir(ROOT)
    block = yaml.safe_load(path.read_text(encoding="utf-8")).get("dataflex", {})
    if "doremi" in block:
        runs = load_doremi([str(path.relative_to(ROOT))])
        assert runs.steps == ("reference", "proxy", "final") and runs.output_dir == Path(f"runs/real/{path.stem}")
        for checked in runs.checked():
            check_arguments(checked)
        return
    if path.stem == "evaluate":
        check_arguments(load_evaluate([str(path.relative_to(ROOT))]))
        return
    offline = "offline" in block
    run = (load_offline if offline else load)([str(path.relative_to(ROOT))])
    assert run.dataflex is not None and run.notices == ()
    check_arguments(run)
    assert run.llamafactory["output_dir"] == f"runs/real/{path.stem}"


@pytest.mark.parametrize(
    ("flat", "nested"), [("demo/flat_1_1_0", "demo/select_loss"), ("real/flat_1_1_0_lora", "real/mix_odm_lora")]
)
def test_flat_examples_mean_what_they_say(flat: str, nested: str) -> None:
    """The flat file and the one it names make the same decisions at the same steps."""
    one, other = (load([str(ROOT / "examples" / f"{stem}.yaml")]).dataflex for stem in (flat, nested))
    assert one is not None and other is not None
    if flat == "real/flat_1_1_0_lora":  # its first lines say so
        assert other.mix is not None
        other = replace(other, mix=replace(other.mix, component=replace(other.mix.component, reward="averaged")))
    assert (one.total_steps, one.select, one.mix, one.weight) == (
        other.total_steps,
        other.select,
        other.mix,
        other.weight,
    )


# -- the extension ---------------------------------------------------------------------------------------------------

PROJECT = tomllib.loads((EXTENSION / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The package, and the component of the README as hardest.py."""
    (tmp_path / "hardest.py").write_text("".join(fences(ROOT / "README.md", "python")), encoding="utf-8")
    for folder in (EXTENSION / "src", tmp_path):
        monkeypatch.syspath_prepend(str(folder))


def test_the_extension_works_by_entry_point(importable: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of its pyproject.toml, as an installation would register it."""
    groups = {
        group: [EntryPoint(name=n, value=v, group=group) for n, v in table.items()]
        for group, table in PROJECT["entry-points"].items()
    }
    assert set(groups) == {f"dataflex.{family}" for _, _, family in registry.FAMILIES.values()}
    monkeypatch.setattr(registry, "entry_points", lambda group: groups.get(group, []))
    block = {
        "select": {"name": "curriculum", "interval": 5, "first_share": 0.5},
        "mix": {"name": "progress", "interval": 5, "floor": 0.2},
        "weight": {"name": "capped", "factor": 3},
        "order": {"name": "inwards", "by": "length"},
    }
    config = parse({"stage": "sft", "do_train": True, "dataflex": block}).dataflex
    assert config is not None
    parameters = [vars(component) for component in config.components.values()]
    assert parameters == [
        {"first_share": 0.5, "growth": 4},
        {"temperature": 0.1, "smoothing": 0.5, "floor": 0.2},
        {"factor": 3.0, "decay": 0.9},
        {"low_first": True},
    ]
    assert [type(component).__mro__[1] for component in config.components.values()] == [
        Selector,
        Mixer,
        Weighter,
        Order,
    ]


def test_the_extension_passes_its_own_tests(importable: None) -> None:
    found = [
        (path.name, test)
        for path in sorted((EXTENSION / "tests").glob("test_*.py"))
        for key, test in runpy.run_path(str(path)).items()
        if key.startswith("test_")
    ]
    assert [file for file, _ in found] == ["test_mixer.py"]
    for _, test in found:
        test()


# -- the documentation -----------------------------------------------------------------------------------------------

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def fences(page: Path, language: str) -> list[str]:
    return [body for found, body in _FENCE.findall(page.read_text(encoding="utf-8")) if found == language]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_configuration_in_the_documentation_is_valid(page: Path, importable: None, tmp_path: Path) -> None:
    for text in fences(page, "yaml"):
        raw = yaml.safe_load(text)
        if "doremi" in raw.get("dataflex", {}):
            (tmp_path / "doremi.yaml").write_text(text, encoding="utf-8")
            assert len(load_doremi([str(tmp_path / "doremi.yaml")]).checked()) == 3
        elif "evaluate" in raw:
            (tmp_path / "evaluate.yaml").write_text(text, encoding="utf-8")
            assert load_evaluate([str(tmp_path / "evaluate.yaml")]).evaluate is not None
        elif {"dataflex", "train_type"} & set(raw):
            run = parse({"stage": "sft", "do_train": True, **raw})
            assert run.dataflex is not None, text


def test_the_guide_quotes_the_extension() -> None:
    """Python and TOML in docs/extending.md are passages of files in examples/extension, word for word."""
    page = ROOT / "docs" / "extending.md"
    files = [p.read_text(encoding="utf-8") for suffix in ("py", "toml") for p in EXTENSION.rglob(f"*.{suffix}")]
    quotes = [*fences(page, "python"), *fences(page, "toml")]
    assert len(quotes) >= 5
    for quote in quotes:
        assert any(quote in file for file in files), quote


def test_the_component_of_the_readme_works(importable: None) -> None:
    """Of 100 candidates, the two with the highest losses are left out and the next ten are taken."""
    (usage,) = re.findall(
        r"^`select: (\{name: .*\})`:$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    config = parse({"stage": "sft", "do_train": True, "dataflex": {"select": yaml.safe_load(usage)}}).dataflex
    assert config is not None and config.select is not None
    context = SelectionContext(
        budget=10, rows=100, step=0, update=0, updates=None, domain=None, rng=np.random.default_rng(0)
    )
    selection, _ = config.select.component.select({}, {"loss": np.arange(100.0)}, context)
    assert sorted(selection.chosen) == list(range(88, 98))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_guide_to_the_invariants_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    tests = {
        t
        for p in (ROOT / "tests").glob("test_*.py")
        for t in re.findall(r"^def (test_\w+)", p.read_text(encoding="utf-8"), re.M)
    }
    files = {p.stem for p in (ROOT / "tests").glob("test_*.py")}
    named = set(re.findall(r"`(?:test_\w+\.py::)?(test_\w+)`", text))
    assert named and named <= tests | files, sorted(named - tests)


def test_every_word_of_the_glossary_has_one_line_and_a_module_that_exists() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| (?!word|name)([\w -]+) \| (.+) \| (?:`([\w/]+\.py)`|-) \|$", text, re.MULTILINE)
    words = [word for word, _, _ in lines]
    assert len(words) > 60 and len(words) == len(set(words))
    for word, _, module in lines:
        assert not module or (ROOT / "src" / "dataflex" / module).is_file(), word


def test_the_ledger_line_of_the_guide_has_the_keys_of_a_real_one(ground: Path, base: Any, tmp_path: Path) -> None:
    (shown, *_) = [json.loads(text) for text in fences(ROOT / "docs" / "configuration.md", "json")]
    mix = {"name": "odm", "interval": 4, "proportions": [0.5, 0.3, 0.2]}
    run = train_all(start({**base, "dataflex": {"mix": mix}}, tmp_path / "run"))[0]
    line = json.loads((run.ok.out / "dataflex" / "ledger.jsonl").read_text(encoding="utf-8").splitlines()[1])
    assert shapes(shown) == shapes(line)


def shapes(value: Any) -> Any:
    """The keys of a nested record."""
    if isinstance(value, dict):
        return {key: shapes(part) for key, part in value.items()}
    return [shapes(value[0])] if isinstance(value, list) else None
