"""A training command that waits before its first optimizer step, and after every one, until it is told to go on.

`Stepping` starts one and lets it go on. The rest of this file runs in the environment of that command, which may be another one,
so it imports nothing of the benchmarks.
"""

from __future__ import annotations

import importlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_TALK, _STARTED, _PROCESSOR = "STEPPING_TALK", "STEPPING_STARTED", "STEPPING_PROCESSOR_TIME"


class TooLong(Exception):
    """A step that was not over when its time was. seconds: that it had taken by then."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"not over after {seconds:.0f} s")
        self.seconds = seconds


class Stepping:
    """The command `module`:main with `arguments`, under the interpreter `python`. What it prints goes to `log`."""

    def __init__(
        self, python: Path, module: str, arguments: Sequence[str], log: Path, env: Mapping[str, str], processor: bool
    ) -> None:
        hear, child_says = os.pipe()
        child_hears, say = os.pipe()
        self.hear, self.say, self.log = os.fdopen(hear), os.fdopen(say, "w"), log
        env = {**os.environ, **env, _TALK: f"{child_hears},{child_says}", _STARTED: repr(time.time())}
        self.processor = processor
        env[_PROCESSOR] = "1" if processor else ""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [python, __file__, module, *arguments], env=env, stdout=file, stderr=file,
                pass_fds=(child_hears, child_says),
            )  # fmt: skip
        os.close(child_hears)
        os.close(child_says)

    def seconds(self, limit: float | None = None) -> float:
        """Until it waits: from its start to the first step, then of a step. RuntimeError with the end of its log if it ends.

        TooLong after `limit` seconds of a clock on the wall, with what it has used by then.
        """
        begin = self.used()
        if not select.select([self.hear], [], [], limit)[0]:
            raise TooLong(self.used() - begin)
        line = self.hear.readline()
        if not line:
            self.process.wait()
            end = self.log.read_text(errors="replace")[-3000:]
            raise RuntimeError(f"{self.log} ended with status {self.process.returncode}:\n{end}")
        return float(line)

    def step(self, limit: float | None = None) -> float:
        """Let it make a step; the seconds that took."""
        self.say.write("\n")
        self.say.flush()
        return self.seconds(limit)

    def used(self) -> float:
        """Seconds by the clock that is read."""
        if not self.processor:
            return time.time()
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def _main() -> None:
    hears, says = (int(fd) for fd in os.environ.pop(_TALK).split(","))
    processor, started = os.environ.pop(_PROCESSOR), float(os.environ.pop(_STARTED))
    read = time.process_time if processor else time.time
    begin = 0.0 if processor else started
    hear, say = os.fdopen(hears), os.fdopen(says, "w")

    def wait() -> None:
        nonlocal begin
        try:
            say.write(f"{read() - begin!r}\n")
            say.flush()
            hear.readline()
        except BrokenPipeError:  # nobody looks any more
            pass
        begin = read()

    from transformers.trainer_callback import CallbackHandler

    train_begins, step_ends = CallbackHandler.on_train_begin, CallbackHandler.on_step_end

    def on_train_begin(handler: Any, *args: Any, **kwargs: Any) -> Any:
        control = train_begins(handler, *args, **kwargs)
        wait()
        return control

    def on_step_end(handler: Any, *args: Any, **kwargs: Any) -> Any:
        control = step_ends(handler, *args, **kwargs)
        wait()
        return control

    CallbackHandler.on_train_begin, CallbackHandler.on_step_end = on_train_begin, on_step_end
    module = sys.argv[1]
    sys.argv = [module, *sys.argv[2:]]
    sys.exit(importlib.import_module(module).main())


if __name__ == "__main__":
    _main()
