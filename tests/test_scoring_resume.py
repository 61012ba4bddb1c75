"""A scoring pass of a run that is killed goes on where it was, and nothing else changes."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from comparing import assert_same_continuation
from engines import under
from harness import Result, free_port, start, train, train_all
from models_and_data import build_encoder
from selecting import LESS, LORA, SELECT, table

from dataflex.signals import pace
from dataflex.signals.batching import ScoringRows, order_of, over_rows, token_batches
from dataflex.signals.keeping.disk import PieceFile
from dataflex.signals.keeping.fingerprint import model_fingerprint, moments_fingerprint
from dataflex.signals.keeping.memory import MemoryCache
from dataflex.signals.keeping.run import RunCache, StepFolders
from dataflex.signals.pace import pieces

Config = dict[str, Any]
PIECES = "small_pieces:400"
RDS = {"name": "rds", "warmup": 2, "interval": 4, "target_dataset": "arithmetic_heldout"}
NICE = {
    "name": "nice",
    "warmup": 2,
    "interval": 4,
    "mc_samples": 2,
    "max_new_tokens": 4,
    "reward": "own_components:length",
}
CLUSTERS = {"name": "cluster_less", "warmup": 2, "interval": 4, "num_clusters": 6, "samples_per_cluster": 20}
AIMED = {**LORA, "eval_dataset": "arithmetic_heldout,code_heldout"}
RUNS: dict[str, Config] = {
    "loss": {"dataflex": SELECT},
    "less": {**AIMED, "dataflex": {"select": LESS}},
    "rds": {"dataflex": {"select": RDS}},
    "nice": {**AIMED, "dataflex": {"select": NICE}},
    "cluster_less": {**AIMED, "dataflex": {"select": CLUSTERS}},
}


def measured(run: Result) -> list[int]:
    """Rows measured in each pass that is kept."""
    return json.loads((run.out / "measured.json").read_text())


def kept(out: Path) -> list[str]:
    return sorted((f.name for f in (out / "dataflex" / "signals").glob("step_*")), key=len)


def saved(base: Config, name: str = "loss") -> Config:
    """Decisions before steps 2, 6 and 10, checkpoints at 4, 8 and 12."""
    return {**base, "save_strategy": "steps", "save_steps": 4, **RUNS[name]}


def go_on(config: Config, out: Path, ranks: int = 1, hooks: Sequence[str] = ()) -> Result:
    for file in out.glob("served-*.jsonl"):
        file.unlink()
    return train(config, out, ranks=ranks, hooks=["record_ids", "own_component", PIECES, "count_measured", *hooks])


def start_pair(config: Config, folder: Path, kill: str, ranks: int = 1) -> tuple[Result, Result]:
    hooks = ["record_ids", "own_component", PIECES, "count_measured"]
    return tuple(
        train_all(
            start(config, folder / "whole", ranks=ranks, hooks=hooks),
            start(config, folder / "killed", ranks=ranks, hooks=[*hooks, kill]),
        )
    )


# -- killed in the middle of a pass ----------------------------------------------------------------------------------


FAST = [("loss", 1), ("less", 1)]
OTHERS = [(name, ranks) for name in RUNS for ranks in (1, 2) if (name, ranks) not in FAST]


@pytest.mark.parametrize(("name", "ranks"), [*FAST, *(pytest.param(*case, marks=pytest.mark.slow) for case in OTHERS)])
def test_a_killed_pass_goes_on(base: Config, tmp_path: Path, name: str, ranks: int) -> None:
    """Killed after two pieces of the pass before step 6; on from the checkpoint of step 4, or on two ranks of step 6. Only the
    other rows are measured, and everything is as in the run that was not killed: dropout on, Adam's moments, LoRA."""
    config = saved(base, name)
    if ranks == 2:
        config |= {"per_device_train_batch_size": 2, "save_steps": 2}
    at = 2 if name == "cluster_less" else 1  # whose first decision takes two passes
    whole, killed = start_pair(config, tmp_path, f"kill_after_pieces:2={at}", ranks)
    assert killed.status == [-9] * ranks and kept(killed.out) == ["step_6"]
    done, rows = measured(killed)[at], measured(whole.ok)
    assert len(rows) == at + 2 and 0 < done < rows[at] and rows[0] == 180
    resumed = go_on(config, killed.out, ranks)
    assert_same_continuation(resumed, whole, 6 if ranks == 2 else 4)
    assert measured(resumed) == [rows[at] - done, rows[at + 1]]
    assert f"dataflex: step 6: {done} of {rows[at]} rows of " in resumed.log
    assert not (resumed.out / "dataflex" / "signals").exists()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["zero2", "zero3", "fsdp2", "fsdp1"])
