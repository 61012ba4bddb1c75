"""The parts of what a run says: numbers, lines of decisions, passes, time left, the bar, and the log of the libraries."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from terminals import shown

from dataflex import events
from dataflex.components.mixers.odm import OdmMixer
from dataflex.config import parse
from dataflex.config.schema import Schedule, WeightPart
from dataflex.masking import hiding
from dataflex.signals import passing as announced
from dataflex.signals.passing import passing
from dataflex.talking import header, no_effect, run_log
from dataflex.talking.decision_lines import DecisionLines
from dataflex.talking.passes import Passes
from dataflex.talking.run_log import RunLog, diverted
from dataflex.talking.screen import File, Terminal
from dataflex.talking.time_spent import TimeSpent
from dataflex.talking.wording import amount, duration, fraction, listed, percent


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (amount(51_488), "51,488"), (amount(494_032_768), "494 M"), (amount(5_123_000), "5.12 M"), (amount(7.6e9), "7.6 B"),
        (percent(0.0), "0 %"), (percent(0.001), "<1 %"), (percent(0.943), "94 %"),
        (fraction(0.204), ".20"), (fraction(1.0), "1.00"), (fraction(0.2036, 3), ".204"),
        (duration(0.44), "0.4 s"), (duration(9.96), "10 s"), (duration(119.4), "119 s"), (duration(725), "12 min"),
        (duration(7199), "2 h 0 min"), (duration(12_000), "3 h 20 min"), (duration(190_000), "2 d 4 h"),
        (listed(["a", "b", "c"], most=2), "a  b  and 1 more"), (listed(["aaaa", "bbbb", "cccc"], room=8), "aaaa  and 2 more"),
    ],
)  # fmt: skip
def test_numbers(found: str, expected: str) -> None:
    assert found == expected


# -- decisions -----------------------------------------------------------------------------------------------------------


def selected(overlap: float | None = None, **domains: int) -> dict[str, Any]:
    decided = {"rows": [sum(domains.values())], "domains": domains, "overlap": overlap}
    return {"step": 100, "component": "select:rds", "decided": decided, "from": {"rows": 12_000}, "seconds": 48.2}


def mixed(step: int, before: list[float], **now: float) -> dict[str, Any]:
    return {
        "step": step, "component": "mix:odm", "decided": {"proportions": now}, "from": {"requested": before}, "seconds": 0.1
    }  # fmt: skip


def test_a_selection() -> None:
    lines = DecisionLines()
    assert lines.of(selected(0.61, dolly=4, gsm8k=376, alpaca=20, none=0)) == (
        "step 100  select rds: 400 of 12,000 rows | gsm8k 94 % alpaca 5 % dolly 1 % | 61 % as last time | 48 s"
    )
    assert lines.of(selected(a=400)) == "step 100  select rds: 400 of 12,000 rows | a 100 % | 48 s"


def test_a_line_is_cut_to_its_width() -> None:
    line = DecisionLines(70).of(selected(0.61, dolly=4, gsm8k=376, alpaca=20))
    assert line == "step 100  select rds: 400 of 12,000 rows | gsm8k 94 % and 2 more | 61 % as last time | 48 s"
    line = DecisionLines(60).of(mixed(20, [0.1] * 10, **{f"domain{n}": n / 45 for n in range(10)}))
    assert line == "step 20  mix odm: domain0 .10 > .00  and 9 more"


def test_a_mixture() -> None:
    lines = DecisionLines()
    assert lines.of(mixed(20, [0.2, 0.2, 0.6], c4=0.24, github=0.14, books=0.62)) == (
        "step 20  mix odm: github .20 > .14  c4 .20 > .24  books .60 > .62"
    )
    assert lines.of(mixed(30, [0.24, 0.14, 0.62], c4=0.2449, github=0.1351, books=0.62)) == (
        "step 30  mix odm: no domain moved by .005"
    )
    assert (
        lines.of(mixed(40, [0.196, 0.804], c4=0.201, books=0.799))
        == "step 40  mix odm: c4 .196 > .201  books .804 > .799"
    )
    many = lines.of(mixed(50, [0.05] * 20, **{f"d{n:02}": 0.0 if n % 2 else 0.1 for n in range(20)}))
    assert many is not None and many.endswith("d05 .05 > .00  and 14 more") and many.count(">") == 6


def test_a_mixture_in_which_a_domain_is_exhausted() -> None:
    lines = DecisionLines()
    record = mixed(20, [0.5, 0.5], a=0.9, b=0.1)
    record["decided"]["in_force"] = {"a": 0.0, "b": 1.0}
    assert lines.of(record) == "step 20  mix odm: a .50 > .00  b .50 > 1.00"
    cut = {"domain": "b", "proportions": {"a": 1.0, "b": 0.0}}
    exhausted = {"step": 30, "component": "exhausted", "decided": cut, "from": {"rows": 60}, "seconds": 0.0}
    assert lines.of(exhausted) == "step 30  b is exhausted (60 rows): a .00 > 1.00  b 1.00 > .00"


def test_decisions_that_are_held_back() -> None:
    """From what was in force before the first to what is after the last."""
    lines = DecisionLines()
    lines.held = frozenset({"mix"})
    assert lines.of(mixed(1, [0.5, 0.5], a=0.6, b=0.4)) is None and lines.of(mixed(2, [0.6, 0.4], a=0.7, b=0.3)) is None
    assert lines.waiting() == "steps 1 to 2  mix odm: a .50 > .70  b .50 > .30" and lines.waiting() is None
    assert lines.of(mixed(3, [0.7, 0.3], a=0.8, b=0.2)) is None
    cut = {"domain": "b", "proportions": {"a": 1.0, "b": 0.0}}
    exhausted = {"step": 4, "component": "exhausted", "decided": cut, "from": {"rows": 60}, "seconds": 0.0}
    assert lines.of(exhausted) == (
        "step 3  mix odm: a .70 > .80  b .30 > .20\nstep 4  b is exhausted (60 rows): a .80 > 1.00  b .20 > .00"
    )
    assert lines.waiting() is None


def test_weights_of_losses() -> None:
    def weighed(step: int, **weights: float) -> dict[str, Any]:
        decided = {"loss_weights": weights}
        return {"step": step, "component": "mix:doremi", "decided": decided, "from": {}, "seconds": 0.0}

    lines = DecisionLines()
    assert lines.of(weighed(1, a=0.3, b=0.7)) == "step 1  mix doremi: loss weights b .70  a .30"
    assert lines.of(weighed(2, a=0.4, b=0.7)) == "step 2  mix doremi: loss weights a .30 > .40"


def test_an_evaluation_and_a_target() -> None:
    lines = DecisionLines()
    measures = {"eval_loss": 2.31, "eval_dataflex/loss/code": 2.1, "eval_dataflex/macro/loss": 2.3, "eval_runtime": 4.0}
    assert lines.evaluation(100, measures, 4.24) == "step 100  evaluate: loss 2.31 | code 2.1 | 4.2 s"
    assert lines.evaluation(100, {"eval_a_loss": 1.0, "eval_b_loss": 2.0}, 1) == "step 100  evaluate: a 1  b 2 | 1.0 s"
    assert lines.evaluation(100, {"eval_accuracy": 1.0}, 1) is None
    target = {"step": 5, "component": "weight:adapt", "decided": {"target_rows": 40}, "from": {}, "seconds": 3.0}
    assert lines.of(target) == "step 5  weight adapt: measured a target of 40 rows | 3.0 s"


# -- before the first step -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule(warmup=10, interval=20, updates=3), "before steps 10, 30, 50"),
        (Schedule(warmup=20, interval=20), "every 20 steps from 20 on"),
        (Schedule(warmup=20, interval=1, updates=9), "every step from 20 on, 9 times"),
        (Schedule(warmup=600, interval=20), "never"),
        (Schedule(), "its proportions stay"),
        (Schedule(at=(3, 9, 700)), "before steps 3, 9"),
        (Schedule(at=tuple(range(9))), "before steps 0, 1, 2, 3, 4, 5, and 1 more"),
    ],
)
def test_when_a_component_acts(schedule: Schedule, expected: str) -> None:
    assert header.when(schedule, 600) == expected


def test_when_a_weighter_acts() -> None:
    part = WeightPart(name="x", component=None, warmup=50, ramp=100, until=500, fade=9)  # type: ignore[arg-type]
    assert header.strength(part) == "from step 50 on, in full from 150, until 500 and fading to 509"


def config_of(**slots: Any) -> Any:
    return parse(
        {"model_name_or_path": "m", "dataset": "a,b,c", "output_dir": "o", "do_train": True, "dataflex": slots}
    ).dataflex


def started(config: Any, steps: int, domains: int, *, known: bool = True, **schedules: Schedule) -> list[str]:
    return list(no_effect.at_the_start(config, schedules, steps, domains, known=known))


def test_decisions_that_cannot_matter() -> None:
    odm = config_of(mix={"name": "odm", "interval": 3, "warmup": 3})
    found = started(odm, 12, 3, mix=odm.mix.schedule)
    assert len(found) == 1 and "its first 3 decisions do not depend on what is measured, and the run has 3" in found[0]
    assert not started(odm, 13, 3, mix=odm.mix.schedule)
    assert "there is one data set" in started(odm, 13, 1, mix=odm.mix.schedule)[0]
    delta = config_of(select={"name": "delta_loss", "interval": 5})
    found = started(delta, 5, 3, select=delta.select.schedule)
    assert found[0].startswith("select delta_loss learns nothing in this run: its first decision does not depend")
    flat = config_of(weight=[{"name": "focal", "gamma": 0.0}, {"name": "loss", "warmup": 20}])
    assert started(flat, 9, 1, known=False) == [
        "weight focal changes nothing: with gamma 0 every token weighs one",
        "weight[1] loss never acts: its warmup is 20 steps, and the run has 9",
    ]


@pytest.mark.parametrize("domains", [2, 3, 5, 22])
def test_odm_decides_nothing_for_so_long(domains: int) -> None:
    mixer = OdmMixer()
    blind = mixer.unobserving_updates(domains)
    assert mixer.exploration(blind, domains) == pytest.approx(1 / domains, abs=1e-12)
    assert mixer.exploration(blind + 1, domains) < 1 / domains


def test_selections_that_do_not_matter() -> None:
    assert no_effect.of_decision(selected(0.99, a=400)) is None
    assert "these are the rows of the selection before" in (no_effect.of_decision(selected(1.0, a=400)) or "")
    assert "takes every row" in (no_effect.of_decision(selected(a=12_000)) or "")


# -- time ----------------------------------------------------------------------------------------------------------------


def test_time_left_knows_of_what_is_to_come() -> None:
    """30 steps of 2 s, select before 10, 20 (7 s), mix before every 5th (1 s), an evaluation (4 s) and a save (3 s) every 10."""
    clock = Clock()
    spent = TimeSpent(clock)
    args = SimpleNamespace(
        eval_strategy="steps", eval_steps=10, save_strategy=SimpleNamespace(value="steps"), save_steps=1 / 3
    )
    run = SimpleNamespace(max_steps=30, args=args)
    schedules = {"select": Schedule(warmup=10, interval=10), "mix": Schedule(warmup=5, interval=5)}

    def decide(slot: str, on: Any, seconds: float) -> None:
        clock.now += seconds
        events.emit(events.Decided({"component": f"{slot}:x", "seconds": seconds}))
        events.emit(events.Spent(on, seconds))

    expected = {1: 58 + 0, 5: 50, 10: 40 + 2 * 4 + 2 * 3 + 1 * 4, 11: 38 + 7 + 8 + 6 + 3, 29: 2 + 4 + 3, 30: 0}
    with events.listening(*spent.listeners()):
        clock.now += 50
        events.emit(events.Started(0, 4, schedules, run))
        assert spent.left(0) is None and spent.loading == 50
        for step in range(30):
            if schedules["select"].due(step):
                decide("select", "selecting", 7.0)
            if schedules["mix"].due(step):
                decide("mix", "mixing", 1.0)
            clock.now += 2.0 if step != 3 else 90.0  # one that took long moves no median
            if (step + 1) % 10 == 0:
                clock.now += 4.0
                events.emit(events.Spent("evaluating", 4.0))
                events.emit(events.Saving(step + 1, Path("c")))
                clock.now += 3.0
                events.emit(events.Saved(step + 1, Path("c")))
            events.emit(events.StepEnded(step + 1, run))
            if step + 1 in expected:
                assert spent.left(step + 1) == pytest.approx(expected[step + 1]), step + 1
    others = {"weighing": 0.0, "ordering": 0.0}
    assert spent.seconds == {"selecting": 14.0, "mixing": 5.0, **others, "evaluating": 12.0, "saving": 9.0}
    assert spent.scalars()["dataflex/seconds/loading"] == spent.loading > 0
    assert spent.scalars()["dataflex/seconds/total"] == pytest.approx(50 + 29 * 2 + 90 + 14 + 5 + 12 + 9)


def test_seconds_are_in_every_log_of_training() -> None:
    spent = TimeSpent(Clock())
    with events.listening(*spent.listeners()):
        training, evaluation = events.Logging(1, {"loss": 1.0}), events.Logging(1, {"eval_loss": 1.0})
        events.emit(training)
        events.emit(evaluation)
    assert len(training.scalars) == 9 and evaluation.scalars == {"eval_loss": 1.0}
    assert not any(
        calls for calls in events._CALLS.values() if any(c.__self__ is spent for c in calls if hasattr(c, "__self__"))
    )


# -- passes and the bar --------------------------------------------------------------------------------------------------


def printed(stream: io.StringIO) -> str:
    """As the driver of a terminal hands it on."""
    return stream.getvalue().replace("\n", "\r\n")


def a_pass(screen: Any, clock: Clock, seconds: float) -> None:
    """1200 rows in batches of 100, each of which takes so many seconds."""
    passes = Passes(screen, lambda: 100, clock)
    with events.listening(*passes.listeners()), passing("loss", 1200) as under_way:
        for _ in range(12):
            clock.now += seconds
            under_way.advance(100)


def test_a_line_every_30_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    a_pass(File(sys.stderr), Clock(), 10.0)
    assert capsys.readouterr().err.splitlines() == [
        "dataflex: step 100  measuring loss: 300 of 1,200 rows, 10 rows/s, 90 s left",
        "dataflex: step 100  measuring loss: 600 of 1,200 rows, 10 rows/s, 60 s left",
        "dataflex: step 100  measuring loss: 900 of 1,200 rows, 10 rows/s, 30 s left",
        "dataflex: step 100  measuring loss: 1,200 of 1,200 rows, 10 rows/s, 0.0 s left",
    ]
    a_pass(File(sys.stderr), Clock(), 2.0)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("columns", [80, 160])
def test_the_bar_of_a_pass(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """It fits the terminal, shows rate and time left, and is gone in the end; lines stand above it."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    clock, stream = Clock(), io.StringIO()
    screen = Terminal(stream, clock)
    passes = Passes(screen, lambda: 100, clock)
    with events.listening(*passes.listeners()), passing("loss", 1200) as under_way:
        clock.now += 1.9
        under_way.advance(100)
        assert stream.getvalue() == ""  # a short pass has no bar
        clock.now += 2.1
        under_way.advance(100)
        (bar,) = shown(printed(stream))
        assert len(bar) <= columns and bar.startswith("step 100  measuring loss ")
        assert bar.endswith(" 200/1,200 rows, 50 rows/s, 20 s left")
        before = len(stream.getvalue())
        clock.now += 0.1
        under_way.advance(100)
        assert len(stream.getvalue()) == before  # it is drawn twice a second
        screen.write("dataflex: a line\n")
        assert shown(printed(stream)) == ["dataflex: a line", bar]
    screen.close()
    screen.write("dataflex: another\n")
    assert shown(printed(stream)) == ["dataflex: a line", "dataflex: another"]


