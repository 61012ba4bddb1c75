"""Whatever is wrong with a file, the command line says it in one line that names the key, before a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bad_input import CASES, verdict
from harness import Run, tiny_run

Config = dict[str, Any]


@pytest.fixture(scope="session")
def found(ground: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """{case: [exit status, what was printed]} of all, from one process."""
    out = tmp_path_factory.mktemp("bad")
    given = out / "given.json"
    given.write_text(json.dumps({"base": tiny_run(ground), "names": list(CASES)}))
    run = Run([], out, 1, [f"attempt_all:{given}"], {}).wait()
    assert run.status == [0], run.log[-3000:]
    return json.loads((out / "found.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_with_its_key(found: dict[str, list[Any]], case: str) -> None:
    status, said = found[case]
    assert verdict(CASES[case], status, said) == "line", said[-3000:]