def test_on_every_engine(base: Config, tmp_path: Path, engine: str) -> None:
    """Parameters and moments are partitioned, so every rank reads its parts."""
    config = {**saved(base, "loss" if engine == "fsdp1" else "less"), "per_device_train_batch_size": 2, "max_steps": 7}
    hooks = [PIECES, "count_measured"]
    whole = under(engine, config, tmp_path / "whole", hooks=hooks).wait().ok
    killed = under(engine, config, tmp_path / "killed", hooks=[*hooks, "kill_after_pieces:2=1"]).wait()
    assert killed.status == [-9, -9] and kept(killed.out) == ["step_6"]
    done = measured(killed)[1]
    for file in killed.out.glob("served-*.jsonl"):
        file.unlink()
    resumed = under(engine, config, killed.out, hooks=hooks).wait().ok
    assert 0 < done < 180 and measured(resumed) == [180 - done]
    assert_same_continuation(resumed, whole, 4)


@pytest.mark.slow
def test_a_text_encoder_goes_on(base: Config, tmp_path: Path) -> None:
    encoder = build_encoder(tmp_path / "encoder", base["model_name_or_path"])
    config = saved(base, "rds")
    config["dataflex"] = {"select": {**RDS, "embedding_model": str(encoder)}}
    whole, killed = start_pair(config, tmp_path, "kill_after_pieces:3")
    assert killed.status == [-9] and measured(killed) == [150]
    resumed = go_on(config, killed.out)
    assert_same_continuation(resumed, whole, 0)
    assert measured(resumed) == [30] and measured(whole) == [180]


# -- killed after it -------------------------------------------------------------------------------------------------


def test_a_pass_that_is_whole_is_not_made_again(base: Config, tmp_path: Path) -> None:
    """Killed after step 7: no row of the pass before step 6 is measured again, nor the target. Those of before the last
    checkpoint are gone."""
    config = saved(base, "less")
    whole, killed = start_pair(config, tmp_path, "kill_after:7")
    assert measured(killed) == [180, 180] and kept(killed.out) == ["step_6"]
    resumed = go_on(config, killed.out, hooks=["count_passes"])
    assert_same_continuation(resumed, whole, 4)
    assert measured(resumed) == [0, 180]
    passes = json.loads((resumed.out / "passes.json").read_text())
    assert passes == {"target gradients": 2, "gradients": 1}  # of step 10, which aims at two subtasks


@pytest.mark.slow
def test_a_run_that_starts_over_takes_up_its_first_pass(base: Config, tmp_path: Path) -> None:
    """On any number of ranks a whole model has one hash; values are taken up on the same number only."""
    config = saved(base)
    config["dataflex"] = {"select": {**SELECT["select"], "warmup": 0, "interval": 12}}
    half = {**config, "per_device_train_batch_size": 2}
    hooks = ["record_ids", PIECES, "count_measured", "kill_after_pieces:2"]
    one, two = train_all(
        start(config, tmp_path / "one", hooks=hooks), start(half, tmp_path / "two", hooks=hooks, ranks=2)
    )
    keys = [json.loads(next(r.out.glob("dataflex/signals/step_0/*/key.json")).read_text()) for r in (one, two)]
    assert keys[0]["model"] == keys[1]["model"] and (keys[0]["ranks"], keys[1]["ranks"]) == (1, 2)
    done = measured(one)[0]
    assert one.status == [-9] and 0 < done < 180
    shutil.copytree(one.out, tmp_path / "as-two")
    assert measured(go_on(config, one.out).ok) == [180 - done]
    other = go_on(half, tmp_path / "as-two", ranks=2).ok
    assert measured(other) == [180] and other.ids() == go_on(half, two.out, ranks=2).ok.ids()


