"""Which checkpoint a run goes on from, and when it refuses to."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import assert_refused, flip
from harness import Result, plain, start, tiny_run, train, train_all

Config = dict[str, Any]

BLOCK: Config = {
    "select": {"name": "loss", "warmup": 2, "interval": 4},
    "mix": {"name": "odm", "warmup": 1, "interval": 3},
    "weight": {"name": "loss"},
}


@pytest.fixture(scope="module")
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two directories of one run that saved steps 3, 6 and 9 of 12: `whole`, and `killed` after step 10."""
    ground = request.getfixturevalue("ground")
    path = tmp_path_factory.mktemp("saved")
    config = configuration(ground)
    whole, killed = train_all(
        start(config, path / "whole", hooks=["record_ids"]), start(config, path / "killed", hooks=["kill_after:10"])
    )
    assert whole.ok and killed.status == [-9]
    return path


def configuration(ground: Path) -> Config:
    return {**tiny_run(ground), "save_strategy": "steps", "save_steps": 3, "dataflex": BLOCK}


def resume(ground: Path, saved: Path, out: Path, damage: Any = None, **changes: Any) -> Result:
    """Copy the killed run, damage it, change the configuration, and start it again with automatic resume."""
    shutil.copytree(saved / "killed", out)
    if damage is not None:
        damage(out)
    return train({**configuration(ground), **changes}, out, hooks=["record_ids"])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def blank(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


DAMAGES: dict[str, Any] = {
    "no mark": lambda out: (out / "checkpoint-9/dataflex/COMPLETE").unlink(),
    "no trainer state": lambda out: (out / "checkpoint-9/trainer_state.json").unlink(),
    "weights cut short": lambda out: cut(out / "checkpoint-9/model.safetensors"),
    "optimizer cut short": lambda out: cut(out / "checkpoint-9/optimizer.pt"),
    "our state cut short": lambda out: cut(out / "checkpoint-9/dataflex/arrays.npz"),
    "mark cut short": lambda out: cut(out / "checkpoint-9/dataflex/COMPLETE"),
    "a bit of the weights": lambda out: flip(out / "checkpoint-9/model.safetensors"),
    "zeros for moments": lambda out: blank(out / "checkpoint-9/optimizer.pt"),
    "empty directory": lambda out: (shutil.rmtree(out / "checkpoint-9"), (out / "checkpoint-9").mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_newest_complete_checkpoint_is_used(ground: Path, saved: Path, tmp_path: Path, damage: str) -> None:
    """A newest checkpoint cut short is passed over with one line, and the run still ends as if never killed."""
    run = resume(ground, saved, tmp_path / "run", DAMAGES[damage])
    whole = Result([0], saved / "whole", "")
    assert min(run.ok.ids()) == 6
    assert re.search(r"checkpoint-9 is (not complete|damaged) \(.*\); an older checkpoint is used", run.log)
    assert "Traceback" not in run.log
    assert run.trace() == whole.trace()
    assert run.ledger() == whole.ledger()
    assert (run.out / "checkpoint-9/dataflex/COMPLETE").is_file()


def test_nothing_complete_starts_over(ground: Path, saved: Path, tmp_path: Path) -> None:
    def damage(out: Path) -> None:
        for step in (3, 6, 9):
            (out / f"checkpoint-{step}/dataflex/COMPLETE").unlink()

    run = resume(ground, saved, tmp_path / "run", damage)
    assert min(run.ok.ids()) == 0
    assert run.trace() == Result([0], saved / "whole", "").trace()


def test_checkpoints_of_a_plain_run_are_not_overwritten(base: Config, tmp_path: Path) -> None:
    """LLaMA-Factory would go on from them; a dynamic run cannot, and does not start over on top of them either."""
    stock = {**base, "save_strategy": "steps", "save_steps": 6}
    before = plain(stock, tmp_path / "run").wait()
    assert before.ok
    files = {f: f.read_bytes() for f in tmp_path.rglob("checkpoint-*/*.json")}
    assert_refused(train({**stock, "dataflex": BLOCK}, tmp_path / "run"), "output_dir", "overwrite_output_dir")
    assert files and all(f.read_bytes() == content for f, content in files.items())
    again = train({**stock, "dataflex": BLOCK, "overwrite_output_dir": True}, tmp_path / "run", hooks=["record_ids"])
    assert min(again.ok.ids()) == 0


def test_an_explicit_incomplete_checkpoint_is_refused(ground: Path, saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved / "killed" / "checkpoint-9", tmp_path / "checkpoint-9")
    cut(tmp_path / "checkpoint-9" / "optimizer.pt")
    run = train({**configuration(ground), "resume_from_checkpoint": str(tmp_path / "checkpoint-9")}, tmp_path / "run")
    assert_refused(run, "resume_from_checkpoint", "optimizer.pt has")


REFUSED: dict[str, tuple[Config, tuple[str, ...]]] = {
    "seed": ({"seed": 8}, ("seed was 7", "is 8 now")),
    "data_seed": ({"data_seed": 1}, ("data_seed was not set",)),
    "schedule": ({"max_steps": 24}, ("max_steps was 12", "is 24 now")),
    "data sets": ({"dataset": "code,docs"}, ("dataset was 'code,docs,arithmetic'",)),
    "order of data sets": ({"dataset": "docs,code,arithmetic"}, ("dataset was",)),
    "tokenization": ({"cutoff_len": 48}, ("cutoff_len was 64",)),
    "template": ({"template": "default"}, ("template was 'qwen'",)),
    "shuffling": ({"disable_shuffling": True}, ("disable_shuffling was False",)),
    "parameter": (
        {"dataflex": {**BLOCK, "select": {**BLOCK["select"], "focus": "high"}}},
        ("dataflex.select.focus was 'medium'", "is 'high' now"),
    ),
    "component": ({"dataflex": {**BLOCK, "mix": {"name": "static"}}}, ("dataflex.mix.name was 'odm'",)),
    "slot": ({"dataflex": {k: BLOCK[k] for k in ("select", "mix")}}, ("dataflex.weight.name was 'loss'", "not set")),
    "interval": (
        {"dataflex": {**BLOCK, "mix": {**BLOCK["mix"], "interval": 2}}},
        ("dataflex.mix.interval was 3", "is 2 now"),
    ),
}


@pytest.mark.parametrize("change", REFUSED)
def test_another_run_is_refused(ground: Path, saved: Path, tmp_path: Path, change: str) -> None:
    changes, words = REFUSED[change]
    run = resume(ground, saved, tmp_path / "run", **changes)
    assert_refused(run, "cannot resume from", *words)
    for file in ("dataflex/ledger.jsonl", "checkpoint-9/dataflex/COMPLETE"):  # nothing saved is lost
        assert (run.out / file).read_bytes() == (saved / "killed" / file).read_bytes()


def test_changed_data_is_refused(ground: Path, saved: Path, tmp_path: Path) -> None:
    """One word of one row differs; the sizes do not."""
    shutil.copytree(ground / "data", tmp_path / "data")
    file = tmp_path / "data" / "docs.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    row = json.loads(lines[30])
    lines[30] = json.dumps({**row, "output": "changed " + row["output"]}) + "\n"
    file.write_text("".join(lines))
    run = resume(ground, saved, tmp_path / "run", dataset_dir=str(tmp_path / "data"))
    assert_refused(run, "cannot resume from", "content of docs was")


def test_what_does_not_touch_the_data_may_change(ground: Path, saved: Path, tmp_path: Path) -> None:
    """Workers, batch shape, saving and logging are free; the ids and decisions go on as they were."""
    run = resume(
        ground, saved, tmp_path / "run", dataloader_num_workers=1, per_device_train_batch_size=2,
        gradient_accumulation_steps=2, save_steps=5, logging_steps=2,
    )  # fmt: skip
    whole = Result([0], saved / "whole", "")
    assert run.ok.ids() == {s: i for s, i in whole.ids().items() if s >= 9}


def test_another_global_batch_is_stated(ground: Path, saved: Path, tmp_path: Path) -> None:
    """Half the batch from step 9 on: the order of rows goes on where it was."""
    run = resume(ground, saved, tmp_path / "run", per_device_train_batch_size=2)
    whole = Result([0], saved / "whole", "")
    assert "global batch was 4 rows up to step 9 and is 2 from here on" in run.ok.log
    served = [i for ids in run.ids().values() for i in ids]
    expected = [i for step, ids in whole.ids().items() if step >= 9 for i in ids]
    assert served[:2] == expected[:2]  # up to the update of select before step 10
    assert run.ledger()[-1]["position"] == 9 * 4 + 1 * 2


def test_an_epoch_ends_where_its_rows_end_whatever_the_batch(base: Config, tmp_path: Path) -> None:
    """One epoch of 180 rows, 4 a step up to step 30 and 8 a step from there: every row once, 38 steps."""
    config = {k: v for k, v in base.items() if k != "max_steps"} | {"num_train_epochs": 1}
    config |= {
        "dataflex": {"select": {"name": "random", "warmup": 99, "interval": 1}},
        "save_strategy": "steps",
        "save_steps": 30,
    }
    train(config, tmp_path / "run", hooks=["record_ids", "kill_after:31"])
    resumed = train({**config, "per_device_train_batch_size": 8}, tmp_path / "run", hooks=["record_ids"])
    served = resumed.ok.ids()  # the file goes on: steps 0 to 30 of the killed run, then those of the resumed one
    assert max(served) == 37
    order = [i for step in range(30) for i in served[step]] + [i for step in range(30, 38) for i in served[step]]
    assert sorted(order[:180]) == list(range(180))


def test_weights_alone_cannot_go_on_with_another_batch(base: Config, tmp_path: Path) -> None:
    """The order of rows is LLaMA-Factory's own there."""
    config = {**base, "dataflex": {"weight": {"name": "loss"}}, "save_strategy": "steps", "save_steps": 3}
    train(config, tmp_path / "run", hooks=["kill_after:4"])
    run = train({**config, "per_device_train_batch_size": 2}, tmp_path / "run")
    assert_refused(run, "per_device_train_batch_size", "was 4 rows there and is 2 now")


def test_old_checkpoints_go_only_when_the_new_one_is_complete(base: Config, tmp_path: Path) -> None:
    """save_total_limit 1, killed while saving step 6: step 3 is still there and is gone on from."""
    config = {**base, "dataflex": BLOCK, "save_strategy": "steps", "save_steps": 3, "save_total_limit": 1}
    killed = train(config, tmp_path / "run", hooks=["kill_while_saving:6"])
    assert killed.status == [-9]
    assert (killed.out / "checkpoint-3/dataflex/COMPLETE").is_file()
    assert not (killed.out / "checkpoint-6/dataflex/COMPLETE").exists()
    resumed = train(config, tmp_path / "run", hooks=["record_ids"])
    assert min(resumed.ok.ids()) == 3
    assert sorted(p.name for p in resumed.out.glob("checkpoint-*")) == ["checkpoint-12"]


def test_a_run_killed_in_its_first_checkpoint_can_go_on(base: Config, tmp_path: Path) -> None:
    """Half of the optimizer is written: the same command trains from the start, to what a run alone gives."""
    config = {**base, "dataflex": BLOCK, "save_strategy": "steps", "save_steps": 3}
    whole, killed = train_all(
        start(config, tmp_path / "whole", hooks=["record_ids"]),
        start(config, tmp_path / "run", hooks=["kill_in_save:3=optimizer.pt"]),
    )
    assert killed.status == [-9]
    again = train(config, tmp_path / "run", hooks=["record_ids"])
    assert "checkpoint-3 is not complete (saving it was never finished); the run starts over" in again.ok.log
    assert again.trace() == whole.ok.trace() and again.ids() == whole.ids() and again.ledger() == whole.ledger()
    assert (again.out / "checkpoint-3/dataflex/COMPLETE").is_file()


def test_a_full_disk_in_the_first_checkpoint(base: Config, tmp_path: Path) -> None:
    config = {**base, "dataflex": BLOCK, "save_strategy": "steps", "save_steps": 3}
    full = train(config, tmp_path / "run", hooks=["disk_full:3"])
    assert full.status == [1] and "checkpoint-3 could not be saved (" in full.log and "Traceback" not in full.log
    assert min(train(config, tmp_path / "run", hooks=["record_ids"]).ok.ids()) == 0


def test_a_damaged_checkpoint_that_is_named_is_refused(ground: Path, saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved / "killed" / "checkpoint-9", tmp_path / "checkpoint-9")
    flip(tmp_path / "checkpoint-9" / "rng_state.pth")
    run = train({**configuration(ground), "resume_from_checkpoint": str(tmp_path / "checkpoint-9")}, tmp_path / "run")
    assert_refused(run, "resume_from_checkpoint", "is damaged (rng_state.pth does not hold what was saved)")


def test_a_full_disk_leaves_the_previous_checkpoint_usable(base: Config, tmp_path: Path) -> None:
    config = {**base, "dataflex": BLOCK, "save_strategy": "steps", "save_steps": 3, "save_total_limit": 1}
    whole, full = train_all(start(config, tmp_path / "whole"), start(config, tmp_path / "full", hooks=["disk_full:6"]))
    assert full.status == [1], full.log[-3000:]
    assert "checkpoint-6 could not be saved" in full.log and "Traceback" not in full.log
    resumed = train(config, tmp_path / "full", hooks=["record_ids"])
    assert min(resumed.ok.ids()) == 3
    assert resumed.trace() == whole.ok.trace()


def test_a_torn_ledger_line_is_dropped_on_resume(ground: Path, saved: Path, tmp_path: Path) -> None:
    def damage(out: Path) -> None:
        with (out / "dataflex/ledger.jsonl").open("a") as file:
            file.write('{"step": 10, "compo')

    run = resume(ground, saved, tmp_path / "run", damage)
    assert run.ok.ledger() == Result([0], saved / "whole", "").ledger()


def test_a_run_started_on_two_ranks_goes_on_on_one(base: Config, tmp_path: Path) -> None:
    """The ids are those of the run that stayed on two ranks."""
    block = {"select": {"name": "random", "warmup": 2, "interval": 4}, "mix": {"name": "random", "interval": 3}}
    two = {**base, "per_device_train_batch_size": 2, "dataflex": block, "save_strategy": "steps", "save_steps": 5}
    whole, killed = train_all(
        start(two, tmp_path / "whole", ranks=2, hooks=["record_ids"]),
        start(two, tmp_path / "killed", ranks=2, hooks=["kill_after:6"]),
    )
    resumed = train({**two, "per_device_train_batch_size": 4}, tmp_path / "killed", hooks=["record_ids"])
    assert killed.status == [-9, -9]
    assert resumed.ok.ids() == {s: i for s, i in whole.ok.ids().items() if s >= 5}
    assert [{**r, "from": None} for r in resumed.ledger()] == [{**r, "from": None} for r in whole.ledger()]


def test_resume_true_means_the_newest_complete(ground: Path, saved: Path, tmp_path: Path) -> None:
    run = resume(ground, saved, tmp_path / "run", DAMAGES["no mark"], resume_from_checkpoint=True)
    assert min(run.ok.ids()) == 6
    empty = train({**configuration(ground), "resume_from_checkpoint": True}, tmp_path / "empty")
    assert_refused(empty, "resume_from_checkpoint", "no complete checkpoint")
