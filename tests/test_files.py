"""What a run writes and reads back: ledger, selections, exposure, checkpoints; and the rows it is about."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import xxhash
import yaml
from checkpoint_files import WHOLE, checkpoint, snapshot
from datasets import Dataset, Features, Sequence, Value, concatenate_datasets

from dataflex import writing
from dataflex.base.checks import nodes
from dataflex.data import rows as rows_module
from dataflex.data.rows import SAMPLE_IDS, RowCollator, Rows
from dataflex.errors import ConfigError, DataflexError
from dataflex.plan.plan import Domains, Plan
from dataflex.plan.stages import chosen_pool
from dataflex.record import completeness
from dataflex.record import snapshot as state
from dataflex.record.exposure import Exposure
from dataflex.record.ledger import EXPOSURE, LEDGER, RunFiles, read_ledger
from dataflex.record.selection_file import SelectionRecord
from dataflex.writing import write_atomically, write_table

DOMAINS = Domains(("a", "b"), (30, 20))


TORN = [b"", b"{", b'{"step": 8}', b'{"st\n', b"\x00\x00\x00\n", b"\xff\xfe\n"]


@pytest.mark.parametrize("content", [*(WHOLE + t for t in TORN), *(WHOLE[:n] for n in range(len(WHOLE)))])
def test_a_torn_last_line_is_left_out(content: bytes, tmp_path: Path) -> None:
    (tmp_path / LEDGER).write_bytes(content)
    whole_lines = min(content.count(b"\n"), 2)
    assert read_ledger(tmp_path / LEDGER) == [{"step": 0}, {"step": 4}][:whole_lines]


def test_an_atomic_write_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "file"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new" and [p.name for p in path.parent.iterdir()] == ["file"]
    seen: list[bytes] = []

    def killed(source: Any, target: Any) -> None:
        seen.append(Path(source).read_bytes() + b" over " + Path(target).read_bytes())
        raise KeyboardInterrupt

    monkeypatch.setattr(writing.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"third")
    assert seen == [b"third over new"] and path.read_bytes() == b"new"


def test_the_ledger_grows_by_one_line_a_decision(tmp_path: Path) -> None:
    writer, other = (RunFiles(tmp_path, DOMAINS, writes=writes) for writes in (True, False))
    for files in (writer, other):
        files.start({"dataflex": {"total_steps": 8}})
        files.record({"step": 0, "from": {"rows": np.array([1, 2])}, "p": np.float64(0.5), "n": np.int64(3)})
        files.record({"step": 4})
    expected = [{"step": 0, "from": {"rows": [1, 2]}, "p": 0.5, "n": 3}, {"step": 4}]
    assert read_ledger(writer.path / LEDGER) == expected
    assert (writer.path / LEDGER).read_bytes() == writer.ledger_text == other.ledger_text
    assert yaml.safe_load((writer.path / "config.yaml").read_text()) == {"dataflex": {"total_steps": 8}}
    with pytest.raises(TypeError, match="cannot write set to the ledger"):
        writer.record({"step": {1}})
    other.cut_back({}, b"", 0, tmp_path / "none")  # a rank that does not write changes no file
    other.start({})
    assert read_ledger(writer.path / LEDGER) == expected and other.ledger_text == b""


def selections(files: RunFiles) -> list[str]:
    return sorted(p.name for p in (files.path / "selections").iterdir())


def test_a_selection_says_who_was_chosen_and_why(tmp_path: Path) -> None:
    files = RunFiles(tmp_path, DOMAINS, writes=True)
    candidates = np.array([2, 29, 30, 49])
    scores = np.full(DOMAINS.total, -1.0)
    scores[candidates] = 0.5, np.nan, 2.0, 1.0
    name = files.write_selection(4, SelectionRecord(DOMAINS, [np.array([30, 2, 30])], scores, candidates))
    assert pq.read_table(files.path / name).to_pydict() == {
        "sample_id": [2, 29, 30, 49],
        "domain": ["a", "a", "b", "b"],
        "score": [0.5, None, 2.0, 1.0],
        "selected": [True, False, True, False],
        "rank": [2, None, 1, None],
        "times": [1, 0, 2, 0],  # 30 was drawn twice
    }
    unscored = files.write_selection(8, SelectionRecord(DOMAINS, [np.array([29])], None, candidates))
    assert pq.read_table(files.path / unscored)["score"].to_pylist() == [None] * 4
    assert selections(files) == ["step_4.parquet", "step_8.parquet"]
    silent = RunFiles(tmp_path / "other", DOMAINS, writes=False)
    record = SelectionRecord(DOMAINS, [candidates], None, candidates)
    assert silent.write_selection(4, record) == name and not silent.path.exists()


@pytest.mark.parametrize("saved_exposure", [True, False])
def test_a_resumed_run_is_cut_back_to_its_checkpoint(saved_exposure: bool, tmp_path: Path) -> None:
    files = RunFiles(tmp_path, DOMAINS, writes=True)
    files.start({"old": 1})
    ids = np.arange(3)
    for step in (0, 4, 8, 16):
        files.record({"step": step})
        files.write_selection(step, SelectionRecord(DOMAINS, [ids], None, ids))
    at_checkpoint = read_ledger(files.path / LEDGER)[:2]
    text = b"".join(json.dumps(r).encode() + b"\n" for r in at_checkpoint)
    (files.path / EXPOSURE).write_bytes(b"of the end")
    saved = tmp_path / "saved.parquet"
    if saved_exposure:
        saved.write_bytes(b"of step 8")

    resumed = RunFiles(tmp_path, DOMAINS, writes=True)
    resumed.cut_back({"new": 1}, text, 8, saved)
    assert selections(resumed) == ["step_0.parquet", "step_4.parquet"]
    assert (resumed.path / LEDGER).read_bytes() == resumed.ledger_text == text
    assert yaml.safe_load((resumed.path / "config.yaml").read_text()) == {"new": 1}
    exposure = resumed.path / EXPOSURE
    assert exposure.read_bytes() == b"of step 8" if saved_exposure else not exposure.exists()
    resumed.record({"step": 8})
    assert read_ledger(resumed.path / LEDGER) == [*at_checkpoint, {"step": 8}]

    files.start({})
    assert not (files.path / "selections").exists() and not exposure.exists()
    assert (files.path / LEDGER).read_bytes() == b""


def notes(rows: list[tuple[int, float, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The weight of a row is twice its loss, less one."""
    ids, losses, steps = zip(*rows, strict=True)
    found = np.array(losses, dtype=np.float32)
    return np.array(ids), found, 2 * found - 1, np.array(steps)


