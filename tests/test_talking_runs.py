"""What a run prints, through the real command line: in a file, on a terminal, on two ranks."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from harness import Run, plain, start, train
from terminals import shown, train_on_terminal

Config = dict[str, Any]

_MASKS = (
    (r"\d+(\.\d+)? s\b|\d+ min\b", "T"),
    (r"loss \d+(\.\d+)?", "loss L"),
    (r"(code|>) \d\.\d+", r"\1 L"),
    (r"\d+ % as last time", "N % as last time"),
    (r"(loading|training|selecting|mixing|evaluating|saving) <?\d+ %", r"\1 N %"),
    (r"  T left", ""),  # of the first step nothing is known yet
)

LINES = """
log       OUT/dataflex/run.log has what the libraries print
model     model: 51,488 parameters, all of them trained (full)
data      code 60 rows (1,844 tokens) | docs 60 rows (1,624 tokens) | arithmetic 60 rows (1,440 tokens)
held out  code 10 rows
steps     6 of 4 rows (4 per device x 1 x 1 rank)
select    loss: before steps 0, 3
mix       schedule: before step 2; at first code .20  docs .50  arithmetic .30
also      evaluate every 3 steps, save every 3 steps
step 0  select loss: 90 of 180 rows | code 33 % docs 33 % arithmetic 33 % | T
step 1  loss L  lr 0.001
step 2  loss L  lr 0.000833
step 2  mix schedule: code .20 > .60  docs .50 > .10
step 3  loss L  lr 0.000667
step 3  evaluate: loss L | code L | T
step 3  select loss: 90 of 180 rows | code 33 % docs 33 % arithmetic 33 % | N % as last time | T
step 4  loss L  lr 0.0005
step 5  loss L  lr 0.000333
step 6  loss L  lr 0.000167
step 6  evaluate: loss L | code L | T
done      6 steps in T: loading N %, training N %, selecting N %, mixing N %, evaluating N %, saving N %
served    24 rows: code 12 (50 %)  docs 5 (21 %)  arithmetic 7 (29 %)
held out  code L > L
selected  2 times
next      dataflex-cli report OUT
"""


def masked(text: str, out: Path) -> list[str]:
    for pattern, mask in _MASKS:
        text = re.sub(pattern, mask, text)
    return [line.removeprefix("dataflex: ") for line in text.replace(str(out), "OUT").splitlines()]


def printed(run: Any) -> str:
    """By rank 0, without the log of the libraries."""
    return (run.out / "log-0.txt").read_text()


@pytest.fixture
def config(base: Config) -> Config:
    points = [[0, [0.2, 0.5, 0.3]], [2, [0.6, 0.1, 0.3]]]
    block = {
        "select": {"name": "loss", "interval": 3},
        "mix": {"name": "schedule", "points": points, "eval_dataset": {"code": "code_heldout"}},
    }
    every = {"eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 3}
    return {**base, "max_steps": 6, "eval_dataset": "code_heldout", **every, "dataflex": block}


@pytest.mark.parametrize("ranks", [1, 2])
def test_lines_in_a_file(config: Config, tmp_path: Path, ranks: int) -> None:
    """Nothing else is printed; the rest is in the log, of each rank in its own."""
    config["per_device_train_batch_size"] = 4 // ranks
    run = train(config, tmp_path / "run", ranks=ranks).ok
    expected = LINES.replace("(4 per device x 1 x 1 rank)", f"({4 // ranks} per device x 1 x {ranks} ranks)")
    expected = (LINES if ranks == 1 else expected).strip()
    assert masked(printed(run), run.out) == expected.splitlines()
    if ranks == 2:
        assert (run.out / "log-1.txt").read_text() == ""
        assert "==== dataflex" in (run.out / "dataflex" / "run.rank1.log").read_text()
    log = (run.out / "dataflex" / "run.log").read_text()
    assert log.count("training example:") == 3 and "***** train metrics *****" in log and "\r" not in log
    _check_ledger(run)
    _check_seconds(run)


def _check_ledger(run: Any) -> None:
    """Domains and overlap are those of the files of selections."""
    records = [r for r in run.ledger() if r["component"] == "select:loss"]
    tables = [pq.read_table(run.out / "dataflex" / r["decided"]["file"]) for r in records]
    chosen = [set(t["sample_id"].to_numpy()[t["selected"].to_numpy()]) for t in tables]
    expected = [None, *(len(now & before) / len(now) for before, now in pairwise(chosen))]
    assert [r["decided"]["overlap"] for r in records] == expected and 0 < expected[1] < 1
    for record, ids in zip(records, chosen):
        counts = np.bincount(np.array(list(ids)) // 60, minlength=3).tolist()
        assert record["decided"]["domains"] == dict(zip(["code", "docs", "arithmetic"], counts))


def _check_seconds(run: Any) -> None:
    """They grow, and all is more than its parts."""
    names = ("total", "loading", "selecting", "mixing", "weighing", "evaluating", "saving")
    found = [[r[f"dataflex/seconds/{n}"] for n in names] for r in run.history()]
    assert (np.diff(np.array(found), axis=0) >= 0).all()
    total, *parts = found[-1]
    assert total > sum(parts) > 0 and parts[3] == 0 and all(parts[k] > 0 for k in (0, 1, 2, 4, 5))
    logged = [json.loads(line) for line in (run.out / "trainer_log.jsonl").read_text().splitlines()]
    assert [r["remaining_time"] for r in logged if r["current_steps"] == 6][-1] == "0:00:00"
    assert {"dataflex/seconds/total", "elapsed_time"} <= logged[0].keys()


@pytest.mark.parametrize("columns", [80, 160])
def test_lines_on_a_terminal(config: Config, tmp_path: Path, columns: int) -> None:
    """One bar instead of a line per log, no trace of it in the end, and no line of ours that a narrow terminal would break
    where something can be left out."""
    del config["disable_tqdm"]
    status, said = train_on_terminal(config, tmp_path / "run", columns=columns)
    assert status == 0, said
    lines = masked("\n".join(shown(said)), tmp_path / "run")
    expected = [line for line in LINES.strip().splitlines() if not re.search(r"^step \d+  loss ", line)]
    if columns == 80:
        expected[2] = "data      code 60 rows (1,844 tokens) | and 2 more"
        expected[8] = "step 0  select loss: 90 of 180 rows | code 33 % and 2 more | T"
        expected[11] = "step 3  select loss: 90 of 180 rows | code 33 % and 2 more | N % as last time | T"
    assert lines == expected
    assert "step 1/6" in said and "training example" not in said and "\x1b[?25l" not in said


def test_a_resumed_run_appends_to_its_log(config: Config, tmp_path: Path) -> None:
    killed = train(config, tmp_path / "run", hooks=["kill_after:4"])
    assert killed.status == [-9]
    resumed = train(config, tmp_path / "run").ok
    log = (tmp_path / "run" / "dataflex" / "run.log").read_text()
    assert len(re.findall(r"^==== dataflex .*, process \d+, \d{4}-\d\d-\d\dT.* ====$", log, re.MULTILINE)) == 2
    lines = masked(printed(resumed), tmp_path / "run")
    assert "steps     6 of 4 rows (4 per device x 1 x 1 rank), from step 3 on" in lines
    assert "step 3  select loss: 90 of 180 rows | code 33 % docs 33 % arithmetic 33 % | N % as last time | T" in lines
    assert (
        "selected  2 times" in lines
        and "served    24 rows: code 12 (50 %)  docs 5 (21 %)  arithmetic 7 (29 %)" in lines
    )


def test_a_failed_run_names_its_log(config: Config, tmp_path: Path) -> None:
    config["dataflex"] = {"select": {"name": "own_components:Failing", "interval": 2}}
    run = start(config, tmp_path / "run", hooks=["own_component"]).wait()
    assert run.status == [1]
    *_, error, last = printed(run).splitlines()
    assert error.startswith("dataflex: error: ") and last == f"dataflex: {run.out}/dataflex/run.log has more"


def test_a_refused_run_leaves_no_log(config: Config, tmp_path: Path) -> None:
    config["dataflex"] = {"select": {"name": "loss", "interval": 100}}
    run = train(config, tmp_path / "run")
    assert run.status == [2] and not (run.out / "dataflex").exists()
    assert printed(run).splitlines()[-1].startswith("dataflex: error: ")


def test_quiet(config: Config, tmp_path: Path) -> None:
    status, said = train_on_terminal({**config, "disable_tqdm": False}, tmp_path / "run", columns=80, arguments=["-q"])
    assert (status, said) == (0, "")


PLAIN_LINES = """
log       OUT/dataflex/run.log has what the libraries print
model     model: 51,488 parameters, all of them trained (full)
data      code, docs, arithmetic: 180 rows
steps     6 of 4 rows (4 per device x 1 x 1 rank)
also      evaluate every 3 steps, save every 3 steps
step 1  loss L  lr 0.001
step 2  loss L  lr 0.000833
step 3  loss L  lr 0.000667
step 3  evaluate: loss L | T
step 4  loss L  lr 0.0005
step 5  loss L  lr 0.000333
step 6  loss L  lr 0.000167
step 6  evaluate: loss L | T
done      6 steps in T: loading N %, training N %, evaluating N %
next      dataflex-cli report OUT
"""


def results(out: Path) -> Config:
    """What a run leaves, by file, but for its times: the records of logs and metrics, and the bytes of models."""
    found: Config = {}
    for file in sorted(out.rglob("*")):
        name = str(file.relative_to(out))
        if file.suffix == ".safetensors":
            found[name] = file.read_bytes()
        elif file.suffix in (".json", ".jsonl"):
            found[name] = [untimed(json.loads(text)) for text in texts_in(file)]
        elif file.is_file() and not name.startswith(("dataflex/", "log-", "config.yaml")):
            found[name] = None
    return found


def texts_in(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]


def untimed(record: Any) -> Any:
    if isinstance(record, list):
        return [untimed(each) for each in record]
    if not isinstance(record, dict):
        return record
    return {k: untimed(v) for k, v in record.items() if not k.endswith(("_runtime", "_per_second", "_time"))}


def test_a_plain_run_talks_like_the_others(config: Config, tmp_path: Path) -> None:
    """And is the run of LLaMA-Factory's own command in every file."""
    config.pop("dataflex")
    run, itself = train(config, tmp_path / "run").ok, plain(config, tmp_path / "itself").wait().ok
    assert masked(printed(run), run.out) == PLAIN_LINES.split("\n")[1:-1]
    log = (run.out / "dataflex" / "run.log").read_text()
    assert "training example:" in log and "{'loss': " in log
    ours, theirs = results(run.out), results(itself.out)
    assert list(ours) == list(theirs) and len([name for name in ours if name.endswith(".safetensors")]) == 3
    for name, content in theirs.items():
        assert ours[name] == content, name


