"""Says what a run does, and keeps the output of the libraries out of the way."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

from dataflex import events, notices
from dataflex.config.schema import DataflexConfig, RunConfig
from dataflex.errors import ConfigError
from dataflex.masking import hiding
from dataflex.notices import Once, say
from dataflex.talking import header, no_effect, summary
from dataflex.talking.decision_lines import DecisionLines, losses_by_domain
from dataflex.talking.passes import Passes
from dataflex.talking.run_log import RunLog, diverted, log_path
from dataflex.talking.screen import File, Screen, screen_for
from dataflex.talking.time_spent import TimeSpent
from dataflex.talking.wording import duration
from dataflex.values import truth

# A mixer that decides more often than every so many steps is shown when the Trainer logs.
OFTEN = 10


class Talker:
    """Of rank 0."""

    def __init__(self, config: RunConfig, screen: Screen, spent: TimeSpent, output_dir: Path) -> None:
        self.config, self.arguments = config.dataflex or DataflexConfig(), config.llamafactory
        self.screen, self.spent, self.output_dir = screen, spent, output_dir
        self.decisions = DecisionLines(screen.width)
        self._once = Once()
        self._domains = 0
        self._step: int | None = None
        self._begin: int | None = None  # steps done before this process; None: it had none to make
        self._max_steps = 0
        self._logged = ""
        self._proportions: Mapping[str, float] = {}
        self._held_out: list[dict[str, float]] = []  # the first, and the last
        self._evaluated: tuple[int, dict[str, float]] = (-1, {})
        self._found: events.Recommended | None = None
        self._finished: events.Finished | None = None

    def listeners(self) -> list[tuple[type, Callable[[Any], None]]]:
        own: list[tuple[type, Callable[[Any], None]]] = [
            (events.Prepared, self._prepare), (events.Started, self._start), (events.Decided, self._decide),
            (events.Logging, self._log), (events.StepEnded, self._end_step), (events.Evaluated, self._evaluate),
            (events.Recommended, self._recommend), (events.Finished, self._finish),
        ]  # fmt: skip
        return own + Passes(self.screen, lambda: self._step).listeners()

    def close(self) -> None:
        """The run is over."""
        if self._finished is None:
            return
        width = self.screen.width
        self._say(self.decisions.waiting())
        if self._begin in (None, self._finished.step):
            say(summary.nothing_left_line(self._finished.step))
        else:
            say(summary.time_line(self._finished.step, self.spent))
        self._say(summary.served_line(self._finished.served, width))
        if self._held_out:
            self._say(summary.held_out_line(self._held_out[0], self._held_out[-1], width))
        if self.config.select is not None:
            made = self.config.select.schedule.turns(self._finished.step)
            say(header.label("selected", f"{made} time{'' if made == 1 else 's'}"))
        if self._found is not None:
            say(summary.proportions_line(self._found))
        say(summary.next_line(self.output_dir))

    # -- events ------------------------------------------------------------------------------------------------------

    def _prepare(self, event: events.Prepared) -> None:
        self._domains = len(event.rows.domains) if event.config is not None else 0
        say(*header.data_lines(event, self.arguments, self.screen.width))

    def _start(self, event: events.Started) -> None:
        self._step = self._begin = event.step
        self._max_steps = event.trainer.max_steps
        args, schedule = event.trainer.args, event.schedules.get("mix")
        every = None if schedule is None else schedule.interval
        if every is not None and every < min(OFTEN, args.logging_steps):
            self.decisions.held = frozenset({"mix"})
        say(*header.plan_lines(event, self.config, self._proportions, self.screen.width))
        counted_in_steps = int(self.arguments.get("max_steps") or 0) > 0  # then it was said before
        schedules, steps = event.schedules, self._max_steps
        for line in no_effect.at_the_start(self.config, schedules, steps, self._domains, known=counted_in_steps):
            self._once.say(line)

    def _decide(self, event: events.Decided) -> None:
        record = event.record
        if record["component"] == "start":
            self._proportions = record["decided"].get("proportions", {})
        self._say(self.decisions.of(record))
        line = no_effect.of_decision(record)
        if line is not None:
            self._once.say(line)

    def _log(self, event: events.Logging) -> None:
        scalars = event.scalars
        if "loss" not in scalars:
            return
        self._say(self.decisions.waiting())
        self._logged = f"loss {scalars['loss']:.4g}  lr {scalars.get('learning_rate', 0.0):.3g}"
        if not self.screen.live:
            say(f"step {event.step}  {self._logged}{self._left(event.step)}")

    def _end_step(self, event: events.StepEnded) -> None:
        self._step = event.step
        head = f"step {event.step:,}/{self._max_steps:,}"
        self.screen.show(head, event.step, self._max_steps, lambda: f"{self._logged}{self._left(event.step)}".strip())

    def _evaluate(self, event: events.Evaluated) -> None:
        losses = {name: value for name, value in event.measures.items() if "loss" in name}
        if (event.step, losses) == self._evaluated:  # LLaMA-Factory does so at the end (`do_eval`)
            return
        self._evaluated = (event.step, losses)
        self._say(self.decisions.evaluation(event.step, event.measures, event.seconds))
        found = losses_by_domain(event.measures)
        if found:
            self._held_out = [*self._held_out[:1], found]

    def _recommend(self, event: events.Recommended) -> None:
        self._found = event

    def _finish(self, event: events.Finished) -> None:
        self._finished = event
        self.screen.close()

    def _left(self, step: int) -> str:
        seconds = self.spent.left(step)
        return "" if seconds is None or step == self._max_steps else f"  {duration(seconds)} left"

    def _say(self, line: str | None) -> None:
        if line is not None:
            say(line)


@contextmanager
def talking(config: RunConfig, output_dir: Path) -> Iterator[TimeSpent]:
    """For the length of a run. Every rank has its own log and clock; rank 0 speaks.

    A run that is refused leaves no log. LLaMA-Factory's callbacks may ask the clock how much time is left.
    """
    spent, block = TimeSpent(), {} if config.dataflex is None else config.dataflex.to_json()
    with _logged(config.llamafactory, output_dir, block) as (screen, stack):
        talker = Talker(config, screen, spent, output_dir) if _rank() == 0 else None
        stack.enter_context(events.listening(*spent.listeners(), *(talker.listeners() if talker else ())))
        yield spent
        screen.close()
        if talker is not None:
            talker.close()


@contextmanager
def measuring(arguments: Mapping[str, Any], output_dir: Path) -> Iterator[None]:
    """For the length of a command that measures and trains nothing: its passes are shown. arguments: LLaMA-Factory's keys."""
    with _logged(arguments, output_dir, {}) as (screen, stack):
        if _rank() == 0:
            stack.enter_context(events.listening(*Passes(screen, lambda: None).listeners()))
        yield


