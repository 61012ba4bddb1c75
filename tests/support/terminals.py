"""Commands on a terminal of their own, and what it shows in the end."""

from __future__ import annotations

import os
import pty
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from harness import child

_CODE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")


def train_on_terminal(
    config: dict[str, Any], out: Path, *, columns: int, arguments: Sequence[str] = (), hooks: Sequence[str] = ()
) -> tuple[int, str]:
    """Exit status and all that was printed by `dataflex-cli train`, whose stdout and stderr are a terminal."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "config.yaml"
    file.write_text(yaml.safe_dump({**config, "output_dir": str(out)}))
    master, slave = pty.openpty()
    env = {"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "24"}
    process = child(["train", *arguments, str(file)], out, os.ttyname(slave), env, hooks)
    said = bytearray()

    def read() -> None:
        while True:
            try:
                said.extend(os.read(master, 1 << 16))
            except OSError:  # nobody has the other end any more
                return

    reader = threading.Thread(target=read)
    process.start()
    reader.start()
    process.join(300)
    os.close(slave)
    reader.join(30)
    os.close(master)
    return process.exitcode, said.decode()


def shown(said: str) -> list[str]:
    """The lines that a terminal, as wide as need be, shows at last."""
    lines, row, column = [""], 0, 0
    for number, letter, control, text in _CODE.findall(said):
        if control == "\n":
            row, column = row + 1, column  # the terminal driver has sent a carriage return before
            lines += [""] * (row + 1 - len(lines))
        elif control == "\r":
            column = 0
        elif letter == "A":
            row = max(0, row - int(number or 1))
        elif letter == "K":
            lines[row] = "" if number == "2" else lines[row][:column]
        elif text:
            line = lines[row].ljust(column)
            lines[row] = line[:column] + text + line[column + len(text) :]
            column += len(text)
    return [line.rstrip() for line in lines if line.strip()]
