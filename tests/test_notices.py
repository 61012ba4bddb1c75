"""Lines of a command: their form, their level, and the rank they come from."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import Run

from dataflex import notices


@pytest.fixture(autouse=True)
def level(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(notices.LEVEL, "INFO")  # so that it is put back
    yield
    monkeypatch.undo()
    notices.configure()


def test_lines_and_errors(capsys: pytest.CaptureFixture[str]) -> None:
    notices.say("one", "two")
    notices.detail("three")
    notices.error("four\nfive")
    notices.show("six")
    said = capsys.readouterr()
    assert said.err.splitlines() == [
        "dataflex: one", "dataflex: two", "dataflex: error: four", "dataflex: error: five",
    ]  # fmt: skip
    assert said.out == "six\n"


def test_levels(capsys: pytest.CaptureFixture[str]) -> None:
    assert notices.take_level(["run.yaml", "-q", "seed=1"]) == ["run.yaml", "seed=1"]
    notices.say("one")
    notices.error("two")
    assert notices.take_level(["--verbose"]) == []
    notices.detail("three")
    assert capsys.readouterr().err.splitlines() == ["dataflex: error: two", "dataflex: three"]


def test_other_ranks_are_silent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "3")
    notices.say("one")
    notices.error("two")
    assert capsys.readouterr().err == "dataflex: error: two\n"


def test_a_line_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    once = notices.Once()
    for line in ("one", "two", "one"):
        once.say(line)
    assert capsys.readouterr().err.splitlines() == ["dataflex: one", "dataflex: two"]


def test_lines_go_into_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    file = io.StringIO()
    with notices.into(file):
        notices.say("one")
    notices.say("two")
    assert file.getvalue() == "dataflex: one\n" and capsys.readouterr().err == "dataflex: two\n"


def test_first_line_of_an_error() -> None:
    assert notices.first_line(ValueError("  one\ntwo")) == "ValueError: one"
    assert notices.first_line(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_quiet_and_verbose_runs(base: dict[str, Any], tmp_path: Path) -> None:
    slots = {"select": {"name": "random", "warmup": 1, "interval": 1}}

    def said(flag: str) -> str:
        out = tmp_path / flag
        out.mkdir()
        file = out / "config.yaml"
        file.write_text(yaml.safe_dump({**base, "output_dir": str(out), "max_steps": 2, "dataflex": slots}))
        return Run(["train", flag, str(file)], out, 1, [], {}).wait().ok.log

    assert "dataflex: " not in said("-q")
    verbose = said("-v")
    steps = [line.split(" {")[0] for line in verbose.splitlines() if line.startswith("dataflex: step") and " {" in line]
    assert steps == ["dataflex: step 0: start", "dataflex: step 1: select:random"]
    assert verbose.index("training example:") < verbose.index("dataflex: done")  # which is not in the log alone


def test_a_command_is_named_as_it_can_be_started_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "dataflex-cli"
    script.touch(mode=0o755)
    monkeypatch.setattr("sys.argv", [str(script), "train"])
    monkeypatch.setenv("PATH", "/nowhere")
    assert notices.program() == str(script)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert notices.program() == "dataflex-cli"
    monkeypatch.setattr("sys.argv", ["-c"])
    monkeypatch.setenv("PATH", "/nowhere")
    assert notices.program() == "dataflex-cli"