@contextmanager
def _logged(
    arguments: Mapping[str, Any], output_dir: Path, block: Mapping[str, Any]
) -> Iterator[tuple[Screen, ExitStack]]:
    """What the libraries print goes to a log, which a refused command does not leave. The stack ends with the block."""
    log = RunLog(log_path(output_dir, _rank()), hiding({**arguments, "dataflex": block}))
    screen = _screen(arguments, _rank())
    with _discarded_if_refused(log), ExitStack() as stack:
        stack.callback(screen.close)
        if not notices.redirected():
            stack.enter_context(notices.into(screen))
        stack.enter_context(diverted(log, screen, verbose=_shown_too(screen) if notices.verbose() else None))
        if _rank() == 0:
            say(header.label("log", f"{log.path} has what the libraries print"))
        yield screen, stack


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


@contextmanager
def _discarded_if_refused(log: RunLog) -> Iterator[None]:
    try:
        yield
    except ConfigError:
        log.discard()
        raise


def _screen(arguments: Mapping[str, Any], rank: int) -> Screen:
    """The bar is for a terminal, and for those who have not switched bars off."""
    off = truth(arguments.get("disable_tqdm"), "disable_tqdm") or notices.quiet()
    if rank:
        return File(sys.stderr)
    screen = screen_for(sys.stderr, bar=not off)
    if notices.redirected():  # the bar stays on the terminal, and the lines go to a file
        screen.width = None
    return screen


def _shown_too(screen: Screen) -> Callable[[TextIO], Callable[[str], Any]]:
    def where(stream: TextIO) -> Callable[[str], Any]:
        return screen.write if screen.live and stream.isatty() else stream.write

    return where
