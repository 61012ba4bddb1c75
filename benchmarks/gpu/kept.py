"""Parts of a measurement that are kept in a folder once they are done, so that the same command goes on where it was cut off."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TRIES = 2  # of a part that fails, or is cut off

Lines = list[tuple[str, str]]  # what was measured, and its value


class CutOff(BaseException):
    """The time is over. No `except Exception` on the way may take it for a failing part."""


class NotHere(Exception):
    """Why a part cannot be measured on this machine, in a few words."""


@dataclass(frozen=True)
class Part:
    """work: measures it. needs: seconds that it takes, about; it is not begun with less left, unless it is the first."""

    name: str
    work: Callable[[], Lines]
    needs: float = 0.0


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """CutOff in here after so many seconds, or when this process is asked to end."""

    def cut(*_: Any) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise CutOff

    before = {number: signal.signal(number, cut) for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT)}
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def run(parts: Sequence[Part], folder: Path, seconds: float, card: str) -> None:
    """Measure what `folder` does not have yet, as far as the time goes. A part that fails is noted, and the others go on."""
    folder.mkdir(parents=True, exist_ok=True)
    until, begun = time.monotonic() + seconds, False
    for part in parts:
        found = _read(folder, part.name) or {"tries": 0}
        if _settled(found):
            continue
        left = until - time.monotonic()
        if left <= 0 or (begun and left < part.needs):
            continue
        begun, begin, cut_off = True, time.monotonic(), False
        found |= {"lines": [], "why": "", "card": card, "tries": found["tries"] + 1}
        try:
            with time_limit(left):
                found["lines"] = part.work()
        except CutOff:
            found["why"], cut_off = "cut off by the time limit", True
        except NotHere as reason:
            found |= {"why": str(reason), "tries": TRIES, "not_here": True}
        except Exception as error:
            text = str(error).strip().splitlines()
            found["why"] = f"{type(error).__name__}: {text[-1].strip() if text else 'no reason given'}"
        found["seconds"] = time.monotonic() - begin
        _write(folder, part.name, found)
        print(f"{part.name}: {found['why'] or found['lines']} ({found['seconds']:.0f} s)", flush=True)
        if cut_off:
            return


def lines_of(parts: Sequence[Part], folder: Path) -> list[list[str]]:
    """Of a table: part, what, value, seconds, card."""
    lines = []
    for part in parts:
        found = _read(folder, part.name)
        if found is None:
            lines.append([part.name, "-", "not run yet", "-", "-"])
            continue
        shown = found["lines"] or [("-", found["why"])]
        for place, (what, value) in enumerate(shown):
            lines.append([part.name, what, value, "" if place else f"{found['seconds']:.0f}", found["card"]])
    return lines


def left_over(parts: Sequence[Part], folder: Path) -> list[str]:
    """Names of the parts that the same command would go on with."""
    return [part.name for part in parts if not _settled(_read(folder, part.name) or {"tries": 0})]


def failed(parts: Sequence[Part], folder: Path) -> list[str]:
    """Names of the parts that have no figures, though they could be measured here."""
    found = {part.name: _read(folder, part.name) for part in parts}
    return [name for name, one in found.items() if one is not None and one["why"] and not one.get("not_here")]


def _settled(found: dict[str, Any]) -> bool:
    return bool(found.get("lines")) or found["tries"] >= TRIES


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name.replace(' ', '-').replace(',', '').replace('/', '-')}.json"


def _read(folder: Path, name: str) -> dict[str, Any] | None:
    try:
        found = json.loads(_file(folder, name).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none, or cut off while it was written
        return None
    return found if isinstance(found, dict) and "tries" in found else None


def _write(folder: Path, name: str, found: dict[str, Any]) -> None:
    scratch = _file(folder, name).with_suffix(".partial")
    scratch.write_text(json.dumps(found, indent=1), encoding="utf-8")
    os.replace(scratch, _file(folder, name))
