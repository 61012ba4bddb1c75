"""What components remark on: every decision's in the ledger, the first of each name in the log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness import train

from dataflex.record.remarks import Remarks

Config = dict[str, Any]


@pytest.mark.parametrize("ranks", [1, 2])
def test_remarks_of_selectors_and_mixers(base: Config, tmp_path: Path, ranks: int) -> None:
    """Beside a mixer a selector remarks on each domain; and what rank 0 remarks, every rank's ledger has."""
    select, mix = ({"name": f"own_components:{name}", "interval": 2} for name in ("Remarking", "RemarkingMixer"))
    config = {
        **base,
        "max_steps": 3,
        "per_device_train_batch_size": 4 // ranks,
        "dataflex": {"select": select, "mix": mix},
    }
    run = train(config, tmp_path / "run", ranks=ranks, hooks=["own_component"]).ok
    found = [(r["component"].rpartition(":")[2], r["step"], r["remarks"]) for r in run.ledger() if "remarks" in r]
    sizes = {"code": 60, "docs": 60, "arithmetic": 60}
    assert found == [
        ("Remarking", 0, {f"{d}.rows": f"{d}: {n} rows at step 0" for d, n in sizes.items()}),
        ("Remarking", 2, {f"{d}.rows": f"{d}: {n} rows at step 2" for d, n in sizes.items()}),
        ("RemarkingMixer", 2, {"step": "step 2"}),
    ]
    shown = [line for line in run.log.splitlines() if line.startswith(("dataflex: select:", "dataflex: mix:"))]
    lines = [f"select:own_components:Remarking: {d}: {n} rows at step 0" for d, n in sizes.items()]
    assert shown == [f"dataflex: {line}" for line in (*lines, "mix:own_components:RemarkingMixer: step 2")]


def test_a_name_is_shown_once_per_component(capsys: pytest.CaptureFixture[str]) -> None:
    remarks = Remarks()
    remarks.add("select:a", {"x": "one"})
    assert remarks.take() == {"x": "one"} and remarks.take() == {}
    remarks.add("select:a", {"x": "two", "y": "three"})
    remarks.add("mix:b", {"x": "four"})
    assert capsys.readouterr().err.splitlines() == [
        "dataflex: select:a: one", "dataflex: select:a: three", "dataflex: mix:b: four",
    ]  # fmt: skip