def test_a_plain_run_on_two_ranks_with_all_that_the_libraries_print(config: Config, tmp_path: Path) -> None:
    config.pop("dataflex")
    run = start(config, tmp_path / "run", ranks=2)
    found = masked(printed(run.wait().ok), run.out)
    assert (
        "steps     6 of 8 rows (4 per device x 1 x 2 ranks)" in found
        and found[-1] == "next      dataflex-cli report OUT"
    )
    assert not any("training example:" in line for line in found)
    file = run.out / "config.yaml"
    arguments = ["train", str(file), "overwrite_output_dir=true", "-v"]
    verbose = printed(Run(arguments, run.out, 1, [], {}).wait().ok)
    assert "training example:" in verbose and "{'loss': " in verbose and "dataflex: next " in verbose


def test_what_does_not_train_prints_its_results(config: Config, tmp_path: Path) -> None:
    config = {k: v for k, v in config.items() if k not in ("dataflex", "max_steps", "eval_strategy", "eval_steps")}
    run = train({**config, "do_train": False, "do_eval": True}, tmp_path / "run").ok
    assert "eval_loss" in printed(run) and not (run.out / "dataflex").exists()


def test_a_finished_run_has_nothing_left_to_do(config: Config, tmp_path: Path) -> None:
    config = {**config, "max_steps": 2, "save_steps": 2, "eval_strategy": "no", "dataflex": {"mix": {"name": "static"}}}
    train(config, tmp_path / "run").ok  # noqa: B018
    again = train(config, tmp_path / "run").ok
    line = (
        "dataflex: done      nothing is left to do: the run ended at step 2; overwrite_output_dir: true starts anew\n"
    )
    assert line in printed(again)
    anew = train({**config, "overwrite_output_dir": True}, tmp_path / "run").ok
    assert "dataflex: done      2 steps in " in printed(anew)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_selection_before_training(base: Config, tmp_path: Path, ranks: int) -> None:
    config = {k: v for k, v in base.items() if k not in ("max_steps", "logging_steps", "save_strategy")}
    config["dataflex"] = {"select": {"name": "rds", "target_dataset": "docs_heldout"}, "offline": {"budget": 20}}
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.yaml").write_text(yaml.safe_dump({**config, "output_dir": str(out)}))
    run = Run(["select", str(out / "config.yaml")], out, ranks, [], {}).wait().ok
    lines = masked(printed(run), out)
    assert lines[:4] == [
        "log       OUT/dataflex/run.log has what the libraries print",
        "model     model: 51,488 parameters, all of them trained (full)",
        "data      code 60 rows (1,844 tokens) | docs 60 rows (1,624 tokens) | arithmetic 60 rows (1,440 tokens)",
        "target    docs_heldout 10 rows",
    ]
    assert (
        all(line.startswith(("code", "docs", "arithmetic")) for line in lines[4:-1])
        and "written to OUT/rds-1" in lines[-1]
    )
    assert "training example:" in (out / "dataflex" / "run.log").read_text()


def test_a_mixer_that_is_run_for_its_proportions(base: Config, reference: Path, tmp_path: Path) -> None:
    """It decides at every step, is shown with the logs, and ends with what it found."""
    mix = {"name": "doremi", "reference_model_path": str(reference)}
    run = train({**base, "max_steps": 4, "logging_steps": 2, "dataflex": {"mix": mix}}, tmp_path / "run").ok
    lines = printed(run).splitlines()
    decided = [line for line in lines if " mix doremi: " in line]
    assert len(decided) == 2 and re.search(
        r"steps 0 to 1  mix doremi: loss weights (\w+ \.\d\d  ){2}\w+ \.\d\d$", decided[0]
    )
    assert "steps 2 to 3  mix doremi: loss weights" in decided[1] and " > " in decided[1]
    found = json.loads((run.out / "dataflex" / "proportions.json").read_text())
    shares = ", ".join(f"{name} {share:.4f}" for name, share in found.items())
    assert f"dataflex: found     proportions: {shares} (in {run.out}/dataflex/proportions.json)" in lines
