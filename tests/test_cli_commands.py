"""The tree of commands: help, how they start, completion, env, and the pages that are rendered from them."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import command, environment
from plug_ins import install, path_with, plug_in

from dataflex import __version__, shipped
from dataflex.base import environment as installation
from dataflex.cli.starting.examples import example_names
from dataflex.cli.tree import COMMANDS, grouped
from dataflex.errors import DataflexError

ROOT = Path(__file__).parents[1]
HEAVY = (
    "torch",
    "transformers",
    "llamafactory",
    "pyarrow",
    "scipy",
    "sklearn",
    "pandas",
    "pydantic",
    "omegaconf",
    "datasets",
)


@pytest.mark.parametrize("arguments", [(), ("help",), ("--help",), ("-h",)], ids=str)
def test_the_overview_names_every_command(arguments: tuple[str, ...]) -> None:
    ended = command(*arguments)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("usage: dataflex-cli COMMAND")
    for commands in grouped().values():
        for each in commands:
            assert f"  {each.name:<11} {each.summary}\n" in ended.stdout


@pytest.mark.parametrize("name", [name for name, each in COMMANDS.items() if each.module != "running.llamafactory"])
def test_every_command_explains_itself(name: str) -> None:
    ended = command(name, "--help")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith(f"usage: dataflex-cli {name}")
    assert name == "version" or "examples:\n" in ended.stdout
    assert command("help", name).stdout == ended.stdout


@pytest.mark.parametrize("name", ["train", "select", "doremi"])
@pytest.mark.parametrize("level", [(), ("-q",), ("--verbose",)], ids=str)
def test_nothing_to_run_is_the_usage_and_status_2(name: str, level: tuple[str, ...]) -> None:
    ended = command(name, *level)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"usage: dataflex-cli {name} CONFIG [key=value ...]\n"


def test_version_and_unknown_commands() -> None:
    for spelled in ("version", "-v", "--version"):
        assert command(spelled).stdout == f"dataflex {__version__}\n"
    unknown = command("trian")
    assert unknown.returncode == 2
    assert unknown.stderr == "dataflex: error: unknown command 'trian'; did you mean 'train'?\n"
    wrong = command("list", "selector")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert (
        wrong.stderr.startswith("usage: dataflex-cli list")
        and "dataflex: error: argument what: invalid" in wrong.stderr
    )


LIGHT = {
    "overview": (),
    "version": ("version",),
    "help": ("train", "--help"),
    "nothing to run": ("train",),
    "list": ("list",),
    "signals": ("list", "signals"),
    "describe a selector": ("describe", "tsds"),
    "describe a mixer": ("describe", "ado"),
    "describe a weighter": ("describe", "joint_update_aware"),
    "new": ("new", "mixer", "mine", "--package", "mine"),
    "init": ("init", "mine.yaml", "--select", "less", "--mix", "odm", "--weight", "rho1"),
    "examples": ("examples",),
    "example": ("examples", "mix_file", "--copy", "copied"),
    "completion": ("completion", "bash"),
}


@pytest.mark.parametrize("case", LIGHT)
def test_what_only_reads_imports_nothing_large(case: str, tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "dataflex", *LIGHT[case]],
        env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert ended.returncode == (2 if case == "nothing to run" else 0), ended.stderr[-2000:]
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in ended.stderr.splitlines()}
    assert "dataflex" in imported and not imported & set(HEAVY)


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    """As `dataflex-cli examples | head -1`, with a pipe that nobody reads any more."""
    running = subprocess.Popen(
        [sys.executable, "-m", "dataflex", "examples"],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert running.stdout is not None and running.stderr is not None
    running.stdout.close()
    assert (running.wait(60), running.stderr.read()) == (141, b"")
    running.stderr.close()


# -- completion ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_commands_options_and_components(shell: str) -> None:
    ended = command("completion", shell)
    assert (ended.returncode, ended.stderr) == (0, "")
    for word in (*COMMANDS, "joint_update_aware", "demo/mix_file", "family"):
        assert word in ended.stdout, word


def test_completion_names_components_of_plug_ins(tmp_path: Path) -> None:
    assert "last" in completed(tmp_path, ["describe", "l"], PYTHONPATH=plug_in(tmp_path))


def test_bash_completes(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").touch()
    assert completed(tmp_path, ["des"]) == ["describe"]
    assert completed(tmp_path, ["describe", "cluster"]) == ["cluster_less"]
    assert completed(tmp_path, ["describe", "--fam"]) == ["--family"]
    assert completed(tmp_path, ["train", "run"]) == ["run.yaml"]
    assert completed(tmp_path, ["init", "--mix", "od"]) == ["odm"]
    assert completed(tmp_path, ["completion", "z"]) == ["zsh"]


def completed(folder: Path, words: list[str], **extra: str) -> list[str]:
    """What bash offers for a line that ends in these words."""
    bash = shutil.which("bash")
    assert bash is not None
    (folder / "completion.sh").write_text(command("completion", "bash", **extra).stdout)
    line = " ".join(f"'{word}'" for word in ("dataflex-cli", *words))
    script = f"""
        source completion.sh
        COMP_WORDS=({line}); COMP_CWORD={len(words)}
        _shtab_dataflex_cli
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    ended = subprocess.run([bash, "-c", script], cwd=folder, capture_output=True, text=True, timeout=60, check=True)
    return [word.strip() for word in ended.stdout.splitlines() if word.strip()]