def test_a_pass_within_a_pass_advances_it() -> None:
    found: list[tuple[str, int, int]] = []
    with (
        events.listening((events.Passing, lambda e: found.append((e.what, e.done, e.total)))),
        passing("mean gradients", 5, done=1),
        passing("gradients", 2) as inner,
    ):
        inner.advance(2)
    assert found == [("mean gradients", 1, 5), ("mean gradients", 3, 5)] and not announced._open


# -- the log of the libraries --------------------------------------------------------------------------------------------


def test_what_goes_into_the_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("a_library")
    handler = logging.StreamHandler(sys.__stderr__)
    logger.addHandler(handler)
    logger.propagate = False
    log, terminal = RunLog(tmp_path / "dataflex" / "run.log"), io.StringIO()
    try:
        with diverted(log, terminal, verbose=None):
            print("printed")
            sys.stderr.write("  0%\r 50%\r100%\nhalf a")
            logger.warning("a warning")
            logger.error("an error")
            print(" line", file=sys.stderr)
            assert not sys.stdout.isatty() and sys.stdout.fileno() == log.fileno()
        assert handler.stream is sys.__stderr__ and len(logger.handlers) == 1
    finally:
        logger.removeHandler(handler)
    first, *lines = log.path.read_text().splitlines()
    assert first.startswith("==== dataflex ")
    assert lines == ["printed", "100%", "half aa warning", "an error", " line"]
    assert terminal.getvalue() == "an error\n" and capfd.readouterr() == ("", "")


