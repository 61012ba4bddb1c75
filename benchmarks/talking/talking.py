"""What a run's lines, bar and clocks cost per optimizer step, and what is recorded of the rows that are served.

One real run on a tiny model, or on a given one, whose steps take turns: one with, one without. All rows are of one length. A
step without emits no event, which is all that talking lives on; of the second pair it also notes no rows. So ratios are of
neighbouring steps of the same run. The last line is of the clock around the events themselves: it has no noise of the steps, but
no cost outside of the events either.

    python benchmarks/talking/talking.py --steps 400
    python benchmarks/talking/talking.py --preset tiny --model PATH --steps 60    # a pretrained chat model, with LoRA
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import settings
from measuring import interval
from overhead import LORA
from runner import Command, table

SKIPPED = 20  # first steps of a run
TARGET = 1.01
DOMAINS = 4
HEADER = ("with and without", "ms without", "more ms", "ratio", "90% interval", "target", "verdict")


class Turns:
    """Switches what is measured on and off between steps, and reads the clock there."""

    def __init__(self, switch: Callable[[bool], None], read: Callable[[], float]) -> None:
        self.switch, self.read = switch, read
        self.begin: float | None = None
        self.on = True
        self.seconds: list[list[float]] = [[], []]  # without, with
        self.inside: list[float] = []  # of each step with: in its events
        self._inside = 0.0

    def within(self, call: Callable[[], None]) -> None:
        """The call, its seconds counted as those of an event."""
        begin = self.read()
        call()
        self._inside += self.read() - begin

    def step_ended(self) -> None:
        now = self.read()
        if self.begin is not None:
            self.seconds[self.on].append(now - self.begin)
            if self.on:
                self.inside.append(self._inside)
        self._inside = 0.0
        self.on = not self.on
        self.switch(self.on)
        self.begin = self.read()


def measure(keys: dict[str, Any], steps: int, *, rows_too: bool, read: Callable[[], float]) -> list[list[str]]:
    """Lines of the table. rows_too: the noting of rows is switched off as well, and the clock of the events is left out."""
    from dataflex import events
    from dataflex.record.exposure import Exposure

    emit, note = events.emit, Exposure.note

    def switch(on: bool) -> None:
        events.emit = with_talking if on else without_talking
        if rows_too:
            Exposure.note = note if on else lambda *_: None  # type: ignore[method-assign]

    turns = Turns(switch, read)

    def with_talking(event: Any) -> None:
        turns.within(lambda: emit(event))
        if isinstance(event, events.StepEnded):
            turns.step_ended()

    def without_talking(event: Any) -> None:
        if isinstance(event, events.StepEnded):
            turns.step_ended()
        elif isinstance(event, events.Finished):
            emit(event)

    switch(True)
    try:
        settings.train({**keys, "max_steps": SKIPPED + 2 * steps})
    finally:
        events.emit, Exposure.note = emit, note  # type: ignore[method-assign]
    without, spoken = (np.array(found[SKIPPED // 2 :]) for found in turns.seconds)
    count = min(len(without), len(spoken))
    without, spoken, inside = without[:count], spoken[:count], np.array(turns.inside[SKIPPED // 2 :])[:count]
    if rows_too:
        return [line("talking and noting rows", without, spoken)]
    return [line("talking", without, spoken), line("talking, in its events", spoken - inside, spoken)]


def line(name: str, without: np.ndarray, spoken: np.ndarray) -> list[str]:
    """A line of the table, of the seconds of pairs of steps: the median of their ratios, and its interval."""
    ratios = spoken / without

    def middle(i: np.ndarray) -> float:
        return float(np.median(ratios[i]))

    low, high = interval(middle, len(ratios))
    verdict = "met" if high <= TARGET else "missed" if low > TARGET else "in the noise"
    ratio, more = float(np.median(ratios)), float(np.median(spoken - without))
    cells = [f"{1e3 * np.median(without):.2f}", f"{1e3 * more:+.3f}", f"{ratio:.4f}", f"{low:.4f} .. {high:.4f}"]
    return [name, *cells, f"<= {TARGET}", verdict]


def main() -> None:
    steps = {"type": int, "default": 400, "help": "pairs of steps (400)"}
    command = Command(
        __file__, __doc__, ("tiny", "demo", "cpu"), "threads", "processor_time", "model", preset="demo", steps=steps
    )
    given, preset = command.given, settings.PRESETS[command.given.preset]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        settings.settle_environment(work, preset, given.threads)
        _, texts, tokenizer = settings.demonstration(work, preset, model=given.model)
        settings.write_equal_rows(work / "data", tokenizer, texts, DOMAINS, 400, preset.cutoff)
        keys = {
            **settings.run_keys(work, preset, "run"), **(LORA if given.model else {}),
            "dataset": ",".join(f"d{i}" for i in range(DOMAINS)),
            "logging_steps": 1,  # a line at every step
            "dataflex": {"mix": {"name": "odm", "interval": 9, "warmup": 9}},
        }  # fmt: skip
        read = time.process_time if given.processor_time else time.perf_counter
        with settings.printing_to(work / "log"):
            lines = [found for rows in (False, True) for found in measure(keys, given.steps, rows_too=rows, read=read)]
        title = f"Talking ({given.preset}{', a pretrained model' if given.model else ''})"
        command.publish(title, table(HEADER, lines), threads=given.threads)


if __name__ == "__main__":
    main()
