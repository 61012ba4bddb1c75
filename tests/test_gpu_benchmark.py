"""The GPU benchmark in parts: kept once done, gone on with, and cut off in time. No GPU is needed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
sys.path.append(str(Path(__file__).parents[1] / "benchmarks" / "gpu"))
import everything
import kept
import less
import overhead
import shapes


class Counted:
    """Work that notes how often it is done, and ends as it is told to."""

    def __init__(self, error: BaseException | None = None, sleeps: float = 0.0) -> None:
        self.error, self.sleeps, self.calls = error, sleeps, 0

    def __call__(self) -> kept.Lines:
        self.calls += 1
        time.sleep(self.sleeps)
        if self.error is not None:
            raise self.error
        return [("speed", f"{self.calls} rows/s"), ("memory", "2 GiB")]


def values(parts: list[kept.Part], folder: Path) -> dict[str, str]:
    """The first value of each part."""
    return {name: value for name, _, value, seconds, _ in kept.lines_of(parts, folder) if seconds}


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    work = Counted()
    for _ in range(2):
        kept.run([kept.Part("a b, c", work)], tmp_path, 60, "H100")
    assert work.calls == 1
    assert kept.lines_of([kept.Part("a b, c", work)], tmp_path) == [
        ["a b, c", "speed", "1 rows/s", "0", "H100"],
        ["a b, c", "memory", "2 GiB", "", "H100"],
    ]
    assert kept.left_over([kept.Part("a b, c", work)], tmp_path) == []


def test_a_part_that_fails_says_why_and_the_others_go_on(tmp_path: Path) -> None:
    bad, good = Counted(RuntimeError("a run failed:\n  out of memory\n")), Counted()
    parts = [kept.Part("bad", bad), kept.Part("good", good)]
    kept.run(parts, tmp_path, 60, "H100")
    assert values(parts, tmp_path) == {"bad": "RuntimeError: out of memory", "good": "1 rows/s"}
    assert kept.failed(parts, tmp_path) == ["bad"] and kept.left_over(parts, tmp_path) == ["bad"]
    for _ in range(2):
        kept.run(parts, tmp_path, 60, "H100")
    assert (bad.calls, good.calls) == (kept.TRIES, 1)
    assert kept.left_over(parts, tmp_path) == []


def test_what_cannot_be_measured_here_is_no_failure(tmp_path: Path) -> None:
    work = Counted(kept.NotHere("one device"))
    parts = [kept.Part("ranks", work)]
    for _ in range(2):
        kept.run(parts, tmp_path, 60, "H100")
    assert work.calls == 1 and values(parts, tmp_path) == {"ranks": "one device"}
    assert kept.failed(parts, tmp_path) == [] and kept.left_over(parts, tmp_path) == []


def test_the_time_limit_cuts_a_part_off(tmp_path: Path) -> None:
    long, after = Counted(sleeps=30), Counted()
    parts = [kept.Part("long", long), kept.Part("after", after)]
    begin = time.monotonic()
    kept.run(parts, tmp_path, 0.2, "H100")
    assert time.monotonic() - begin < 10 and after.calls == 0
    assert kept.left_over(parts, tmp_path) == ["long", "after"]
    assert [line[2] for line in kept.lines_of(parts, tmp_path)] == ["cut off by the time limit", "not run yet"]
    long.sleeps = 0.0
    kept.run(parts, tmp_path, 60, "H200")
    assert values(parts, tmp_path) == {"long": "2 rows/s", "after": "1 rows/s"}


def test_asked_to_end_it_still_gives_its_table(tmp_path: Path) -> None:
    def ends() -> kept.Lines:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
        return []

    handler = signal.getsignal(signal.SIGTERM)
    parts = [kept.Part("ends", ends)]
    kept.run(parts, tmp_path, 60, "H100")
    assert [line[2] for line in kept.lines_of(parts, tmp_path)] == ["cut off by the time limit"]
    assert signal.getsignal(signal.SIGTERM) is handler
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_part_is_not_begun_with_too_little_time(tmp_path: Path) -> None:
    first, second, third = Counted(), Counted(), Counted()
    parts = [kept.Part("first", first, needs=900), kept.Part("second", second, needs=900), kept.Part("third", third)]
    kept.run(parts, tmp_path, 60, "H100")
    assert (first.calls, second.calls, third.calls) == (1, 0, 1)  # or a part longer than a command would never be done
    assert kept.left_over(parts, tmp_path) == ["second"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"lines": []}'])
def test_a_file_cut_off_while_it_was_written_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "part.json").write_text(text)
    work = Counted()
    kept.run([kept.Part("part", work)], tmp_path, 60, "H100")
    assert work.calls == 1 and values([kept.Part("part", work)], tmp_path) == {"part": "1 rows/s"}


# -- what `run.py --everything` makes of them --------------------------------------------------------------------------


class Runs:
    """In place of `run.Parts`: a machine with so many GPUs."""

    device, threads = "cuda", 1

    def __init__(self, work: Path) -> None:
        self.work = work

    def ready(self) -> None:
        raise AssertionError("nothing is to be made")


def test_the_parts_for_a_gpu(tmp_path: Path) -> None:
    """The most important first; together they fit into the time that is promised."""
    parts = everything.parts_of(Runs(tmp_path), everything.SIZES["gpu"])
    names = [part.name for part in parts]
    assert names[:3] == ["resume", "two ranks", "LESS 0.5B LoRA"] and len(set(names)) == len(names)
    assert {"LESS 7B LoRA", "losses 0.5B", "losses 7B", "step: weight loss", "scoring, LoRA"} <= set(names)
    assert sum(part.needs for part in parts) <= 25 * 60
    for size in everything.SIZES.values():
        assert {*size.losses, *(shape for shape, _ in size.scored)} <= shapes.SHAPES.keys()
        assert set(size.overhead) <= overhead.variants(tmp_path).keys()


def test_one_gpu_has_no_two_ranks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("apart.call", lambda *_, **__: [1])
    parts = [part for part in everything.parts_of(Runs(tmp_path), everything.SIZES["gpu"]) if part.name == "two ranks"]
    kept.run(parts, tmp_path, 60, "H100")
    assert [line[2] for line in kept.lines_of(parts, tmp_path)] == ["one device is visible, NCCL needs two"]


def test_figures_of_scoring_and_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ways with a figure and without one; and a step over a plain one."""
    found = {
        less.PLAIN: less.Found(rate=200.0, peak=3.0),
        "sgd, exact": less.Found(rate=150.0, peak=4.0),
        "sgd, bergson": less.Found(why="bergson cannot be imported"),
        "sgd, loop": less.Found(why="no time left"),
        "adam, loop": less.Found(why="no time left"),
    }
    monkeypatch.setattr("apart.call", lambda *_, **__: [("0.5B", found)])
    assert everything._less(Runs(tmp_path), everything.SIZES["gpu"], "0.5B", True) == [
        (less.PLAIN, "200 tokens/s (1.00 of plain passes), peak 3.00 GiB"),
        ("sgd, exact", "150 tokens/s (0.75 of plain passes), peak 4.00 GiB"),
        ("sgd, bergson", "bergson cannot be imported"),
        ("sgd, loop; adam, loop", "no time left"),
    ]


def test_everything_wants_a_folder() -> None:
    script = Path(everything.__file__).with_name("run.py")
    ended = subprocess.run(
        [sys.executable, script, "--preset", "tiny", "--everything"], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 2 and "--everything and --work go together" in ended.stderr