# -- what is not taken up --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_is_damaged_or_of_another_model_is_measured_again(base: Config, tmp_path: Path) -> None:
    config = saved(base)
    whole, killed = start_pair(config, tmp_path, "kill_after_pieces:3=1")
    done = measured(killed)[1]
    cases: dict[str, tuple[Config, list[str]]] = {
        "intact": ({}, []),
        "values": ({}, ["damage_piece:6=values"]),
        "line": ({}, ["damage_piece:6=line"]),
        "model": ({"max_grad_norm": 0.5}, []),  # trains to another model from the checkpoint on
    }
    found = {}
    for case, (changes, hooks) in cases.items():
        shutil.copytree(killed.out, tmp_path / case)
        found[case] = go_on({**config, **changes}, tmp_path / case, hooks=hooks).ok
    for case in ("intact", "values", "line"):
        assert_same_continuation(found[case], whole, 4)
    assert (
        measured(found["intact"]) == [180 - done, 180]
        and f"step 6: {done} of 180 rows of loss are there" in found["intact"].log
    )
    for case in ("values", "line"):
        again = measured(found[case])[0]
        assert 180 - done < again < 180 and f"step 6: {180 - again} of 180 rows" in found[case].log
    assert measured(found["model"]) == [180, 180] and "rows of loss are there" not in found["model"].log
    assert found["model"].trace() != whole.trace()


@pytest.mark.slow
def test_the_same_weights_as_another_function_are_measured_again(base: Config, tmp_path: Path) -> None:
    """Killed in the pass right after the checkpoint of step 2: with another `pref_beta` every weight is the same, and the loss
    of a pair is another."""
    dpo = {"stage": "dpo", "dataset": "arithmetic_pairs", "pref_beta": 0.1}
    config = {**saved(base), **LORA, **dpo, "save_steps": 2}
    _, killed = start_pair(config, tmp_path, "kill_after_pieces:3=0")
    found = {}
    for beta in (0.1, 0.2):
        shutil.copytree(killed.out, tmp_path / str(beta))
        found[beta] = measured(go_on({**config, "pref_beta": beta}, tmp_path / str(beta)).ok)
    assert found[0.1][0] < found[0.2][0] == 60


