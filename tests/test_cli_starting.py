"""`init` and `examples`: configurations to start from."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import command

from dataflex.cli.starting.init import starter
from dataflex.components.registry import FAMILIES
from dataflex.config import load

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


# -- init ------------------------------------------------------------------------------------------------------------


def test_init_writes_a_file_that_train_takes(base: dict[str, Any], tmp_path: Path) -> None:
    """But for the names of model and data, and how long and on what it trains."""
    made = command("init", cwd=tmp_path)
    assert (made.returncode, made.stderr) == (0, "")
    assert (
        made.stdout
        == "wrote dataflex.yaml; name your model and data sets in it, then: dataflex-cli train dataflex.yaml\n"
    )
    keys = ("model_name_or_path", "dataset_dir", "dataset")
    ended = command(
        "train", "dataflex.yaml", *(f"{key}={base[key]}" for key in keys), "max_steps=2", "dataflex.select.interval=1",
        "use_cpu=true", "per_device_train_batch_size=2", "cutoff_len=64", cwd=tmp_path,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert (tmp_path / "runs" / "dataflex" / "dataflex" / "ledger.jsonl").is_file()


ANY = [
    (family, name)
    for family, (names, _, _) in FAMILIES.items()
    for name in names
    if (family, name) not in (("mix", "file"), ("mix", "replay"))  # which read a file that must be there
]


@pytest.mark.parametrize("family, name", ANY)
def test_init_with_any_component(family: str, name: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(starter(file, {family: name}))
    run = load([str(file)])
    assert run.dataflex is not None and run.llamafactory["output_dir"] == "runs/mine"
    also = {"mix"} if name == "domain" else set()  # it must know the data set of a row
    assert run.dataflex.components.keys() == {family} | also


def test_init_with_three_components(tmp_path: Path) -> None:
    made = command("init", "deep/all.yaml", "--select", "rds", "--mix", "odm", "--weight", "loss", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    run = load([str(tmp_path / "deep" / "all.yaml")])
    assert run.dataflex is not None and list(run.dataflex.components) == ["select", "mix", "weight"]


def test_init_writes_over_nothing_without_force(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("mine")
    refused = command("init", "mine.yaml", cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "dataflex: error: mine.yaml is there already; --force writes over it\n"
    assert (tmp_path / "mine.yaml").read_text() == "mine"
    assert command("init", "mine.yaml", "--force", cwd=tmp_path).returncode == 0
    assert "dataflex:" in (tmp_path / "mine.yaml").read_text()
    unknown = command("init", "other.yaml", "--mix", "odn", cwd=tmp_path)
    assert unknown.returncode == 2 and "unknown mixer 'odn'; did you mean 'odm'?" in unknown.stderr
    assert command("init", "other.txt", cwd=tmp_path).returncode == 2
    assert not (tmp_path / "other.yaml").exists() and not (tmp_path / "other.txt").exists()


# -- examples --------------------------------------------------------------------------------------------------------


def test_examples_are_listed_with_their_first_line() -> None:
    ended = command("examples")
    assert (ended.returncode, ended.stderr) == (0, "")
    listed = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in ended.stdout.splitlines())
    files = {path.relative_to(EXAMPLES).with_suffix("").as_posix(): path for path in EXAMPLES.glob("*/*.yaml")}
    assert listed.keys() == files.keys()
    for name, path in files.items():
        assert path.read_text(encoding="utf-8").startswith(f"# {listed[name]}\n")


@pytest.mark.parametrize(
    "name", ["select_loss", "demo/select_loss", "demo/select_loss.yaml", "examples/demo/select_loss.yaml"]
)
def test_an_example_is_printed(name: str) -> None:
    ended = command("examples", name)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == (EXAMPLES / "demo" / "select_loss.yaml").read_text(encoding="utf-8")


def test_a_copied_example_brings_what_it_names(tmp_path: Path) -> None:
    """Read from a folder with no `examples` in it."""
    made = command("examples", "real/mix_file_full", "--copy", "mine", cwd=tmp_path)
    assert (made.returncode, made.stderr) == (0, "")
    assert made.stdout.splitlines() == ["wrote mine/mix_file_full.yaml", "wrote mine/data", "wrote mine/mixture.json"]
    config = yaml.safe_load((tmp_path / "mine" / "mix_file_full.yaml").read_text())
    assert (config["dataset_dir"], config["dataflex"]["mix"]["path"]) == ("mine/data", "mine/mixture.json")
    assert "dataflex-cli train mine/mix_file_full.yaml" in (tmp_path / "mine" / "mix_file_full.yaml").read_text()
    for name in ("data/dataset_info.json", "mixture.json"):
        assert (tmp_path / "mine" / name).read_bytes() == (EXAMPLES / "real" / name).read_bytes()
    again = command("examples", "real/mix_file_full", "--copy", "mine", cwd=tmp_path)
    assert (again.returncode, again.stdout) == (2, "") and "is there already" in again.stderr


def test_what_examples_refuses() -> None:
    unknown = command("examples", "select_los")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert unknown.stderr == "dataflex: error: unknown example 'select_los'; did you mean 'select_loss'?\n"
    unnamed = command("examples", "--copy", "somewhere")
    assert unnamed.returncode == 2 and "--copy needs the name of an example" in unnamed.stderr


# -- make ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "extra", "ends"), [("demo", ".", "demo"), ("demo-real", ".[demo]", "demo dataflex-demo-real --real")]
)
def test_make_installs_in_silence_and_shows_the_demonstration(
    target: str, extra: str, ends: str, tmp_path: Path
) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    env = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    planned = subprocess.run(
        ["make", "-n", target], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    ).stdout
    installs = re.findall(r"(?:\$uv pip|-m pip) install (.*) -e '(.*)'", planned)
    assert [what for _, what in installs] == [extra, extra]  # uv, and pip where uv fails
    assert all("--quiet" in options.split() for options, _ in installs)
    assert planned.splitlines()[-1] == f".venv/bin/dataflex-cli {ends}"
