"""Checkpoints on disk: one without a run, damage, and runs that refuse them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from harness import Result

from dataflex.plan.stages import Stage
from dataflex.record import completeness
from dataflex.record import snapshot as state

WHOLE = b'{"step": 0}\n{"step": 4}\n'


def assert_refused(run: Result, *words: str) -> None:
    """Exit status 2, one line of ours that holds `words`, no traceback, no model loaded."""
    assert run.status == [2] * len(run.status), run.log[-3000:]
    lines = [line for line in run.log.splitlines() if line.startswith("dataflex: error: ")]
    assert len(lines) == 1, run.log[-3000:]
    for word in words:
        assert word in lines[0], lines[0]
    assert "Traceback" not in run.log
    assert "trainable params" not in run.log


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 8
    path.write_bytes(content)


def snapshot(*stages: Stage) -> state.Snapshot:
    return state.Snapshot(
        step=8,
        position=64,
        global_batch=8,
        identity={"seed": 1, "dataset": "a,b", "dataflex.select.quantiles": [0.33, 0.66], "data_seed": None},
        stages=list(stages),
        components={
            "mix": {"turn": 3, "rewards": np.array([0.1, 1 / 3]), "name": "x", "none": None, "on": True, "f": 0.1},
            "weight": {"square": np.arange(6, dtype=np.float32).reshape(2, 3), "scalar": np.array(2.5)},
            "select": {},
        },
        parts={
            "observing": {"sums": np.full((2, 4), 1 / 3), "count": 7, "empty": np.empty((0, 2), dtype=np.int64)},
            "weights": {"dataflex/weight/token/losses": np.arange(3.0), "aimed weight[1]": 4},
        },
    )


def checkpoint(output_dir: Path, step: int) -> Path:
    folder = output_dir / f"checkpoint-{step}"
    (folder / "global_step").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"0123456789")
    (folder / "global_step" / "optimizer.pt").write_bytes(b"state")
    (folder / "unfinished.partial").write_bytes(b"of a write that was cut off")
    state.write_snapshot(folder, snapshot(), WHOLE)
    completeness.mark_complete(folder)
    completeness.mark_complete(folder)  # the mark does not count itself
    return folder
