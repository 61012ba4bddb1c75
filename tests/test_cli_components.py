"""`list`, `describe` and `new`: what is said of components is what their classes say, and a new one runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import command, environment
from plug_ins import plug_in

from dataflex.cli.blocks import DOMAINS, block_lines
from dataflex.components.description import describe, field_docstrings, parameters, type_in_words
from dataflex.components.registry import FAMILIES, first_name, resolve
from dataflex.components.requests import REQUESTS
from dataflex.config import load

ROOT = Path(__file__).parents[1]
BUILT_IN = [(family, name) for family, (names, _, _) in FAMILIES.items() for name in names]
WORK = ("none", "text encoder", "forward", "forward and backward", "generation")


def told(family: str, name: str) -> Any:
    return describe(family, name, resolve(family, name, name))


def table(text: str) -> dict[str, list[str]]:
    """The cells of each line of a printed table, by the first."""
    rows = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if line]
    return {row[0]: row[1:] for row in rows if len(row) > 1}


# -- list ------------------------------------------------------------------------------------------------------------


def test_list_has_every_component_by_family() -> None:
    ended = command("list")
    assert (ended.returncode, ended.stderr) == (0, "")
    for block, (family, (names, _, plural)) in zip(ended.stdout.split("\n\n"), FAMILIES.items(), strict=True):
        heading, body = block.split("\n", 1)
        assert heading == f"{plural} (dataflex.{family})"
        assert list(table(body)) == ["NAME", *sorted(names)]
        assert command("list", plural).stdout == block.rstrip("\n") + "\n"
    assert table(ended.stdout)["nice"][:2] == ["generation", "target, model"]
    assert table(ended.stdout)["aioli"][:2] == ["forward", "held-out rows, model"]


def test_list_as_json_says_what_the_classes_say() -> None:
    records = json.loads(command("list", "--json").stdout)
    assert sorted((r["family"], r["name"]) for r in records) == sorted(BUILT_IN)
    for record in records:
        about = told(record["family"], record["name"])
        other = "Another name of `proportional`: " if record["name"] == "stratified" else ""
        assert record == {
            "family": about.family, "name": about.name, "package": None, "summary": other + about.summary,
            "work": about.work, "needs": list(about.needs),
        }  # fmt: skip


def test_no_two_components_are_listed_alike() -> None:
    rows = table(command("list", "mixers").stdout)
    summaries = [row[-1] for row in rows.values()]
    assert len(set(summaries)) == len(summaries)
    assert rows["stratified"][-1] == f"Another name of `proportional`: {rows['proportional'][-1]}"


def test_list_signals() -> None:
    records = json.loads(command("list", "signals", "--json").stdout)
    offered = [kind for kind in REQUESTS if kind.slots]
    assert [(r["name"], tuple(r["families"]), r["cost"]) for r in records] == [
        (kind.name, kind.slots, kind.cost) for kind in offered
    ]
    written = {record["written as"] for record in records}
    assert {'"loss"', '"train_loss"', "Embedding", "TargetAlignment", "PolicyAlignment"} <= written
    assert all(record["work"] in WORK and record["value"] for record in records)
    assert table(command("list", "signals").stdout)["loss"][:3] == ['"loss"', "select, mix, order", "forward"]


def test_components_of_plug_ins_are_listed_and_described(tmp_path: Path) -> None:
    """One that cannot be imported is listed with the reason; a name that is built in stays that of the built-in."""
    path = plug_in(tmp_path)
    found = command("list", "selectors", PYTHONPATH=path)
    assert found.returncode == 0, found.stderr
    rows = table(found.stdout)
    assert rows["last"] == ["none", "nothing", "The last rows [plug-in: last-rows 1.2]"]
    assert "a_package_that_is_not_there" in rows["broken"][-1] and "[plug-in: broken-rows 0.1]" in rows["broken"][-1]
    assert rows["raises"] == ["?", "?", "RuntimeError: no default today [plug-in: broken-rows 0.1]"]
    assert rows["rds"][-1] == told("select", "rds").summary
    page = command("describe", "last", PYTHONPATH=path).stdout
    assert page.startswith(
        "last (selector, of last-rows 1.2)\n\nThe last rows.\n\nThey are in the order of the data.\n"
    )
    assert "wanted: text; required\n      A parameter without a default.\n" in page
    assert "share: number; default 0.5; in (0, 1]\n" in page
    assert "Departures from the authors\n\n  It has no authors.\n" in page
    broken = command("describe", "broken", PYTHONPATH=path)
    assert (broken.returncode, broken.stdout) == (2, "")
    assert broken.stderr.startswith("dataflex: error: selector broken: entry point 'broken' does not load")


# -- describe --------------------------------------------------------------------------------------------------------


def test_describe_prints_all_of_it() -> None:
    page = command("describe", "less").stdout
    about = told("select", "less")
    for part in (
        "less (selector)\n", about.summary, f"Paper: {about.paper}\n", "(equation 7, at the current model)",
        "  gradient_type: adam | sgd; default adam\n", "  proj_dim: integer, or null; default null; between 1 and 16777216\n",
        "Needs: target, model\n", "a forward and backward pass over the data and the target per update\n",
        "Departures from the authors\n", "\n  select:\n    name: less\n",
    ):  # fmt: skip
        assert part in page, part
    assert "](" not in page  # a terminal follows no links


def test_describe_shows_a_name_of_two_families_twice() -> None:
    assert re.findall(r"^random \((\w+)\)$", command("describe", "random").stdout, re.MULTILINE) == [
        "selector",
        "mixer",
    ]
    (only,) = json.loads(command("describe", "random", "--family", "mix", "--json").stdout)
    assert (only["family"], only["parameters"][0]["default"]) == ("mix", 42)


def test_describe_takes_a_class(tmp_path: Path) -> None:
    extension = ROOT / "examples" / "extension" / "src"
    page = command(
        "describe", "dataflex_example.mixer:ProgressMixer", PYTHONPATH=f"{extension}{os.pathsep}{ROOT / 'src'}"
    )
    assert page.stdout.startswith("dataflex_example.mixer:ProgressMixer (mixer, of dataflex_example.mixer)\n"), (
        page.stderr
    )


@pytest.mark.parametrize(
    "arguments, line",
    [
        (("les",), "unknown component 'les'; did you mean 'less'?"),
        (("random", "--family", "weight"), "unknown weighter 'random'; choose from"),
        (("qqqqq",), "unknown component 'qqqqq'; dataflex-cli list shows all"),
        (("nowhere:Class",), "selector nowhere:Class: cannot import 'nowhere:Class'"),
    ],
)
def test_an_unknown_name_is_one_line_and_status_2(arguments: tuple[str, ...], line: str) -> None:
    ended = command("describe", *arguments)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert ended.stderr.startswith(f"dataflex: error: {line}")


@pytest.mark.parametrize("family, name", BUILT_IN)
def test_every_component_says_all_of_itself(family: str, name: str) -> None:
    about = told(family, name)
    assert 10 < len(about.summary) < 130 and not about.summary.endswith(".")
    assert about.departures and about.work in WORK
    assert (about.work == "none") <= all(cost.startswith("none") for cost in about.cost)
    for parameter in about.parameters:
        assert parameter.meaning[-1:] in (".", "?"), parameter


@pytest.mark.parametrize("family, name", BUILT_IN)
def test_every_block_is_one_that_train_accepts(
    family: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it stands, and with each comment made a key, which then says the default."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mixture.json").write_text(json.dumps(dict(zip(DOMAINS, (0.5, 0.3, 0.2), strict=True))))
    ledger = (ROOT / "examples" / "demo" / "replayed_ledger.jsonl").read_text()
    names = sorted(set(re.findall(r'"(\w+)": 0\.\d+', ledger)))
    for old, new in zip(("code", "docs", "arithmetic"), DOMAINS, strict=True):
        assert old in names
        ledger = ledger.replace(f'"{old}"', f'"{new}"')
    (tmp_path / "ledger.jsonl").write_text(ledger)
    lines = block_lines(family, name, resolve(family, name, name))
    said = [re.sub(r"^  # (\w+: )", r"  \1", line) for line in lines]
    assert (said != lines) == any(line.startswith("  #") for line in lines)
    first, second = (read(block, tmp_path) for block in (lines, said))
    assert first == second
    assert type(first.dataflex.components[family]) is resolve(family, name, name)
    assert not [notice for notice in first.notices if "no effect" in notice]


def read(block: list[str], folder: Path) -> Any:
    head = {"stage": "sft", "do_train": True, "dataset": ",".join(DOMAINS), "output_dir": "out", "max_steps": 1000}
    if block[0] == "weight:" and "  name: domain" in block:  # which must know where a row comes from
        block = [*block, "mix: {name: static}"]
    file = folder / "block.yaml"
    file.write_text(yaml.safe_dump(head) + "dataflex:\n" + "\n".join(f"  {line}" for line in block) + "\n")
    return load([str(file)])


def test_the_readme_names_the_components_there_are() -> None:
    for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines():
        found = re.match(r"\| \*\*\w+\*\* .* \| `(select|mix|weight|order)` \| (.*) \|$", line)
        if found:
            assert re.findall(r"`(\w+)`", found[2]) == sorted(FAMILIES[found[1]][0])


@pytest.mark.parametrize("family, name", BUILT_IN)
def test_the_page_and_the_module_name_the_paper_of_the_class(family: str, name: str) -> None:
    """What is written by hand: the entry's first paragraph and the first line of the module name no other number."""
    entry_name = first_name(family, name)
    page = (ROOT / "docs" / "components.md").read_text(encoding="utf-8")
    (entry,) = re.findall(rf"^### {family}: {entry_name}\n\n(.*?)\n\n", page, re.MULTILINE | re.DOTALL)
    cls = resolve(family, name, name)
    text = f"{entry} {sys.modules[cls.__module__].__doc__}".replace("\n", " ")
    paper = told(family, name).paper
    assert set(re.findall(r"arXiv (\d{4}\.\d{5})", text)) <= ({paper.arxiv} if paper else set())


