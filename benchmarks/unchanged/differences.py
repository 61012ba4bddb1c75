"""Where two records of a run differ: by kind, the first difference of each."""

from __future__ import annotations

import json
import re
from typing import Any

Record = dict[str, Any]

# Kinds of files in the order in which their differences are told; "format" is what we keep in a checkpoint for ourselves.
_KINDS = {
    "format": re.compile(r"checkpoint-\d+/(dataflex/|COMPLETE)"),
    "checkpoint": re.compile(r"checkpoint-\d+/"),
    "decisions": re.compile(r"dataflex/ledger\.jsonl$"),
    "history": re.compile(r"trainer_state\.json$"),
    "model": re.compile(r"\.(safetensors|bin|pt|pth)$"),
    "files": re.compile(""),
}
ORDER = ("status", "rows", "history", "decisions", "model", "files", "checkpoint", "format")


def kind_of(file: str) -> str:
    return next(kind for kind, pattern in _KINDS.items() if pattern.search(file))


def compare_records(old: Record, new: Record) -> dict[str, str]:
    found: dict[str, str] = {}
    if old["status"] != new["status"]:
        found["status"] = f"{old['status']} and {new['status']}"
    rows = forwards(old["forwards"], new["forwards"])
    if rows:
        found["rows"] = rows
    for file in sorted(old["files"] | new["files"]):
        text = first(old["files"].get(file), new["files"].get(file))
        if text:
            found.setdefault(kind_of(file), f"{file}{text}")
    return {kind: found[kind] for kind in ORDER if kind in found}


def first(old: dict[str, str] | None, new: dict[str, str] | None) -> str:
    """The first part of a file that differs, or nothing."""
    if old is None or new is None:
        return " is not there " + ("before" if old is None else "now")
    for part in [*old, *(p for p in new if p not in old)]:
        if old.get(part) != new.get(part):
            return f" {part}: {shown(old.get(part))} and {shown(new.get(part))}"
    return ""


def shown(text: str | None) -> str:
    return "nothing" if text is None else text if len(text) <= 60 else text[:57] + "..."


def forwards(old: dict[str, list[str]], new: dict[str, list[str]]) -> str:
    for file in sorted(old | new):
        a, b = old.get(file), new.get(file)
        if a is None or b is None:
            return f"{file} is not there {'before' if a is None else 'now'}"
        text = lines_differ(a, b)
        if text:
            return f"{file}: {text}"
    return ""


def lines_differ(a: list[str], b: list[str]) -> str:
    for number, (x, y) in enumerate(zip(a, b)):
        if x != y:
            left, right = json.loads(x), json.loads(y)
            names = [n for n in left | right if left.get(n) != right.get(n)]
            return f"forward {number} ({left['mode']}): {names[0]} {left.get(names[0])} and {right.get(names[0])}"
    return f"{len(a)} and {len(b)} forwards" if len(a) != len(b) else ""


# Of the Trainer and LLaMA-Factory themselves: written anew, a mean over the steps since the checkpoint, or a count that is
# another one under ZeRO-3 after a resume with the same code.
_OF_A_PROCESS = re.compile(r"^out/(trainer_log\.jsonl|\w+_results\.json|README\.md|\w+\.png)$")
_OF_A_COUNT = re.compile(r"(train_loss|total_flos)$")


def continued(whole: Record, after: Record) -> dict[str, str]:
    """A run that went on from a checkpoint, against the whole run: its training batches are the last ones of the whole, and
    its files at the end are the same."""
    last = f"step-{len(whole['status']) - 1}/"
    tails, now = {}, {}
    for file, lines in whole["forwards"].items():
        if file.startswith(last):
            own = file.replace(last, "step-0/")
            now[own] = trained(after["forwards"].get(own, []))
            tails[own] = trained(lines)[-len(now[own]) or None :]
            if len(now[own]) >= len(trained(lines)):
                return {"status": f"it began anew: {len(now[own])} training batches, as in the whole run"}
    old = {"status": whole["status"][-1:], "forwards": tails, "files": at_the_end(whole["files"])}
    return compare_records(old, {**after, "forwards": now, "files": at_the_end(after["files"])})


def at_the_end(files: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """Of the last step, without what says something about one process alone."""
    kept = {f: parts for f, parts in files.items() if f.startswith("out/") and not _OF_A_PROCESS.match(f)}
    return {
        f: {part: text for part, text in parts.items() if not _OF_A_COUNT.search(part)} for f, parts in kept.items()
    }


def trained(lines: list[str]) -> list[str]:
    return [line for line in lines if json.loads(line)["mode"] == "train grad"]
