"""Why a row was taken: turns and rows of the target, replayed one at a time, in training and before it, and what `show` says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from comparing import kill_and_resume
from harness import Result, start, train, train_all
from selecting import LESS, LORA, context
from test_embedding_selectors import replayed
from test_offline import select
from test_reports import command, opened
from test_stages import stage_config

from dataflex.components.contexts import Selection
from dataflex.components.selectors.less import LessSelector
from dataflex.deciding.choosing import check_reasons
from dataflex.errors import DataflexError
from dataflex.plan.plan import Domains
from dataflex.record.reasons import Reasons, Target
from dataflex.record.selection_file import SelectionRecord
from dataflex.report.page import page

Config = dict[str, Any]
REASONS = ("turn", "chosen_for", "chosen_for_row", "score_from", "score_from_row")
ANSWERED = (3, 4, 8, 9, 11)
"""Rows of the target that LLaMA-Factory keeps: the others have no answer."""
SAVING = """
from dataclasses import dataclass
import numpy as np
from dataflex.components.selectors.rds import RdsSelector

@dataclass(frozen=True, kw_only=True)
class Rds(RdsSelector):
    folder: str = ""

    def select(self, state, signals, context):
        np.savez(f"{self.folder}/{context.domain}-{context.step}.npz", ids=context.ids, **signals)
        return super().select(state, signals, context)