def test_every_component_says_what_null_stands_for_where_it_is_the_default() -> None:
    found = {
        f"{family} {name}.{parameter.name}": parameter.of_null
        for family, name in BUILT_IN
        for parameter in told(family, name).parameters
        if parameter.default is None and not parameter.required
    }
    assert all(found.values()), found
    assert found["mix odm.reward_scale"] == "0.1 for `authors`, 15 for the others"
    assert found["select tsds.sigma"] == "from the distances in the data"  # behind what another value stands for


def test_descriptions_of_types() -> None:
    assert type_in_words(tuple[int, ...] | None) == "list of integers, or null"
    assert type_in_words(tuple[tuple[int, tuple[float, ...]], ...]) == "list of [integer, list of numbers]"
    assert type_in_words(dict[str, float]) == "mapping of text to number"


def test_a_class_without_source_is_described_without_meanings() -> None:
    scope: dict[str, Any] = {}
    exec(
        "from dataclasses import dataclass\nfrom dataflex import Weighter\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Mine(Weighter):\n    a: int\n    paper: str = 'x'\n"
        "    def weights(self, state, losses, context):\n        return losses\n",
        scope,
    )
    about = describe("weight", "mine", scope["Mine"])
    assert field_docstrings(scope["Mine"]) == {}
    assert (about.summary, about.paper) == ("", None)  # a parameter of that name is none
    assert [(p.name, p.required, p.default) for p in parameters(scope["Mine"])] == [
        ("a", True, None),
        ("paper", False, "x"),
    ]