# -- where it cannot be kept -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_full_disk_does_not_end_a_run(base: Config, tmp_path: Path, ranks: int) -> None:
    """Nor does a directory that cannot be made. One line says so, and the run is the same."""
    config = saved(base) | {"per_device_train_batch_size": 4 // ranks}
    (tmp_path / "barred" / "dataflex").mkdir(parents=True)
    (tmp_path / "barred" / "dataflex" / "signals").write_text("")
    hooks = ["record_ids", PIECES]
    whole, full, barred = train_all(
        start(config, tmp_path / "whole", ranks=ranks, hooks=hooks),
        start(config, tmp_path / "full", ranks=ranks, hooks=[*hooks, "full_store:2", "kill_after:7"]),
        start(config, tmp_path / "barred", ranks=ranks, hooks=hooks),
    )
    assert full.status == [-9] * ranks and kept(full.out) == []
    assert full.log.count("what scoring measures is not kept from here on (No space left on device: ") == 1
    assert barred.log.count("what scoring measures is not kept from here on") == 1
    assert_same_continuation(barred, whole, 0)
    assert_same_continuation(go_on(config, full.out, ranks), whole, 4)


# -- what it costs, and what stays the same --------------------------------------------------------------------------


def test_pieces_change_no_decision(base: Config, tmp_path: Path) -> None:
    """Of a pass that is short nothing is written. The batches are other ones here, so values differ by rounding."""
    config = saved(base, "less")
    hooks = ["record_ids", "count_measured"]
    small, cut = train_all(
        start(config, tmp_path / "small", hooks=[*hooks, "kill_after:7"]),
        start(config, tmp_path / "cut", hooks=[*hooks, PIECES, "kill_after:7"]),
    )
    assert measured(small) == [180, 180] and kept(small.out) == []
    assert measured(cut) == [180, 180] and kept(cut.out) == ["step_6"]
    for step in (2, 6):
        a, b = table(small, step), table(cut, step)
        assert np.abs(a["score"] - b["score"]).max() <= 1e-5 and np.array_equal(a["selected"], b["selected"])
    assert small.ids() == cut.ids()


@pytest.mark.slow
def test_one_and_two_ranks_decide_the_same(base: Config, tmp_path: Path) -> None:
    """Invariant 5, in pieces, from one checkpoint."""
    config = {**saved(base, "less"), "per_device_train_batch_size": 2}
    config["dataflex"] = {"select": {**LESS, "warmup": 4, "interval": 8}}
    train(config, tmp_path / "start", ranks=2, hooks=["kill_after:4"])
    resume = {**config, "resume_from_checkpoint": str(tmp_path / "start" / "checkpoint-4")}
    hooks = ["record_ids", PIECES, "count_measured"]
    one, two = train_all(
        start({**resume, "per_device_train_batch_size": 4}, tmp_path / "1", hooks=hooks),
        start(resume, tmp_path / "2", ranks=2, hooks=hooks),
    )
    assert two.ok.ids() == one.ok.ids() and two.ledger() == one.ledger() and measured(one) == [180] == measured(two)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_keeping_leaves_no_trace(base: Config, tmp_path: Path, ranks: int) -> None:
    """Invariant 3, dropout on."""
    block = {"mix": {"name": "static", "proportions": [0.5, 0.3, 0.2]}}
    config = saved(base, "less")
    without, scored = train_all(
        start({**config, "dataflex": block}, tmp_path / "without", ranks=ranks),
        start(
            {**config, "dataflex": {**block, "select": LESS}},
            tmp_path / "with",
            ranks=ranks,
            hooks=["ignore_scores", PIECES, "count_measured"],
        ),
    )
    assert scored.ok.trace() == without.ok.trace() and measured(scored) == [180] * 3


# -- parts -----------------------------------------------------------------------------------------------------------


class Clock:
    """Goes on by so many seconds with every batch that is measured."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("dataflex.signals.pace.clock", lambda: self.now)


CPU = torch.device("cpu")


def scoring_rows(lengths: Sequence[int] | np.ndarray, keep: Any = None, batch_tokens: int = 8) -> ScoringRows:
    """Rows whose only token is their id."""
    rows = np.arange(len(lengths))
    return ScoringRows(
        rows=rows.astype(float).tolist(), ids=rows, lengths=np.asarray(lengths), batch_tokens=batch_tokens, collate=torch.tensor,
        prepare=lambda batch: batch, device=CPU, cache=keep,
    )  # fmt: skip


class Noted(MemoryCache):
    """Notes what it is given, and when."""

    def __init__(self, count: int, clock: Clock) -> None:
        super().__init__(count)
        self.clock, self.given = clock, list[tuple[float, list[int]]]()

    def put(self, indices: np.ndarray, values: np.ndarray) -> None:
        self.given.append((self.clock.now, indices.tolist()))
        super().put(indices, values)


@pytest.mark.parametrize("seconds", [0.001, 1.0, 7.0, 50.0, 130.0])
def test_a_piece_is_two_minutes_of_work(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Whatever a batch takes; a pass under two minutes is one piece, and values are the same."""
    clock = Clock(monkeypatch)
    lengths = np.random.default_rng(0).integers(1, 9, size=300)
    keep, batches = Noted(300, clock), token_batches(lengths, 8)

    def measure(batch: torch.Tensor) -> torch.Tensor:
        clock.now += seconds
        return batch * 2

    assert over_rows(scoring_rows(lengths, keep), measure, "test").tolist() == (np.arange(300) * 2.0).tolist()
    ends = [0.0, *(when for when, _ in keep.given)]
    took = np.diff(ends)
    assert (took <= max(120.0, seconds) + 1e-6).all() and (took[:-1] + 2 * seconds > 60).all()
    assert (len(took) == 1) == (seconds * len(batches) <= 120)
    order = [indices for _, indices in keep.given]
    assert sorted(i for indices in order for i in indices) == list(range(300))
    assert sum(len(indices) for indices in order) == 300
    assert all(indices == sorted(indices) for indices in order)  # and rows of no batch are torn apart
    assert all(len({k for k, some in enumerate(order) if set(batch.tolist()) & set(some)}) == 1 for batch in batches)


def test_a_piece_has_a_bounded_number_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """So have its values, however fast they come; of a pass that is not kept there is one."""
    clock = Clock(monkeypatch)
    monkeypatch.setattr("dataflex.signals.pace.PIECE_TOKENS", 100)
    lengths = np.random.default_rng(0).integers(1, 9, size=300)
    keep = Noted(300, clock)
    over_rows(scoring_rows(lengths, keep), lambda batch: batch, "test")
    tokens = [lengths[indices].sum() for _, indices in keep.given]
    assert all(100 <= t <= 108 for t in tokens[:-1]) and len(tokens) > 10
    assert [(p.begin, p.most) for p in pieces(np.full(9, 99), None) if list(p)] == [(0, 9)]


def test_rows_that_are_there_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are, in the batches of all rows."""
    keep, seen = Noted(6, Clock(monkeypatch)), []
    lengths = [5, 1, 5, 1, 5, 1]
    keep.put(np.array([2, 3]), np.array([20.0, 30.0]))

    def measure(batch: torch.Tensor) -> torch.Tensor:
        seen.append(batch.tolist())
        return batch * 2

    assert over_rows(scoring_rows(lengths, keep), measure, "test").tolist() == [0.0, 2.0, 20.0, 30.0, 8.0, 10.0]
    assert seen == [[0.0], [4.0], [1.0, 5.0]]
    assert scoring_rows(lengths, keep).subset(np.array([2, 1])).cache is None


def _on_rank(rank: int, ranks: int, port: int, folder: str, stop_after: int) -> None:
    """A pass on gloo ranks whose clocks disagree: rank 0's says 50 seconds a round, the others' stands still."""
    torch.distributed.init_process_group(
        "gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks, timeout=timedelta(seconds=60)
    )
    now, made = [0.0], [0]
    pace.clock = lambda: now[0]
    lengths = np.random.default_rng(0).integers(1, 9, size=60)
    keep = RunCache(StepFolders(Path(folder), "run"), 3, 60, lambda: {"signal": "loss"}, lambda: order_of(lengths))

    def measure(batch: torch.Tensor) -> torch.Tensor:
        if made[0] == stop_after:
            os._exit(9)
        made[0] += 1
        now[0] += 50.0 * (rank == 0)
        return batch * 2

    values = over_rows(scoring_rows(lengths, keep), measure, "test")
    (Path(folder) / f"rank-{rank}.json").write_text(json.dumps([made[0], values.tolist()]))
    torch.distributed.destroy_process_group()


def on_two_ranks(folder: Path, stop_after: int = -1) -> list[int]:
    folder.mkdir(exist_ok=True)
    context, port = multiprocessing.get_context("forkserver"), free_port()
    ranks = [context.Process(target=_on_rank, args=(r, 2, port, str(folder), stop_after)) for r in (0, 1)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    return [process.exitcode for process in ranks]


def test_two_ranks_agree_on_where_pieces_end(ground: Path, tmp_path: Path) -> None:
    """A slow pass of a few hundred tokens, cut off in its tenth round: the rounds of the four pieces that were complete are not
    made again, and the values are those of a pass that was not cut off."""
    rounds = -(-len(token_batches(np.random.default_rng(0).integers(1, 9, size=60), 8)) // 2)
    assert on_two_ranks(tmp_path / "whole") == [0, 0] and on_two_ranks(tmp_path / "cut", stop_after=9)[0] == 9
    assert kept_lines(tmp_path / "cut") == 4  # of two rounds each: a third would be 150 seconds
    assert on_two_ranks(tmp_path / "cut") == [0, 0]
    found = [
        json.loads((tmp_path / folder / f"rank-{r}.json").read_text()) for folder in ("whole", "cut") for r in (0, 1)
    ]
    assert [made for made, _ in found] == [rounds, rounds, rounds - 8, rounds - 8]
    assert all(values == found[0][1] for _, values in found) and found[0][1] == (np.arange(60) * 2.0).tolist()


def kept_lines(folder: Path) -> int:
    (file,) = folder.glob("step_3/*/done.jsonl")
    return len(file.read_text().splitlines())


def test_a_short_pass_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a minute nothing is written, and the hashes of the model are not made; a pass that goes on longer is kept whole."""
    clock, lengths, asked = Clock(monkeypatch), np.random.default_rng(0).integers(1, 9, size=300), []
    monkeypatch.setattr("dataflex.signals.pace.PIECE_TOKENS", 200)

    def key() -> dict[str, Any]:
        asked.append(clock.now)
        return {"signal": "loss"}

    def a_pass(step: int, seconds: float) -> np.ndarray:
        def measure(batch: torch.Tensor) -> torch.Tensor:
            clock.now += seconds
            return torch.sin(batch)

        keep = RunCache(StepFolders(tmp_path / "signals", "run"), step, 300, key, lambda: order_of(lengths))
        return over_rows(scoring_rows(lengths, keep), measure, "test")

    batches = len(token_batches(lengths, 8))
    first = a_pass(1, 59.0 / batches)
    assert not asked and not (tmp_path / "signals").exists()
    begin = clock.now
    second = a_pass(2, 1.0)
    assert len(asked) == 1 and begin + 60 <= asked[0] <= begin + 120
    begin = clock.now
    assert np.array_equal(a_pass(2, 1.0), first) and clock.now == begin  # it is there, to the end
    assert np.array_equal(first, second) and first.dtype == second.dtype


def cache_at(
    passes: StepFolders, step: int, name: str = "loss", parts: int = 1, order: Sequence[int] = (0, 2, 1, 3)
) -> RunCache:
    kept_pass = RunCache(passes, step, 4, lambda: {"signal": name}, lambda: np.array(order), at_once=True)
    for part in (np.array([0, 2]), np.array([1, 3]))[:parts]:
        if kept_pass.missing[part].all():
            kept_pass.put(part, part * 1.5)
    return kept_pass


def test_what_is_no_longer_needed_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataflex.signals.pace.PIECE_SECONDS", 0.0)
    passes, other = (StepFolders(tmp_path / "dataflex" / "signals", run) for run in ("a", "b"))
    for step in (2, 6, 10):
        cache_at(passes, step)
    cache_at(other, 14)
    passes.remove(before=6)
    assert kept(tmp_path) == ["step_6", "step_10"]
    monkeypatch.setattr("dataflex.signals.keeping.run._ROOM", 0)
    cache_at(passes, 12)
    assert kept(tmp_path) == ["step_12"]  # the latest pass, when there is no room for more
    cache_at(passes, 12, "embedding")
    assert len(list((tmp_path / "dataflex" / "signals" / "step_12").iterdir())) == 2
    passes.remove(before=13)
    assert not (tmp_path / "dataflex" / "signals").exists()
    cache_at(passes, 12)
    passes.remove()
    assert not (tmp_path / "dataflex" / "signals").exists()


def test_a_kept_pass_is_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataflex.signals.pace.PIECE_SECONDS", 0.0)
    passes = StepFolders(tmp_path, "a")
    cache_at(passes, 3)
    again = cache_at(passes, 3, parts=0)
    assert again.missing.tolist() == [False, True, False, True]
    again.put(np.array([1, 3]), np.array([10.0, 30.0]))
    assert again.values().tolist() == [0.0, 10.0, 3.0, 30.0]
    assert not cache_at(passes, 3, parts=0).missing.any()
    for other in (
        cache_at(passes, 3, parts=0, order=(0, 1, 2, 3)),
        cache_at(passes, 3, "embedding", parts=0),
        cache_at(passes, 4, parts=0),
        cache_at(StepFolders(tmp_path, "b"), 3, parts=0),
    ):
        assert other.missing.all()


def test_pieces_of_another_order_are_runs_of_it(tmp_path: Path) -> None:
    """Rows that are not neighbours in the order are sealed apart; with one of them damaged the others are still there."""
    order, values = np.array([4, 0, 3, 1, 2, 5]), np.arange(6) * 1.5
    for indices in (np.array([0, 1, 2, 3]), np.array([5])):
        PieceFile(tmp_path, {}, 6, order).write(indices, values[indices])
    file = PieceFile(tmp_path, {}, 6, order)
    assert file.runs == [(1, 5), (5, 6)]
    file.write(np.array([3, 4]), values[[3, 4]])
    assert PieceFile(tmp_path, {}, 6, order).runs == [(1, 5), (5, 6), (0, 1), (2, 3)]
    held = np.load(file.folder / "values.npy", mmap_mode="r+")
    held[0] = 7
    held.flush()
    assert PieceFile(tmp_path, {}, 6, order).runs == [(5, 6), (0, 1), (2, 3)]


def test_a_fingerprint_is_of_every_bit() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(300, 40), torch.nn.BatchNorm1d(40)).bfloat16()
    model.register_buffer("passing", torch.zeros(3), persistent=False)
    found = [model_fingerprint(model)]
    with torch.no_grad():
        model[0].weight[17, 211] += 0.01
        found.append(model_fingerprint(model))
        model[1].running_mean[3] += 1
        found.append(model_fingerprint(model))
        model.passing += 1  # is computed, not learned
    assert len(set(found)) == 3 and model_fingerprint(model) == found[-1]
    assert model_fingerprint(model, torch.nn.Linear(2, 2)) != found[-1]