# -- env -------------------------------------------------------------------------------------------------------------


def test_env_names_versions_devices_and_plug_ins_and_no_secret(tmp_path: Path) -> None:
    path = plug_in(tmp_path)
    install(tmp_path, "xxhash", "99.1")
    install(tmp_path, "accelerate", "0.0.7")
    install(tmp_path, "wandb", "0.5")
    ended = command("env", PYTHONPATH=path, HF_TOKEN="hf_not_to_be_told", WANDB_API_KEY="not_to_be_told")
    assert ended.returncode == 0, ended.stderr
    first, *lines, last = ended.stdout.splitlines()
    assert (first, last) == ("```", "```")
    facts = dict(line.split(None, 1) for line in lines if not line.startswith(("plug-in", "others")))
    tested = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert facts["dataflex"] == __version__
    assert facts["Python"] == ".".join(map(str, sys.version_info[:3]))
    for name in ("torch", "transformers", "llamafactory", "peft", "deepspeed"):
        assert facts[name].partition(" ")[0].partition("+")[0] == tested[name]
    assert facts["accelerate"] == f"0.0.7 (tested: {tested['accelerate']})"
    assert f"others that differ     xxhash 99.1 ({tested['xxhash']})" in ended.stdout
    assert (
        "last-rows 1.2: select last" in ended.stdout and "broken-rows 0.1: select broken, select raises" in ended.stdout
    )
    assert facts["trackers"] == "wandb 0.5"
    assert facts["device"].startswith("CPU")
    assert "not_to_be_told" not in ended.stdout + ended.stderr and str(tmp_path) not in ended.stdout


def test_env_names_every_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    card = SimpleNamespace(name="NVIDIA H100", total_memory=80 * 2**30)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    lines = [value for name, value in installation.report() if name == "device"]
    assert lines == [f"cuda {index}: NVIDIA H100, 80 GiB, CUDA {torch.version.cuda}" for index in (0, 1)]
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1 / 0)
    assert [value for name, value in installation.report() if name == "device"] == [
        "unknown (ZeroDivisionError: division by zero)"
    ]


def test_env_says_what_is_missing(tmp_path: Path) -> None:
    """deepspeed and ray come with extras; here peft is hidden."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.metadata as metadata\n"
        "real = metadata.version\n"
        "def version(name):\n"
        "    if name == 'peft':\n"
        "        raise metadata.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "metadata.version = version\n"
    )
    assert "peft                   not installed\n" in command("env", PYTHONPATH=path_with(tmp_path)).stdout


# -- the pages -------------------------------------------------------------------------------------------------------


def test_the_pages_are_what_is_rendered() -> None:
    """docs/commands.md, and the passages of docs/components.md: `make docs` writes them."""
    for path, text in runpy.run_path(str(ROOT / "docs" / "render.py"))["rendered"]().items():
        assert path.read_text(encoding="utf-8") == text, path.name


def test_the_wheel_brings_examples_and_tested_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`setup.py` copies them to where `dataflex.shipped` looks first, and lists them for the source distribution. setuptools
    itself need not be there: what it does by itself is left out."""
    made: list[Any] = []
    build_py = type("build_py", (), {"run": lambda self: None, "get_source_files": lambda self: ["setup.py"]})
    monkeypatch.setitem(
        sys.modules, "setuptools", SimpleNamespace(setup=lambda **given: made.append(given["cmdclass"]))
    )
    monkeypatch.setitem(sys.modules, "setuptools.command", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "setuptools.command.build_py", SimpleNamespace(build_py=build_py))
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(ROOT / "setup.py"))
    build = made[0]["build_py"]()
    build.build_lib, build.editable_mode = str(tmp_path), True
    build.run()
    assert not list(tmp_path.iterdir())  # the checkout is what is imported
    build.editable_mode = False
    build.run()
    brought = tmp_path / "dataflex" / "shipped_files"
    for path in [ROOT / "constraints.txt", *(ROOT / "examples").rglob("*")]:
        if path.is_file() and "__pycache__" not in path.parts:
            assert (brought / path.relative_to(ROOT)).read_bytes() == path.read_bytes()
    assert {"setup.py", "constraints.txt", "examples/demo/select_loss.yaml"} <= set(build.get_source_files())
    monkeypatch.setattr(shipped, "_PLACES", (tmp_path / "dataflex" / "shipped_files",))
    assert "demo/select_loss" in example_names() and installation.tested_versions()["torch"]
    with pytest.raises(DataflexError, match="nothing is not part of this installation"):
        shipped.shipped("nothing")