# -- new -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["selector", "mixer", "weighter", "order"])
def test_what_new_writes_passes_its_test(kind: str, tmp_path: Path) -> None:
    made = command("new", kind, "my_own", cwd=tmp_path)
    assert (made.returncode, made.stderr) == (0, "")
    folder = tmp_path / "dataflex_my_own"
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == [
        "pyproject.toml", "src/dataflex_my_own/__init__.py", "src/dataflex_my_own/my_own.py", "tests/test_my_own.py",
    ]  # fmt: skip
    assert all(f"wrote dataflex_my_own/{file}\n" in made.stdout for file in files)
    (line,) = re.findall(r"^  (PYTHONPATH=\S+ python -m pytest \S+)$", made.stdout, re.MULTILINE)
    passed = shell(line, tmp_path)
    assert passed.returncode == 0 and "1 passed" in passed.stdout, passed.stdout
    again = command("new", kind, "my_own", cwd=tmp_path)
    assert (again.returncode, again.stdout) == (2, "")
    assert "dataflex_my_own/pyproject.toml is there already" in again.stderr


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A printed command line, with this interpreter as `python`."""
    bash = shutil.which("bash")
    assert bash is not None
    line = line.replace("PYTHONPATH=", f"PYTHONPATH={ROOT / 'src'}:").replace(" python ", f" {sys.executable} ")
    return subprocess.run(
        [bash, "-c", line], cwd=folder, env=environment(), capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_what_new_writes_trains(base: dict[str, Any], tmp_path: Path) -> None:
    """All at once, named by the paths that are printed, without an installation."""
    block, sources = {}, []
    more: dict[str, Any] = {"weight": {}, "order": {"by": "length"}}
    for kind, family in (("selector", "select"), ("mixer", "mix"), ("weighter", "weight"), ("order", "order")):
        made = command("new", kind, f"own_{kind}", "--package", str(tmp_path / kind))
        (path,) = re.findall(rf'"dataflex\.{family}\.name=(\S+)"', made.stdout)
        assert path == f"dataflex_own_{kind}.own_{kind}:Own{kind.capitalize()}"
        block[family] = {"name": path, **more.get(family, {"interval": 1})}
        sources.append(str(tmp_path / kind / "src"))
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({**base, "max_steps": 2, "output_dir": str(tmp_path / "run"), "dataflex": block}))
    ended = command("train", str(file), PYTHONPATH=os.pathsep.join([*sources, str(ROOT / "src")]))
    assert ended.returncode == 0, ended.stderr[-3000:]
    ledger = [json.loads(line) for line in (tmp_path / "run" / "dataflex" / "ledger.jsonl").read_text().splitlines()]
    acted = {line["component"] for line in ledger}
    assert any("OwnSelector" in name for name in acted) and any("OwnMixer" in name for name in acted)
    assert any("OwnOrder" in name for name in acted)
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert any("dataflex/weight/max" in record for record in history)


@pytest.mark.parametrize(
    "name, word",
    [("loss", "is built in"), ("custom", "is built in"), ("My-Own", "cannot be a name"), ("class", "cannot be a name")],
)
def test_a_name_that_cannot_be_found_later_is_refused(name: str, word: str, tmp_path: Path) -> None:
    ended = command("new", "selector", name, cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "") and word in ended.stderr
    assert not list(tmp_path.iterdir())