def test_no_secret_goes_into_the_log(tmp_path: Path) -> None:
    hide = hiding({"hf_hub_token": "geheim", "dataflex": {"mix": {"api_key": "geheimer"}}, "seed": 1})
    log = RunLog(tmp_path / "run.log", hide)
    log.write("token='geheim', geheimer, hf_abcdefghijklmnopqrstuvwxyzabcdefgh\n")
    log.close()
    assert log.path.read_text().splitlines()[1] == "token='*****', *****, *****"


def test_a_verbose_run_shows_it_too(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with diverted(RunLog(tmp_path / "run.log"), io.StringIO(), verbose=lambda stream: stream.write):
        print("printed")
    assert capfd.readouterr().out == "printed\n" and "printed" in (tmp_path / "run.log").read_text()


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "dataflex").write_text("a file")
    log = RunLog(tmp_path / "dataflex" / "run.log")
    with diverted(log, io.StringIO(), verbose=None):
        print("printed")
    log.discard()
    full = RunLog(Path("/dev/full"))
    with diverted(full, io.StringIO(), verbose=None):
        print("printed")


def test_a_refused_run_puts_its_log_back(tmp_path: Path) -> None:
    for _ in range(2):
        log = RunLog(tmp_path / "dataflex" / "run.log")
        log.write("a line\n")
        log.close()
    refused = RunLog(tmp_path / "dataflex" / "run.log")
    kept = refused.path.read_bytes()
    refused.write("another\n")
    refused.discard()
    assert refused.path.read_bytes() == kept and kept.count(b"====\na line\n") == 2


def test_the_log_is_named_below_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    run_log.watch(tmp_path)
    run_log.say_where_more_is()
    assert capsys.readouterr().err == ""  # there is nothing in it
    (tmp_path / "dataflex").mkdir()
    (tmp_path / "dataflex" / "run.log").write_text("a line\n")
    run_log.say_after_traceback()
    sys.excepthook(ValueError, ValueError("a fault"), None)
    assert capsys.readouterr().err == f"ValueError: a fault\ndataflex: {tmp_path}/dataflex/run.log has more\n"
