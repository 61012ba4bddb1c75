"""Two runs are one: to the bit, to rounding, or after a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness import Result, start, train, train_all


def close(a: Result, b: Result) -> None:
    """Losses to 1e-6 relative, gradient norms to 1e-4, at every step."""
    first, second = a.ok.trace(), b.ok.trace()
    assert first.keys() == second.keys() and first
    for step, (loss, norm) in second.items():
        assert first[step][0] == pytest.approx(loss, rel=1e-6), f"loss at step {step}"
        assert first[step][1] == pytest.approx(norm, rel=1e-4), f"gradient norm at step {step}"


def assert_same_continuation(resumed: Result, whole: Result, step: int) -> None:
    """Everything after `step`, and the files of the whole run, are those of the run that was not killed."""
    assert resumed.ok.trace() == whole.ok.trace()
    assert resumed.scalars() == whole.scalars()
    assert resumed.ledger() == whole.ledger()
    assert resumed.ids() == {s: i for s, i in whole.ids().items() if s >= step}
    files = [f.relative_to(whole.out) for f in sorted((whole.out / "dataflex").rglob("*.parquet"))]
    assert files == [f.relative_to(resumed.out) for f in sorted((resumed.out / "dataflex").rglob("*.parquet"))]
    for file in files:
        assert (resumed.out / file).read_bytes() == (whole.out / file).read_bytes(), file.name


def kill_and_resume(config: dict[str, Any], tmp_path: Path, kill: str, resumes_at: int, ranks: int = 1) -> None:
    whole, killed = train_all(
        start(config, tmp_path / "whole", ranks=ranks, hooks=["record_ids"]),
        start(config, tmp_path / "killed", ranks=ranks, hooks=["record_ids", kill]),
    )
    assert killed.status == [-9] * ranks
    for file in (tmp_path / "killed").glob("served-*.jsonl"):
        file.unlink()
    resumed = train(config, tmp_path / "killed", ranks=ranks, hooks=["record_ids"])
    assert_same_continuation(resumed, whole, resumes_at)


def assert_close(found: Any, expected: Any, rel: float, where: str) -> None:
    """Equal but for rounding, through dicts and lists."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_close(found[key], value, rel, f"{where}/{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for index, (a, b) in enumerate(zip(found, expected)):
            assert_close(a, b, rel, f"{where}/{index}")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=rel, abs=rel), where
    else:
        assert found == expected, where
