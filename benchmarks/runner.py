"""The command line of a benchmark, its tables, and the sections of the results page beside it."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import shlex
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

_BENCHMARKS = Path(__file__).resolve().parent
_TITLE = "# Results\n\nWritten by the scripts beside this file (`--write`); README.md says how to read them.\n"
# Options of more than one benchmark.
_SHARED: dict[str, dict[str, Any]] = {
    "data": {"type": Path, "required": True, "help": "a folder with <name>.jsonl and <name>.heldout.jsonl"},
    "work": {"type": Path, "required": True, "help": "where results are kept, one file per run"},
    "model": {"help": "name or folder of a model to train instead of that of the preset"},
    "rows": {"type": int, "help": "rows scored (of the preset)"},
    "threads": {"type": int, "default": 2, "help": "threads of each process (2)"},
    "seeds": {"type": int, "default": 3, "help": "seeds per method (3)"},
    "steps": {"type": int, "help": "optimizer steps"},
    "processes": {"type": int, "help": "runs at a time (2; gpu: 1)"},
    "processor_time": {"action": "store_true", "help": "count processor time, where others use the machine"},
    "report": {"action": "store_true", "help": "start nothing, show what there is"},
}
_UNRECORDED = ("processes", "report", "write")  # they have no part in the result


class Command:
    """The command line of the script `file`, described by the first line of `doc`. presets: sizes to choose from. shared: its
    options of those above. own: others, as arguments of `add_argument`."""

    def __init__(
        self, file: str, doc: str | None, presets: Iterable[str], *shared: str, preset: str = "cpu", **own: Any
    ) -> None:
        self.file = Path(file).resolve()
        self.parser = argparse.ArgumentParser(description=(doc or "").split("\n", 1)[0])
        size = {"choices": tuple(presets), "default": preset, "help": f"size of everything ({preset})"}
        options = {"preset": size, **{name: _SHARED[name] for name in shared}, **own}
        options["write"] = {"action": "store_true", "help": "put the tables into RESULTS.md beside this file"}
        for name, how in options.items():
            self.parser.add_argument(f"--{name.replace('_', '-')}", **how)
        self.given = self.parser.parse_args()

    def several(self, name: str, known: Collection[str]) -> list[str]:
        """The values of an option that takes them with commas between; all of them by default."""
        asked = (getattr(self.given, name) or ",".join(known)).split(",")
        for value in asked:
            if value not in known:
                self.parser.error(f"--{name}: {value!r} is none of {', '.join(known)}")
        return asked

    def line(self, **changed: Any) -> str:
        """The command that gives the result again; folders are DIR and DIR2. changed: other values of options."""
        words = [f"python benchmarks/{self.file.relative_to(_BENCHMARKS)}"]
        for name, value in (vars(self.given) | changed).items():
            if name in _UNRECORDED or value is None or value is False or value == "":
                continue
            value = {"data": "DIR", "work": "DIR2"}.get(name, f"{value:g}" if isinstance(value, float) else value)
            flag = f"--{name.replace('_', '-')}"
            words.append(flag if value is True else f"{flag} {shlex.quote(str(value))}")
        return " ".join(words)

    def publish(
        self, title: str, body: str, *, threads: int, gpu: bool = False, note: str = "", **changed: Any
    ) -> None:
        """Print the command, where it ran, and `body`; with --write also under "`title` (preset)" of the results page."""
        text = f"`{self.line(**changed)}`: {machine(gpu, threads)}{note}.\n\n{body}"
        print(f"\n{text}", flush=True)
        if self.given.write:
            write_section(title, text, self.file.with_name("RESULTS.md"))


def machine(gpu: bool, threads: int) -> str:
    """One line: date, processor or GPU, threads, versions."""
    import torch

    if gpu and torch.cuda.is_available():
        where = torch.cuda.get_device_name()
    else:
        info = Path("/proc/cpuinfo")
        names = re.findall(r"^model name\s*: (.+)$", info.read_text(), re.M) if info.is_file() else []
        processor = names[0] if names else platform.processor() or platform.machine()
        where = f"{processor}, {threads} of {os.cpu_count()} cores"
    return f"{datetime.date.today()}, {where}, torch {torch.__version__}, Python {platform.python_version()}"


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left and the others to the right, readable as it is."""
    widths = [max(len(line[c]) for line in (header, *lines)) for c in range(len(header))]

    def row(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([row(header), rule, *map(row, lines)])


def write_section(name: str, text: str, results: Path) -> None:
    """Put `text` into a results page under the heading `name`, in place of what stood there."""
    content = results.read_text(encoding="utf-8") if results.is_file() else _TITLE
    head, *sections = re.split(r"^## ", content, flags=re.M)
    kept = {s.split("\n", 1)[0]: s for s in sections} | {name: f"{name}\n\n{text.strip()}\n"}
    parts = [head.strip(), *(f"## {kept[key].strip()}" for key in sorted(kept))]
    results.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