def test_a_fingerprint_of_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    parameter = torch.nn.Parameter(torch.arange(6.0))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    found = [moments_fingerprint(optimizer)]
    for gradient in (torch.ones(6), torch.zeros(6)):
        parameter.grad = gradient
        optimizer.step()
        found.append(moments_fingerprint(optimizer))
    optimizer.param_groups[0]["lr"] = 0.2  # a direction does not depend on it
    assert moments_fingerprint(optimizer) == found[-1]
    optimizer.param_groups[0]["betas"] = list(optimizer.param_groups[0]["betas"])  # as loading leaves it, and
    optimizer.state[parameter]["step"] = int(optimizer.state[parameter]["step"])
    assert moments_fingerprint(optimizer) == found[-1]
    optimizer.state[parameter]["exp_avg_sq"][5] *= 2
    found.append(moments_fingerprint(optimizer))
    optimizer.param_groups[0]["betas"] = (0.8, 0.999)
    found.append(moments_fingerprint(optimizer))
    assert len(set(found)) == 5
    single = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    other = torch.optim.AdamW([single])
    single.grad = torch.ones_like(single)
    other.step()
    assert moments_fingerprint(other) not in found
    monkeypatch.setattr("dataflex.signals.keeping.fingerprint.gather", lambda own: [own, own])  # whole on two ranks
    assert moments_fingerprint(optimizer) == found[-1]
    monkeypatch.setattr("dataflex.signals.keeping.fingerprint.gather", lambda own: [own, own + 1])  # in parts
    assert moments_fingerprint(optimizer) != found[-1]