"""


@pytest.fixture
def aimed(base: Config, ground: Path, tmp_path: Path) -> Config:
    """Two data sets as target, one with rows that are dropped, and a selector that leaves its signals in `saved`."""
    info = json.loads((ground / "data" / "dataset_info.json").read_text())
    data = tmp_path / "data"
    data.mkdir()
    for name in ("code", "docs", "arithmetic", "code_heldout"):
        (data / info[name]["file_name"]).write_bytes((ground / "data" / info[name]["file_name"]).read_bytes())
    turns = [[{"role": "user", "content": f"What is {i} plus {i}?"}] for i in range(13)]
    for i in ANSWERED:
        turns[i].append({"role": "assistant", "content": f"The sum is {2 * i}."})
    (data / "gaps.jsonl").write_text("".join(json.dumps({"messages": t}) + "\n" for t in turns))
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    gaps = {"file_name": "gaps.jsonl", "formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags}
    (data / "dataset_info.json").write_text(json.dumps({**info, "gaps": gaps}))
    (tmp_path / "saving.py").write_text(SAVING)
    (tmp_path / "saved").mkdir()
    return {**base, **LORA, "dataset_dir": str(data), "cutoff_len": 96}


def rds(config: Config, tmp_path: Path, *target: str, **changes: Any) -> Config:
    block = {"name": "saving:Rds", "folder": str(tmp_path / "saved"), "target_dataset": list(target), "interval": 6}
    return {**config, "dataflex": {"select": {**block, **changes}}}


def unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def expected(saved: Any, sizes: tuple[int, ...], budget: int) -> tuple[dict[int, tuple[int, int, int]], np.ndarray]:
    """id -> (rank, turn, target row) of every row taken, and the closest target row of every candidate."""
    similarity = unit(saved["embedding"]) @ unit(saved["target_embedding"]).T
    ends = np.cumsum(sizes)
    parts = [slice(int(end) - size, int(end)) for end, size in zip(ends, sizes, strict=True)]
    tasks = similarity if len(parts) == 1 else np.stack([similarity[:, p].max(axis=1) for p in parts], axis=1)
    taken = {}
    for rank, (row, turn, task) in enumerate(replayed(np.argsort(-tasks.T, axis=1, kind="stable").tolist(), budget)):
        at = task if len(parts) == 1 else parts[task].start + int(similarity[row, parts[task]].argmax())
        taken[int(saved["ids"][row])] = (rank + 1, turn, at)
    return taken, similarity.argmax(axis=1)


def stored(parts: dict[str, list[int]]) -> list[tuple[str, int]]:
    """Data set and stored row of every target row."""
    return [(name, row) for name, rows in parts.items() for row in rows]


def compare(rows: list[dict[str, Any]], taken: Any, closest: np.ndarray, target: list[tuple[str, int]]) -> None:
    for index, row in enumerate(rows):
        known = taken.get(row.get("sample_id", index))
        assert (row["rank"], row["turn"]) == ((None, None) if known is None else known[:2])
        for_row = (None, None) if known is None else target[known[2]]
        assert (row["chosen_for"], row["chosen_for_row"]) == for_row
        assert (row["score_from"], row["score_from_row"]) == target[closest[index]]


def selection(run: Result, step: int) -> list[dict[str, Any]]:
    return list(pq.read_table(run.out / "dataflex" / "selections" / f"step_{step}.parquet").to_pylist())


@pytest.mark.parametrize("both", [False, True])
def test_every_turn_of_a_run_is_replayed(aimed: Config, tmp_path: Path, both: bool) -> None:
    """Rows of the target are numbered as they are stored, though some were dropped; several data sets take turns themselves."""
    parts = {"gaps": list(ANSWERED), **({"code_heldout": list(range(20))} if both else {})}
    path = [f"import_from:{tmp_path}"]
    run = train(rds(aimed, tmp_path, *parts), tmp_path / "run", hooks=path).ok
    heldout = (tmp_path / "data" / "code_heldout.jsonl").read_text().splitlines()
    if both:
        parts["code_heldout"] = list(range(len(heldout)))
    for step in (0, 6):
        saved = np.load(tmp_path / "saved" / f"None-{step}.npz")
        sizes = tuple(len(rows) for rows in parts.values())
        compare(selection(run, step), *expected(saved, sizes, 24), stored(parts))
    lines = [json.loads(line) for line in (run.out / "dataflex/selections/step_6.jsonl").read_text().splitlines()]
    rows = {row["sample_id"]: row for row in selection(run, 6)}
    assert len(lines) > 30
    for line in lines:
        row, said = rows[line["sample_id"]], line["target"]
        name = "chosen_for" if row["selected"] else "score_from"
        assert (said["dataset"], said["row"]) == (row[name], row[f"{name}_row"])
        if said["dataset"] == "gaps":
            assert (
                f"What is {said['row']} plus" in said["prompt"] and said["answer"] == f"The sum is {2 * said['row']}."
            )


def test_domains_selected_from_apart_have_turns_of_their_own(aimed: Config, tmp_path: Path) -> None:
    config = rds(aimed, tmp_path, "gaps", keep_ratio=0.3)
    config["dataflex"]["mix"] = "static"
    run = train(config, tmp_path / "run", hooks=[f"import_from:{tmp_path}"]).ok
    rows = selection(run, 6)
    for domain in ("code", "docs", "arithmetic"):
        own = [row for row in rows if row["domain"] == domain]
        saved = np.load(tmp_path / "saved" / f"{domain}-6.npz")
        assert saved["ids"].tolist() == [row["sample_id"] for row in own]
        taken, closest = expected(saved, (len(ANSWERED),), int(np.ceil(0.3 * len(own))))
        compare(own, taken, closest, stored({"gaps": list(ANSWERED)}))


def test_a_selection_before_training_says_the_same(aimed: Config, tmp_path: Path) -> None:
    config = {k: v for k, v in aimed.items() if k not in ("max_steps", "logging_steps", "save_strategy")}
    config = rds(config, tmp_path, "gaps")
    config["dataflex"]["offline"] = {"budget": 20}
    out = select(config, tmp_path / "out", hooks=(f"import_from:{tmp_path}",)).ok.out
    (file,) = out.glob("*/scores.parquet")
    taken, closest = expected(np.load(tmp_path / "saved" / "None-0.npz"), (len(ANSWERED),), 20)
    compare(pq.read_table(file).to_pylist(), taken, closest, stored({"gaps": list(ANSWERED)}))
    (found,) = opened(out).selections
    chosen = found.rows(found.first(3))
    assert [row.turn for row in chosen] == [1, 1, 1] and all(
        row.chosen_for and row.chosen_for.dataset for row in chosen
    )
    said = command("show", str(out), "--row", f"{chosen[0].domain}:{chosen[0].row}").stdout
    assert chosen[0].chosen_for is not None
    assert f"took this row as number 1, in turn 1 for row {chosen[0].chosen_for.row} of gaps." in said


def test_vectors_from_a_file_have_numbers_and_no_name(aimed: Config, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows, target = (rng.standard_normal((n, 8)).astype(np.float32) for n in (180, 5))
    np.save(tmp_path / "rows.npy", rows)
    np.save(tmp_path / "target.npy", target)
    config = {k: v for k, v in aimed.items() if k not in ("max_steps", "model_name_or_path", "save_strategy")}
    files = {"embeddings": str(tmp_path / "rows.npy"), "target_embeddings": str(tmp_path / "target.npy")}
    config["dataflex"] = {"select": {"name": "near"}, "offline": {"budget": 20, **files}}
    out = select(config, tmp_path / "out", hooks=("no_model",)).ok.out
    (file,) = out.glob("*/scores.parquet")
    similarity = unit(rows) @ unit(target).T
    taken = {row: (turn, at) for row, turn, at in replayed(np.argsort(-similarity.T, axis=1).tolist(), 20)}
    table = pq.read_table(file)
    assert "chosen_for" not in table.column_names and "score_from" not in table.column_names
    for index, row in enumerate(table.to_pylist()):
        assert (row["turn"], row["chosen_for_row"]) == taken.get(index, (None, None))
        assert row["score_from_row"] == similarity[index].argmax()


# -- what does not change them -----------------------------------------------------------------------------------------


def test_a_killed_run_and_two_ranks_say_the_same(aimed: Config, tmp_path: Path) -> None:
    """Killed and resumed, files are equal to the bit; from one checkpoint, one rank and two give the same reasons."""
    config = {**aimed, "save_strategy": "steps", "save_steps": 4}
    config["dataflex"] = {"select": {"name": "rds", "target_dataset": ["gaps", "code_heldout"], "interval": 4}}
    kill_and_resume(config, tmp_path, "kill_after:6", 4)
    resume = {**config, "resume_from_checkpoint": str(tmp_path / "whole" / "checkpoint-4")}
    one, two = train_all(
        start(resume, tmp_path / "1"),
        start({**resume, "per_device_train_batch_size": 2}, tmp_path / "2", ranks=2),
    )
    first, second = selection(one.ok, 4), selection(two.ok, 4)
    assert all(name in first[0] for name in REASONS) and sum(row["turn"] is not None for row in first) == 16
    for a, b in zip(first, second, strict=True):
        assert [a[name] for name in ("rank", *REASONS)] == [b[name] for name in ("rank", *REASONS)]


def test_less_names_the_data_set_of_its_largest_score(aimed: Config, tmp_path: Path) -> None:
    """With one data set there is nothing to tell."""
    two, one = train_all(
        *(
            start(
                {**aimed, "eval_dataset": names, "max_steps": 5, "dataflex": {"select": LESS}},
                tmp_path / str(index),
                hooks=["less_by_hand:2"] if index == 0 else [],
            )
            for index, names in enumerate(("gaps,code_heldout", "gaps"))
        )
    )
    by_hand = json.loads((two.ok.out / "by_hand.json").read_text())
    for row in selection(two, 2):
        pair = by_hand[str(row["sample_id"])]
        assert "chosen_for_row" not in row and "turn" not in row
        if abs(pair[0] - pair[1]) > 1e-3:
            name = ("gaps", "code_heldout")[int(np.argmax(pair))]
            assert row["score_from"] == name and row["chosen_for"] == (name if row["selected"] else None)
    assert not set(REASONS) & set(selection(one.ok, 2)[0])
    influence = np.array([[0.1, 0.3], [0.5, 0.2], [0.4, 0.4]])
    found, _ = LessSelector().select({}, {"target_alignment": influence}, context(3, 2))
    assert found.for_datasets and found.score_from is not None and found.score_from.tolist() == [1, 0, 0]
    assert found.chosen.tolist() == [1, 2] and found.chosen_for is not None and found.chosen_for.tolist() == [0, 0]


# -- without a run -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"turn": np.array([1])}, r"turn of own must hold 2 integers, got int64\[1\]"),
        ({"turn": np.array([0, 1])}, "turn of own must lie between 1 and "),
        ({"chosen_for": np.array([0.0, 1.0])}, r"chosen_for of own must hold 2 integers, got float64\[2\]"),
        ({"chosen_for": np.array([0, 7])}, "chosen_for of own must lie between -1 and 6, got 7"),
        ({"score_from": np.array([0, 1, -2])}, "score_from of own must lie between -1 and 6, got -2"),
    ],
)
def test_reasons_that_cannot_be_are_refused(given: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DataflexError, match=message):
        check_reasons("own", Selection(np.array([0, 1]), **given), context(3, 2), 7)
    check_reasons("own", Selection(np.array([0, 1]), chosen_for=np.array([0, 7])), context(3, 2), None)


def test_a_row_drawn_twice_keeps_its_first_reason() -> None:
    target = Target(Domains(("x", "y"), (2, 3)), np.array([5, 6, 0, 2, 4]))
    chosen = [np.array([4, 1, 4])]
    reasons = Reasons(target, np.array([1, 1, 2]), np.array([3, -1, 0]), np.array([0, 1, -1, 2, 3, 4]))
    (table,) = SelectionRecord(Domains(("a",), (6,)), chosen, np.arange(6.0), reasons=reasons).tables()
    found = table.to_pydict()
    assert found["turn"] == [None, 1, None, None, 1, None] and found["times"] == [0, 1, 0, 0, 2, 0]
    assert found["chosen_for"] == [None] * 4 + ["y", None] and found["chosen_for_row"] == [None] * 4 + [2, None]
    assert found["score_from"] == ["x", "x", None, "y", "y", "y"]
    assert found["score_from_row"] == [5, 6, None, 0, 2, 4]


# -- what people read --------------------------------------------------------------------------------------------------


def header(out: Path) -> str:
    return command("show", str(out), "--first", "3").stdout.splitlines()[1]


def test_show_says_why_and_older_files_are_read(aimed: Config, tmp_path: Path) -> None:
    config = {**aimed, "save_strategy": "steps", "save_steps": 3, "num_train_epochs": 3}
    config["dataflex"] = {"select": {"name": "rds", "target_dataset": "gaps", "interval": 6}}
    out = train(config, tmp_path / "run").ok.out
    rows = selection(Result([0], out, ""), 6)
    last = max((row for row in rows if row["selected"]), key=lambda row: row["rank"])
    said = command("show", str(out), "--step", "6", "--row", f"{last['domain']}:{last['row']}").stdout
    turn, of = last["turn"], last["chosen_for_row"]
    assert f"Step 6: rds took this row as number 24, in turn {turn} for row {of} of gaps." in said
    place = sum(row["score"] > last["score"] for row in rows) + 1
    assert re.search(rf"Its score is {last['score']:.4f}, place {place} of 180, from (row|the same)", said)
    assert f"What is {of} plus {of}?" in said
    left = next(row for row in rows if not row["selected"])
    said = command("show", str(out), "--step", "6", "--row", f"{left['domain']}:{left['row']}").stdout
    turns = max(row["turn"] or 0 for row in rows)
    assert f"left this row out.\nIts score is {left['score']:.4f}" in said
    assert f"from row {left['score_from_row']} of gaps." in said
    assert (
        f"Rows are taken in turns: {turns} times each row of the target took the closest row left, and this row never was it."
        in said
    )
    missing = command("show", str(out), "--step", "5", "--row", "code:1")
    assert missing.returncode == 2 and "--step: there is no selection at step 5" in missing.stderr

    # The life of a row: every state of it that a checkpoint has.
    folders = sorted(out.glob("checkpoint-*"), key=lambda folder: int(folder.name.removeprefix("checkpoint-")))
    seen = [pq.read_table(folder / "dataflex" / "exposure.parquet").to_pylist() for folder in folders]
    most = max(seen[-1], key=lambda row: row["times_seen"])
    states = [row for table in seen for row in table if row["sample_id"] == most["sample_id"]]
    row = next(row for row in rows if row["sample_id"] == most["sample_id"])
    life = json.loads(command("show", str(out), "--row", f"{row['domain']}:{row['row']}", "--json").stdout)
    steps = {state["last_step"]: state["last_loss"] for state in states}
    assert {found["last_step"]: found["last_loss"] for found in life["losses"]} == steps
    assert life["selections"][-1]["turn"] == row["turn"] and life["why"][0].startswith("Step 6: rds ")
    if row["selected"]:
        assert life["selections"][-1]["chosen_for"]["row"] == row["chosen_for_row"]

    words = ["row", "score", "by", "score", "taken", "as", "turn", "for", "tokens", "text"]
    assert header(out).split() == words
    text = page([opened(out)], "a run")
    assert "chosen for row " in text and "score from row " in text and "Chosen for row " in text
    for file in (out / "dataflex" / "selections").glob("*.parquet"):
        table = pq.read_table(file)
        pq.write_table(table.drop_columns([name for name in REASONS if name in table.column_names]), file)
    for file in (out / "dataflex" / "selections").glob("*.jsonl"):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps({k: v for k, v in l.items() if k != "target"}) + "\n" for l in lines))
    assert "chosen for" not in page([opened(out)], "a run")
    said = command("show", str(out), "--step", "6", "--row", f"{last['domain']}:{last['row']}").stdout
    assert "Step 6: rds took this row as number 24." in said
    assert header(out).split() == ["row", "score", "by", "score", "taken", "as", "tokens", "text"]


def test_the_margin_of_a_domain_selected_from_apart(base: Config, tmp_path: Path) -> None:
    block = {"select": {"name": "token_length", "interval": 6, "keep_ratio": 0.4}, "mix": "static"}
    out = train({**base, "max_steps": 2, "dataflex": block}, tmp_path / "run").ok.out
    (found,) = opened(out).selections
    rows = selection(Result([0], out, ""), 0)
    checked = 0
    for row, read in zip(rows, found.rows(range(len(rows))), strict=True):
        own = [other for other in rows if other["domain"] == row["domain"]]
        taken, left = ([o["score"] for o in own if o["selected"] is kind] for kind in (True, False))
        if max(left) <= min(taken):
            assert read.margin == row["score"] - (max(left) if row["selected"] else min(taken))
            checked += 1
        else:
            assert read.margin is None
    assert checked


@pytest.mark.parametrize("stage", ["pt", "pt unpacked"])
def test_texts_of_a_target_are_numbered(base: Config, ground: Path, tmp_path: Path, stage: str) -> None:
    """In pre-training, too, where what is trained on may be joined."""
    target = "docs_text"
    folder, info = ground / "data", json.loads((ground / "data" / "dataset_info.json").read_text())
    lines = (folder / info[target]["file_name"]).read_text().splitlines()
    data = tmp_path / "data"
    data.mkdir()
    for name, kept in (("trained", lines[:-12]), ("aimed", lines[-12:])):
        (data / f"{name}.jsonl").write_text("\n".join(kept) + "\n")
    entries = {name: {**info[target], "file_name": f"{name}.jsonl"} for name in ("trained", "aimed")}
    (data / "dataset_info.json").write_text(json.dumps(entries))
    config = {**stage_config(base, ground, stage), "dataset_dir": str(data), "dataset": "trained", "max_steps": 1}
    config["dataflex"] = {"select": {"name": "near", "target_dataset": "aimed", "interval": 1}}
    rows = selection(train(config, tmp_path / "run").ok, 0)
    assert {row["chosen_for"] for row in rows} == {"aimed", None} and {row["score_from"] for row in rows} == {"aimed"}
    assert {row["score_from_row"] for row in rows} <= set(range(12)) and rows[0]["score_from_row"] is not None
    assert sum(row["chosen_for_row"] is not None for row in rows) == 4


def test_rows_that_val_size_holds_out_have_no_number(base: Config, tmp_path: Path) -> None:
    config = {**base, **LORA, "val_size": 0.1, "max_steps": 1}
    config["dataflex"] = {"select": {"name": "rds", "interval": 1}}
    out = train(config, tmp_path / "run").ok.out
    rows = selection(Result([0], out, ""), 0)
    assert {row["chosen_for"] for row in rows} == {"validation", None} and "chosen_for_row" not in rows[0]
    (found,) = opened(out).selections
    for row in found.rows(range(len(rows))):
        own = row.chosen_for if row.selected else row.score_from
        assert own is not None and own.row is None and (own.text is None) == (row.text is None)


def test_a_target_of_weighters_is_none_of_the_selector(aimed: Config, tmp_path: Path) -> None:
    """`near` with a file aims at the rows of the file, whatever weighters aim at."""
    np.save(tmp_path / "near.npy", np.arange(40).reshape(20, 2))
    select_block = {"name": "near", "indices_path": str(tmp_path / "near.npy"), "interval": 1}
    config = {**aimed, "max_steps": 1, "packing": False}
    config["dataflex"] = {"select": select_block, "weight": {"name": "adapt", "target_dataset": "gaps"}}
    rows = selection(train(config, tmp_path / "run").ok, 0)
    taken = sorted((row["rank"], row["turn"], row["chosen_for_row"]) for row in rows if row["selected"])
    assert taken == [(1, 1, 0), (2, 1, 1), (3, 1, 2), (4, 1, 3)] and "chosen_for" not in rows[0]
