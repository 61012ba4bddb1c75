"""What a run was, once it is over."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dataflex import events
from dataflex.notices import program
from dataflex.talking.header import label
from dataflex.talking.time_spent import TimeSpent
from dataflex.talking.wording import counted, duration, listed, percent

Measures = Mapping[str, float]


def time_line(step: int, spent: TimeSpent) -> str:
    """Where the time went: shares of all the time since the run began in this process."""
    total = spent.total
    parts = {"loading": spent.loading, "training": total - spent.loading - sum(spent.seconds.values()), **spent.seconds}
    shares = [f"{name} {percent(seconds / total)}" for name, seconds in parts.items() if seconds > 0]
    return label("done", f"{counted(step, 'step')} in {duration(total)}: {', '.join(shares)}")


def nothing_left_line(step: int) -> str:
    """Of a command that found its run at the end."""
    return label(
        "done", f"nothing is left to do: the run ended at step {step:,}; overwrite_output_dir: true starts anew"
    )


def served_line(served: Mapping[str, int], width: int | None) -> str | None:
    if not served:
        return None
    total = sum(served.values())
    items = [f"{name} {count:,} ({percent(count / total)})" for name, count in served.items()]
    head = f"{counted(total, 'row')}: "
    return label("served", head + listed(items, room=None if width is None else width - len(label("served", head))))


def held_out_line(first: Measures, last: Measures, width: int | None) -> str | None:
    """first, last: losses of held-out rows by domain."""
    if not last:
        return None
    items = [
        f"{n} {first[n]:.4g} > {v:.4g}" if n in first and first is not last else f"{n} {v:.4g}" for n, v in last.items()
    ]
    return label("held out", listed(items, room=None if width is None else width - len(label("held out", ""))))


def proportions_line(found: events.Recommended) -> str:
    shares = ", ".join(f"{name} {share:.4f}" for name, share in found.proportions.items())
    return label("found", f"proportions: {shares} (in {found.file})")


def next_line(output_dir: Path) -> str:
    return label("next", f"{program()} report {output_dir}")
