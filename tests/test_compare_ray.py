"""A comparison whose runs are spread over a Ray cluster."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from commands import environment, kill_tree
from ray_cluster import SETTINGS
from test_compare_runs import table

Config = dict[str, Any]


def start(file: Path, address: str | None = None) -> subprocess.Popen[str]:
    on_ray = {} if address is None else {"USE_RAY": "1", "RAY_ADDRESS": address, **SETTINGS}
    return subprocess.Popen(
        [sys.executable, "-m", "dataflex", "compare", str(file), "--jobs", "2"],
        env=environment(HF_HUB_OFFLINE="1", **on_ray), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_runs_on_a_cluster_are_those_of_this_machine(base: Config, tmp_path: Path, cluster: str) -> None:
    """Stopped by SIGTERM once a run goes on, no process of it is left; the same command goes on."""
    select = {"name": "loss", "warmup": 20, "interval": 20}
    keys: Config = {
        "base": {**base, "eval_dataset": "code_heldout", "max_steps": 60, "save_strategy": "steps", "save_steps": 20},
        "vary": {"select": {"none": None, "low": {**select, "focus": "low"}, "high": {**select, "focus": "high"}}},
        "seeds": [0, 1],
    }  # fmt: skip
    files = {}
    for name in ("here", "there"):
        files[name] = tmp_path / f"{name}.yaml"
        files[name].write_text(yaml.safe_dump({"output_dir": str(tmp_path / name), **keys}))
    process = start(files["there"], cluster)
    try:
        until = time.monotonic() + 300
        while not any((tmp_path / "there").glob("none/seed-*/trainer_log.jsonl")):
            assert process.poll() is None and time.monotonic() < until, process.stderr and process.stderr.read()
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=120)[1]
        assert process.returncode == 128 + signal.SIGTERM and said.splitlines()[-1].endswith("the same command goes on")
        begin = time.monotonic()
        while [
            p for p in psutil.process_iter(["cmdline"]) if str(tmp_path / "there") in " ".join(p.info["cmdline"] or ())
        ]:
            assert time.monotonic() < begin + 60
            time.sleep(0.2)
    finally:
        kill_tree(process)
    for name, address in (("there", cluster), ("here", None)):
        process = start(files[name], address)
        try:
            said = process.communicate(timeout=600)[1]
        finally:
            kill_tree(process)
        assert process.returncode == 0, said
    assert table(tmp_path / "here") == table(tmp_path / "there")