def touched(exposure: Exposure) -> dict[int, tuple[int, float | None, int]]:
    table = exposure.table().to_pydict()
    names = [DOMAINS.names[int(DOMAINS.of(np.array([i]))[0])] for i in table["sample_id"]]
    assert table["domain"] == names and table["sample_id"] == sorted(set(table["sample_id"]))
    weights = table.get("last_weight", [None] * len(names))
    assert weights == [None if loss is None else 2 * loss - 1 for loss in table["last_loss"]]
    values = zip(table["times_seen"], table["last_loss"], table["last_step"], strict=True)
    return dict(zip(table["sample_id"], values, strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_exposure_counts_like_a_dictionary(seed: int, tmp_path: Path) -> None:
    """Six merges of a few steps each, in any order within a merge, with a trip through a file after each."""
    rng = np.random.default_rng(seed)
    exposure, expected = Exposure(DOMAINS), dict[int, tuple[int, float | None, int]]()
    exposure.merge(*(np.empty(0, dtype=t) for t in (np.int64, np.float32, np.float32, np.int64)))
    assert touched(exposure) == {}
    step = 0
    for _ in range(6):
        rows = []
        for _ in range(int(rng.integers(1, 12))):
            step += 1
            for i in rng.choice(50, size=4, replace=False).tolist():
                loss = step / 4 if rng.random() < 0.8 else None
                rows.append((i, float("nan") if loss is None else loss, step))
                expected[i] = (expected.get(i, (0,))[0] + 1, loss, step)
        exposure.merge(*notes([rows[i] for i in rng.permutation(len(rows))]))
        assert touched(exposure) == expected
        write_table(tmp_path / EXPOSURE, exposure.table())
        exposure = Exposure(DOMAINS)
        exposure.load(tmp_path / EXPOSURE)
        assert touched(exposure) == expected


def test_exposure_does_not_depend_on_which_rank_served_a_row() -> None:
    """Row 5 is served by rank 0 at step 9 and by rank 1 at step 2: whichever is merged first, step 9 is the last."""
    ranks = [[(5, 1.5, 1), (40, 0.5, 4), (5, 2.5, 9)], [(5, 3.5, 2), (40, 0.25, 6)]]
    for order in (ranks, ranks[::-1]):
        exposure = Exposure(DOMAINS)
        for rows in order:
            exposure.merge(*notes(rows))
        assert touched(exposure) == {5: (3, 2.5, 9), 40: (2, 0.25, 6)}


def test_weights_are_recorded_where_rows_are_weighed(tmp_path: Path) -> None:
    """And a table written before they were recorded is still read."""
    exposure, losses = Exposure(DOMAINS), torch.tensor([1.0, 2.0])
    exposure.note(1, torch.tensor([3, 4]), losses)
    exposure.collect()
    assert "last_weight" not in exposure.table().column_names
    write_table(tmp_path / EXPOSURE, exposure.table())
    resumed = Exposure(DOMAINS)
    resumed.load(tmp_path / EXPOSURE)
    resumed.note(2, torch.tensor([4, 5]), losses, torch.tensor([0.5, 1.5], dtype=torch.bfloat16))
    resumed.collect()
    assert resumed.table()["last_weight"].to_pylist() == [None, 0.5, 1.5]


# -- checkpoints -----------------------------------------------------------------------------------------------------


def same(a: Any, b: Any) -> bool:
    """Equal, arrays to the bit and with their types."""
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return type(a) is type(b) and a == b


def test_a_snapshot_comes_back_as_it_was(tmp_path: Path) -> None:
    """Stages with chosen pools included: a plan rebuilt from them serves the same rows."""
    plan = Plan(DOMAINS, 4)
    plan.append(0, plan.domain_pools(), [0.5, 0.5])
    chosen = (chosen_pool(1, [3, 1, 4, 1]), plan.domain_pools()[1])
    plan.append(40, chosen, [0.3, 0.7])
    plan.append(55, chosen, [0.6, 0.4])
    before = snapshot(*plan.stages_from(48))
    state.write_snapshot(tmp_path / "checkpoint-8", before, WHOLE)
    after, ledger = state.read_snapshot(tmp_path / "checkpoint-8")
    assert ledger == WHOLE
    for name in ("step", "position", "global_batch", "identity", "components", "parts"):
        assert same(getattr(after, name), getattr(before, name)), name
    assert [stage.to_json() for stage in after.stages] == [stage.to_json() for stage in before.stages]
    assert np.asarray(after.stages[1].pools[0].ids).tolist() == [1, 1, 3, 4]
    assert Plan(DOMAINS, 4, stages=after.stages).rows(40, 140).tolist() == plan.rows(40, 140).tolist()


def test_a_state_may_have_any_names(tmp_path: Path) -> None:
    """And a run without a planned order has no stage."""
    before = snapshot()
    before.components["mix"] = {"reward/a": np.ones(2), "reward/b": np.zeros(3), "b/c": 4}
    state.write_snapshot(tmp_path, before, b"")
    after, ledger = state.read_snapshot(tmp_path)
    assert after.stages == [] and ledger == b""
    assert same(after.components, before.components)


OURS = ["dataflex/arrays.npz", "dataflex/ledger.jsonl", "dataflex/state.json"]
MARKED = [*OURS, "global_step/optimizer.pt", "model.safetensors"]


@pytest.mark.parametrize("name", MARKED)
def test_a_file_that_is_missing_or_cut_short_is_named(name: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 8)
    assert completeness.what_is_missing(folder) is None
    mark = json.loads((folder / "dataflex" / "COMPLETE").read_text())
    assert list(mark) == MARKED
    content = (folder / name).read_bytes()
    for changed in (content[:-1], content + b" "):
        (folder / name).write_bytes(changed)
        assert completeness.what_is_missing(folder) == f"{name} has {len(changed)} bytes instead of {len(content)}"
    (folder / name).unlink()
    assert completeness.what_is_missing(folder) == f"{name} is missing"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("whole"), 8)


@pytest.mark.parametrize("name", MARKED)
@pytest.mark.parametrize("damage", ["first bit", "last bit", "zeros"])
def test_a_damaged_file_of_the_right_size_is_named(whole: Path, name: str, damage: str) -> None:
    content = (whole / name).read_bytes()
    changed = bytearray(len(content)) if damage == "zeros" else bytearray(content)
    if damage != "zeros":
        changed[0 if damage == "first bit" else -1] ^= 1
    assert completeness.what_is_damaged(whole) is None
    try:
        (whole / name).write_bytes(changed)
        assert completeness.what_is_missing(whole) is None
        assert completeness.what_is_damaged(whole) == f"{name} does not hold what was saved"
    finally:
        (whole / name).write_bytes(content)


def test_a_mark_holds_what_xxhash_says_of_the_whole_file(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = json.loads((whole / "dataflex" / "COMPLETE").read_text())
    assert mark == {
        name: {
            "size": len((whole / name).read_bytes()),
            "xxh3_128": xxhash.xxh3_128_hexdigest((whole / name).read_bytes()),
        }
        for name in MARKED
    }
    monkeypatch.setattr(completeness, "_BLOCK", 7)  # bytes read at once: the same hash
    assert completeness.what_is_damaged(whole) is None


def test_every_bit_of_a_mark_counts(whole: Path) -> None:
    """Whichever one flips, the checkpoint is not taken for whole; spaces aside, which say nothing."""
    mark = whole / "dataflex" / "COMPLETE"
    content = mark.read_bytes()
    try:
        for index in range(0, len(content), 7):
            for bit in (1, 16):
                changed = bytearray(content)
                changed[index] ^= bit
                mark.write_bytes(changed)
                if chr(content[index]).isspace() and chr(changed[index]).isspace():
                    continue
                assert completeness.what_is_damaged(whole) is not None, (
                    index,
                    changed[max(0, index - 20) : index + 20],
                )
    finally:
        mark.write_bytes(content)


def test_a_mark_of_sizes_alone_is_still_read(tmp_path: Path) -> None:
    """As earlier versions wrote it: what they say is checked, and no more."""
    folder = checkpoint(tmp_path, 8)
    sizes = {name: (folder / name).stat().st_size for name in MARKED}
    (folder / "dataflex" / "COMPLETE").write_text(json.dumps(sizes, indent=1))
    assert completeness.what_is_damaged(folder) is None and completeness.newest_complete(tmp_path) == (folder, [])
    (folder / "model.safetensors").write_bytes(b"012345678")
    assert completeness.what_is_damaged(folder) == "model.safetensors has 9 bytes instead of 10"


def test_a_checkpoint_is_ours_before_anything_is_in_it(tmp_path: Path) -> None:
    """And what an earlier save of the same step has left is gone, the mark first of all."""
    folder = tmp_path / "checkpoint-8"
    completeness.begin_checkpoint(folder)
    assert completeness.what_is_missing(folder) == "saving it was never finished"
    (folder / "model.safetensors").write_bytes(b"half")
    assert completeness.newest_complete(tmp_path) == (
        None,
        [f"{folder} is not complete (saving it was never finished); the run starts over"],
    )
    folder = checkpoint(tmp_path, 9)
    (folder / "rng_state_7.pth").touch()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    (folder / "link").symlink_to(outside)
    completeness.begin_checkpoint(folder)
    assert [p.name for p in folder.rglob("*")] == ["dataflex"] and (outside / "kept").exists()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["folder", "link", "file"])
def test_files_of_another_program_are_not_sealed_as_ours(tmp_path: Path, kind: str, overwrite: bool) -> None:
    """They are moved aside, under a name that no rotation of checkpoints takes, or removed where that was asked for."""
    folder, outside = tmp_path / "run" / "checkpoint-8", tmp_path / "outside"
    for made in (outside, folder.parent):
        made.mkdir()
    (outside / "theirs").write_text("theirs")
    (folder.parent / "other-checkpoint-8").touch()
    if kind == "folder":
        folder.mkdir()
        (folder / "theirs").write_text("theirs")
    elif kind == "link":
        folder.symlink_to(outside)
    else:
        folder.write_text("theirs")
    completeness.begin_checkpoint(folder, overwrite=overwrite)
    assert [p.name for p in folder.rglob("*")] == ["dataflex"] and not folder.is_symlink()
    kept = folder.parent / "other-checkpoint-8-1"
    assert (kept.exists() or kept.is_symlink()) is not overwrite
    assert overwrite or (kept if kind == "file" else kept / "theirs").read_text() == "theirs"
    assert (outside / "theirs").read_text() == "theirs"
    completeness.begin_checkpoint(folder, overwrite=overwrite)  # an empty one, and ours by now: nothing is moved
    assert len(list(folder.parent.iterdir())) == 3 - overwrite


# -- which one a run goes on from -------------------------------------------------------------------------------------


def settled(output: Path, own: Path | None, asked: Any = None) -> str | None:
    arguments = SimpleNamespace(output_dir=str(output), resume_from_checkpoint=own and str(own), should_save=True)
    nodes.settle_checkpoint(arguments, asked)
    return arguments.resume_from_checkpoint


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = {step: checkpoint(tmp_path, step) for step in (2, 9, 10)}
    assert settled(tmp_path, None) is None
    for asked in (None, True):
        assert settled(tmp_path, folders[10], asked) == str(folders[10])
    assert capsys.readouterr().err == ""
    for step, name in ((10, "dataflex/state.json"), (9, "model.safetensors")):
        flip(folders[step] / name)
    assert settled(tmp_path, folders[10]) == str(folders[2])
    assert capsys.readouterr().err.splitlines() == [
        f"dataflex: {folders[step]} is damaged ({name} does not hold what was saved); an older checkpoint is used"
        for step, name in ((10, "dataflex/state.json"), (9, "model.safetensors"))
    ]
    with pytest.raises(ConfigError) as raised:
        settled(tmp_path, folders[9], str(folders[9]))
    assert str(raised.value) == (
        f"resume_from_checkpoint: {folders[9]} is damaged (model.safetensors does not hold what was saved); name another"
        " checkpoint"
    )
    flip(folders[2] / "dataflex" / "ledger.jsonl")
    with pytest.raises(ConfigError) as raised:
        settled(tmp_path, folders[10])
    assert str(raised.value) == (
        f"output_dir: {folders[2]} is damaged (dataflex/ledger.jsonl does not hold what was saved), and there is no older"
        " checkpoint; change output_dir, or set overwrite_output_dir to start over"
    )


def test_a_whole_checkpoint_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And none of those that are not gone on from."""
    folders = {step: checkpoint(tmp_path, step) for step in (2, 9)}
    read: list[Path] = []
    stock = completeness.hash_file
    monkeypatch.setattr(completeness, "hash_file", lambda path: read.append(path) or stock(path))  # type: ignore[func-returns-value]
    settled(tmp_path, folders[9])
    assert sorted(read) == sorted(folders[9] / name for name in MARKED)


@pytest.mark.parametrize("text", ["", "{", "[]", "0"])
def test_an_unreadable_mark_is_no_mark(text: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 8)
    assert completeness.what_is_missing(tmp_path / "checkpoint-9") == "there is no such directory"
    (folder / "dataflex" / "COMPLETE").write_text(text)
    assert completeness.what_is_missing(folder) == "its completeness mark cannot be read"


@pytest.mark.parametrize("name", ["state.json", "arrays.npz"])
@pytest.mark.parametrize("content", [None, b"", b"[]", b"PK\x03\x04 and so on", b'{"format": 99}'])
def test_a_snapshot_that_cannot_be_read_is_one_error(name: str, content: bytes | None, tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 8) / "dataflex" / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    another = name == "state.json" and content is not None and b"99" in content
    with pytest.raises(DataflexError, match="8 has state format 99, this version" if another else "8 cannot be read"):
        state.read_snapshot(path.parents[1])


def test_the_newest_complete_checkpoint_is_found(tmp_path: Path) -> None:
    assert completeness.newest_complete(tmp_path / "none") == (None, []) == completeness.newest_complete(tmp_path)
    folders = {step: checkpoint(tmp_path, step) for step in (2, 10, 9, 30, 40)}
    (tmp_path / "checkpoint-99").write_text("a file")
    for name in ("checkpoint-50-old", "checkpoint-60", "plain/checkpoint-1"):
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(ConfigError, match="output_dir: the checkpoints in"):  # another program wrote them
        completeness.newest_complete(tmp_path / "plain")
    assert completeness.newest_complete(tmp_path)[0] == folders[40]
    (folders[40] / "dataflex" / "COMPLETE").unlink()
    (folders[30] / "model.safetensors").unlink()
    found, passed_over = completeness.newest_complete(tmp_path)
    assert found == folders[10]
    reasons = ["it holds no dataflex state", "saving it was never finished", "model.safetensors is missing"]
    assert passed_over == [
        f"{tmp_path / f'checkpoint-{step}'} is not complete ({reason}); an older checkpoint is used"
        for step, reason in zip((60, 40, 30), reasons, strict=True)
    ]
    for step in (2, 9, 10):
        (folders[step] / "dataflex" / "COMPLETE").unlink()
    with pytest.raises(ConfigError) as raised:  # 30 lacks a file, and may be worth something all the same
        completeness.newest_complete(tmp_path)
    assert str(raised.value) == (
        f"output_dir: {folders[30]} is not complete (model.safetensors is missing), and there is no older one that is; change"
        " output_dir, or set overwrite_output_dir to start over"
    )
    (folders[30] / "dataflex" / "COMPLETE").unlink()
    with pytest.raises(ConfigError, match="were not written by a run with a dataflex block"):
        completeness.newest_complete(tmp_path)
    (tmp_path / "checkpoint-60").rmdir()
    found, lines = completeness.newest_complete(tmp_path)
    assert found is None and [line.endswith("; the run starts over") for line in lines] == [True] * 5


@pytest.mark.parametrize("damage", ["short", "missing", "mark"])
def test_a_run_does_not_start_over_on_top_of_a_damaged_checkpoint(tmp_path: Path, damage: str) -> None:
    folders = {step: checkpoint(tmp_path, step) for step in (2, 9)}
    (folders[9] / "dataflex" / "COMPLETE").unlink()
    if damage == "mark":
        (folders[2] / "dataflex" / "COMPLETE").write_text("{")
    elif damage == "missing":
        (folders[2] / "model.safetensors").unlink()
    else:
        (folders[2] / "model.safetensors").write_bytes(b"0")
    with pytest.raises(
        ConfigError, match=f"output_dir: {folders[2]} is not complete .*overwrite_output_dir to start over"
    ):
        completeness.newest_complete(tmp_path)


def test_a_model_alone_is_whole_though_no_run_goes_on_from_it(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-8"
    (folder / "dataflex").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"0123456789")
    state.write_snapshot(folder, replace(snapshot(), model_only=True), WHOLE)
    completeness.mark_complete(folder)
    assert "save_only_model" in str(completeness.what_is_missing(folder))
    assert completeness.what_is_damaged(folder) is None
    nodes.check_contents(folder)  # as of a selection whose model it is
    flip(folder / "model.safetensors")
    assert completeness.what_is_damaged(folder) == "model.safetensors does not hold what was saved"


def test_another_run_is_refused_by_the_key_that_differs() -> None:
    saved = json.loads(json.dumps(snapshot().identity))
    state.check_identity(saved, {**snapshot().identity, "unset": None}, Path("checkpoint-8"))
    for changed, message in (
        ({"seed": 2}, "seed was 1 there and is 2 now"),
        ({"data_seed": 3}, "data_seed was not set there and is 3 now"),
        ({"seed": 2, "dataset": "a"}, "seed was 1"),
    ):
        with pytest.raises(ConfigError, match=f"^cannot resume from checkpoint-8: {message}"):
            state.check_identity(saved, {**saved, **changed}, Path("checkpoint-8"))
    with pytest.raises(ConfigError, match="dataset was 'a,b' there and is not set now"):
        state.check_identity(saved, {"seed": 1}, Path("checkpoint-8"))


# -- rows ------------------------------------------------------------------------------------------------------------


def columns(n: int = 2500) -> dict[str, list[Any]]:
    tokens = [[(7 * i + j) % 97 for j in range(1 + i % 5)] for i in range(n)]
    labels = [[-100, *row[1:]] for row in tokens]
    return {"input_ids": tokens, "labels": labels, "attention_mask": [[1] * len(row) for row in tokens]}


def fingerprint(part: Any) -> str:
    return Rows([part], ["a"]).fingerprints()["a"]


@pytest.mark.parametrize("budget", [1 << 28, 4000])
def test_a_fingerprint_does_not_depend_on_storage(budget: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writer batches, chunks, an indices mapping, number types, the order of columns; also where blocks are sampled."""
    monkeypatch.setattr(rows_module, "_FINGERPRINT_TOKENS", budget)
    data = columns()
    plain = Dataset.from_dict(data)
    stored = [
        plain.map(lambda row: row, writer_batch_size=size, cache_file_name=str(tmp_path / f"{size}.arrow"))
        for size in (7, 1000, 2499)
    ]
    assert len(stored[0].data.column("input_ids").chunks) > 300
    double = Dataset.from_dict({k: v + v[::-1] for k, v in data.items()})
    picked = double.select(list(range(2500)))
    reordered = double.select([*range(2500, 5000)]).select(list(range(2499, -1, -1)))
    pieces = concatenate_datasets([plain.select(range(a, b)) for a, b in ((0, 3), (3, 1001), (1001, 2500))])
    flat = reordered.flatten_indices(cache_file_name=str(tmp_path / "flat.arrow"))
    backwards = dict(reversed(data.items()))
    small = Dataset.from_dict(backwards, features=Features(dict.fromkeys(backwards, Sequence(Value("int32")))))
    for part in (*stored, picked, reordered, pieces, flat, small, plain.remove_columns("attention_mask")):
        assert len(part) == 2500 and fingerprint(part) == fingerprint(plain)


def test_a_fingerprint_sees_every_token_and_every_row_boundary() -> None:
    def changed(column: str, row: int, values: list[int]) -> Dataset:
        data = columns()
        data[column][row] = values
        return Dataset.from_dict(data)

    data = columns()
    prints = [fingerprint(Dataset.from_dict(data))]
    for row in (0, 999, 1000, 2499):
        prints.append(fingerprint(changed("input_ids", row, [*data["input_ids"][row][:-1], 98])))
        prints.append(fingerprint(changed("labels", row, [*data["labels"][row][:-1], -100 + 1])))
    moved = columns()
    moved["input_ids"][1:3] = [moved["input_ids"][1][:1], moved["input_ids"][1][1:] + moved["input_ids"][2]]
    swapped = columns()
    for column in swapped.values():
        column[3], column[8] = column[8], column[3]
    exchanged = columns()
    exchanged["input_ids"], exchanged["labels"] = exchanged["labels"], exchanged["input_ids"]
    prints += [fingerprint(Dataset.from_dict(d)) for d in (moved, swapped, exchanged, columns(2499))]
    prints += [fingerprint(Dataset.from_dict({**columns(), "kto_tags": [i == k for i in range(2500)]})) for k in (1, 2)]
    prints.append(fingerprint(Dataset.from_dict(columns()).select([])))
    assert len(set(prints)) == len(prints) == 16


def two_parts() -> Rows:
    first, second = ([{"input_ids": [10 * d + i] * (i + 1), "n": i} for i in range(4)] for d in (1, 2))
    return Rows([Dataset.from_list(first), Dataset.from_list(second).select([3, 0])], ["a", "b"])


def test_rows_come_in_the_order_asked_for_with_their_ids() -> None:
    rows = two_parts()
    assert (len(rows), rows.domains) == (6, Domains(("a", "b"), (4, 2)))
    picked = [(r[SAMPLE_IDS], r["input_ids"][0]) for r in rows.__getitems__([5, 0, 4, 0, 3])]
    assert picked == [(5, 20), (0, 10), (4, 23), (0, 10), (3, 13)]
    assert rows[4] == {"input_ids": [23] * 4, "n": 3, SAMPLE_IDS: 4} and rows.__getitems__([]) == []
    assert rows.lengths().tolist() == [1, 2, 3, 4, 4, 1] and rows.column_names == ["input_ids", "n"]
    pair = Dataset.from_dict({"chosen_input_ids": [[1], [1, 2]], "rejected_input_ids": [[1, 2, 3], []]})
    assert Rows([pair, pair.select([1])], ["a", "b"]).lengths().tolist() == [4, 2, 2]


def inner(features: list[dict[str, Any]]) -> dict[str, Any]:
    return {"keys": [sorted(f) for f in features], "n": torch.tensor([f["n"] for f in features])}


def test_the_collator_takes_the_ids_off_and_puts_them_into_the_batch() -> None:
    features = two_parts().__getitems__([5, 2])
    batch = RowCollator(inner)(features)
    assert batch["keys"] == [["input_ids", "n"]] * 2 and batch["n"].tolist() == [0, 2]
    assert batch[SAMPLE_IDS].dtype == torch.int64 and batch[SAMPLE_IDS].tolist() == [5, 2]
    assert [f[SAMPLE_IDS] for f in features] == [5, 2]  # the rows themselves are left alone
    assert set(RowCollator(inner)([{"n": 1}])) == {"keys", "n"} and RowCollator(inner)([])["keys"] == []