def test_a_fingerprint_of_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what FSDP or ZeRO-3 have split, this rank's part counts: not the rest, and not what a last part is filled up with."""

    class Part:
        shape, dtype, requires_grad = (5,), torch.float32, True

        def __init__(self, part: torch.Tensor) -> None:
            self.part = part

        def to_local(self) -> torch.Tensor:
            return self.part

    class Model:
        def __init__(self, tensor: Any) -> None:
            self.tensor = tensor

        def named_parameters(self) -> Any:
            return [("weight", self.tensor)]

        def named_modules(self) -> Any:
            return []

    def partitioned(*values: float, status: str = "AVAILABLE") -> Model:
        """The second of two parts of a parameter of seven values."""
        parameter = torch.zeros(0)
        parameter.ds_numel, parameter.ds_process_group = 7, None
        parameter.ds_tensor = torch.tensor(values)
        parameter.ds_tensor.ds_numel, parameter.ds_tensor.status = 4, SimpleNamespace(name=status)
        return Model(parameter)

    monkeypatch.setattr("torch.distributed.get_rank", lambda group=None: 1)
    monkeypatch.setattr("dataflex.signals.keeping.fingerprint.rank", lambda: 0)
    parts = [model_fingerprint(Model(Part(torch.tensor(v)))) for v in ([1.0, 2.0], [1.0, 2.5])]
    assert parts[0] != parts[1] and None not in parts
    found = [model_fingerprint(m) for m in (partitioned(5, 6, 7, 0), partitioned(5, 6, 7, 9), partitioned(5, 6, 8, 0))]
    assert found[0] == found[1] != found[2]
    assert model_fingerprint(partitioned(5, 6, 7, 0, status="NOT_AVAILABLE")) is None
